// SPDX-License-Identifier: Apache-2.0
#include "qcow2/guest/write.h"

#include <algorithm>
#include <bit>

#include "base/checked.h"
#include "qcow2/guest/compress.h"
#include "qcow2/guest/external_store.h"
#include "qcow2/guest/guest_disk.h"
#include "qcow2/guest/read.h"

namespace byre {

namespace {
/// A request takes its locks piece by piece, so that a large one does not hold up the rest; a piece
/// stays inside one L2 table (D4).
constexpr uint64_t kPieceMax = 2 * MiB;
}  // namespace

static bool writable_in_place(const GuestDisk& disk, const Mapping& mapping, uint64_t within,
                              uint64_t length);
static Task<uint64_t> write_in_place(GuestDisk& disk, uint64_t offset, Bytes data, bool fua,
                                     bool& durable);
static Task<void> write_allocating(GuestDisk& disk, uint64_t offset, Bytes data);
struct Piece;
static Task<void> write_parts(const Piece& piece);
static Task<void> fill_preallocated(GuestDisk& disk, uint64_t offset, Bytes data,
                                    const Mapping& old);
static Task<uint64_t> allocate_and_write(GuestDisk& disk, uint64_t offset, Bytes data,
                                         std::span<const Mapping> old);
static Task<void> fill_new(GuestDisk& disk, uint64_t offset, Bytes data,
                           std::span<const Mapping> old, const Reservation& fresh,
                           std::span<Mapping> mappings);

Task<void> write_disk(GuestDisk& disk, uint64_t offset, Bytes data, WriteOptions options) {
  const Request request(disk);
  co_await request.begin();
  bool durable = false;
  {
    RangeLock::Request keep_size(disk.disk_size, 0, 1, RangeLock::Mode::shared);
    co_await keep_size;
    // Not sooner: what was waited for may have been a change that failed (M4).
    co_await disk.check_can_write();
    if (!within(offset, data.size(), disk.size))
      co_await fail(disk.out_of_range("write", offset, data.size()));
    if (options.compressed) {
      co_await write_compressed(disk, offset, data, options.compression_level);
    } else {
      durable = co_await write_checked(disk, offset, data, options.fua);
    }
  }
  if (options.fua && !durable) co_await disk.committer->flush(IoTag::flush);
}

/// True if everything is durable: it all went, with FUA, to clusters whose mapping is.
Task<bool> write_checked(GuestDisk& disk, uint64_t offset, Bytes data, bool fua) {
  const Geometry& g = disk.head.geometry;
  bool durable = true;
  while (!data.empty()) {
    const uint64_t table_end = (g.l1_index(g.cluster_of(GuestOffset{offset})) + 1) * g.l1_span();
    const uint64_t piece = std::min({uint64_t{data.size()}, kPieceMax, table_end - offset});
    uint64_t done = 0;
    while (done < piece) {
      // L2: peek before the lock, so that writers that allocate do not queue twice.
      const Result<std::optional<Map::Found>> peek =
          disk.map->find_now(g.cluster_of(GuestOffset{offset + done}));
      const uint64_t in_cluster = g.offset_in_cluster(GuestOffset{offset + done});
      const uint64_t in_first = std::min(disk.cluster_size() - in_cluster, piece - done);
      const bool allocates =
          peek && *peek && !writable_in_place(disk, (*peek)->mapping, in_cluster, in_first);
      if (!allocates)
        done += co_await write_in_place(disk, offset + done, data.subspan(done, piece - done), fua,
                                        durable);
      if (done < piece) {
        co_await write_allocating(disk, offset + done, data.subspan(done, piece - done));
        durable = false;
        done = piece;
      }
    }
    offset += piece;
    data = data.subspan(piece);
  }
  co_return durable;
}

/// May [within, within + length) of the cluster be overwritten where it is?
bool writable_in_place(const GuestDisk& disk, const Mapping& mapping, uint64_t within,
                       uint64_t length) {
  if (!mapping.copied || !mapping.host) return false;
  const uint64_t unit_size = disk.head.geometry.unit_size();
  const uint64_t first = within / unit_size;
  const uint64_t last = (within + length - 1) / unit_size;
  for (uint64_t unit = first; unit <= last; ++unit) {
    if ((mapping.allocated >> unit & 1) == 0) return false;
  }
  return true;
}

/// Overwrites from the start of `data` on what is ours alone, under a shared lock; returns how many
/// bytes that were.  Clusters that follow each other on the host are one I/O.
Task<uint64_t> write_in_place(GuestDisk& disk, uint64_t offset, Bytes data, bool fua,
                              bool& durable) {
  const Geometry& g = disk.head.geometry;
  const GuestCluster first = g.cluster_of(GuestOffset{offset});
  const GuestCluster last = g.cluster_of(GuestOffset{offset + data.size() - 1});
  RangeLock::Request lock(disk.clusters, first.value, last.value + 1, RangeLock::Mode::shared);
  co_await lock;
  if (!disk.bitmaps->try_set_dirty(offset, data.size()))
    co_await disk.bitmaps->set_dirty(offset, data.size());
  const Epochs::Pin pin = disk.epochs.pin();
  uint64_t done = 0;
  while (done < data.size()) {
    uint64_t run = 0;
    uint64_t host = 0;
    while (done + run < data.size()) {
      const GuestOffset at{offset + done + run};
      const uint64_t in_cluster = g.offset_in_cluster(at);
      const uint64_t length =
          std::min<uint64_t>(disk.cluster_size() - in_cluster, data.size() - done - run);
      Result<std::optional<Map::Found>> now = disk.map->find_now(g.cluster_of(at));
      if (now && !*now) now = std::optional(co_await disk.map->find(g.cluster_of(at)));
      const Map::Found found = *co_await std::move(now);
      if (!writable_in_place(disk, found.mapping, in_cluster, length)) break;
      const uint64_t here = g.start_of(*found.mapping.host).value + in_cluster;
      if (run == 0) host = here;
      if (here != host + run) break;
      durable &= found.durable && fua;
      run += length;
    }
    if (run == 0) break;
    co_await disk.store.write(HostOffset{host}, data.subspan(done, run), fua && durable,
                              disk.write_mark(offset));
    ++disk.stats.writes_in_place;
    done += run;
  }
  co_return done;
}

/// A piece of a write inside one L2 table, and what its clusters are.
struct Piece {
  GuestDisk& disk;
  uint64_t offset;
  Bytes data;
  GuestCluster first;
  std::vector<Mapping> old;

  /// The part of the request inside clusters [from, to).
  std::pair<uint64_t, Bytes> part(uint64_t from, uint64_t to) const {
    const Geometry& g = disk.geometry();
    const uint64_t start = std::max(offset, g.start_of(first + from).value);
    const uint64_t end = std::min(offset + data.size(), g.start_of(first + to).value);
    return {start, data.subspan(start - offset, end - start)};
  }
  bool in_place(uint64_t index) const {
    const auto [start, bytes] = part(index, index + 1);
    return writable_in_place(disk, old[index],
                             disk.geometry().offset_in_cluster(GuestOffset{start}), bytes.size());
  }
  /// Ours alone, but not data yet.
  bool kept(uint64_t index) const { return old[index].host && old[index].copied; }
};

/// Overwrites the part in one cluster where it is.  The caller holds a pin.
BYRE_CORO_WRAPPER static Task<void> overwrite(const Piece& piece, uint64_t index) {
  const Geometry& g = piece.disk.geometry();
  const auto [start, bytes] = piece.part(index, index + 1);
  const uint64_t at =
      g.start_of(*piece.old[index].host).value + g.offset_in_cluster(GuestOffset{start});
  return piece.disk.store.write(HostOffset{at}, bytes, false, piece.disk.write_mark(piece.offset));
}

/// Writes a piece under an exclusive lock: lookup, space, data, and only then the map (M3).
static Task<void> write_allocating(GuestDisk& disk, uint64_t offset, Bytes data) {
  const Geometry& g = disk.head.geometry;
  const GuestCluster first = g.cluster_of(GuestOffset{offset});
  const GuestCluster last = g.cluster_of(GuestOffset{offset + data.size() - 1});
  co_await disk.throttle_staging();
  RangeLock::Request lock(disk.clusters, first.value, last.value + 1, RangeLock::Mode::exclusive);
  co_await lock;
  if (!disk.bitmaps->try_set_dirty(offset, data.size()))
    co_await disk.bitmaps->set_dirty(offset, data.size());

  Piece piece{disk, offset, data, first, std::vector<Mapping>(last - first + 1)};
  std::vector<Mapping>& old = piece.old;
  {
    const Epochs::Pin pin = disk.epochs.pin();
    for (uint64_t i = 0; i < old.size(); ++i) old[i] = (co_await disk.map->find(first + i)).mapping;
  }
  bool all_in_place = true;
  for (uint64_t i = 0; i < old.size(); ++i) all_in_place &= piece.in_place(i);
  if (all_in_place) {
    lock.downgrade();  // A writer was faster, and left it writable.
    const Epochs::Pin pin = disk.epochs.pin();
    for (uint64_t i = 0; i < old.size(); ++i) co_await overwrite(piece, i);
    co_return;
  }
  for (const Mapping& mapping : old) {
    if (!mapping.copied) co_await disk.load_refcounts_of(mapping);
  }
  co_await disk.prepare_table(g.l1_index(first));
  co_await write_parts(piece);
}

/// Each part as its clusters need it: in place, filled, or to fresh clusters.  Holds X.
static Task<void> write_parts(const Piece& piece) {
  const std::span<const Mapping> old = piece.old;
  for (uint64_t i = 0; i < old.size();) {
    if (piece.in_place(i)) {
      const Epochs::Pin pin = piece.disk.epochs.pin();
      co_await overwrite(piece, i);
      ++i;
      continue;
    }
    uint64_t end = i + 1;
    if (piece.disk.data) {
      while (end < old.size() && !piece.in_place(end)) ++end;
      const auto [start, bytes] = piece.part(i, end);
      co_await write_external(piece.disk, start, bytes, old.subspan(i, end - i));
      i = end;
    } else if (piece.kept(i)) {
      const auto [start, bytes] = piece.part(i, end);
      co_await fill_preallocated(piece.disk, start, bytes, old[i]);
      i = end;
    } else {
      while (end < old.size() && !piece.in_place(end) && !piece.kept(end)) ++end;
      const auto [start, bytes] = piece.part(i, end);
      i += co_await allocate_and_write(piece.disk, start, bytes, old.subspan(i, end - i));
    }
  }
}

/// Units of a cluster that we hold alone but that are not data yet (preallocated zeros,
/// subclusters): fills each unit that is touched, then marks it allocated.
Task<void> fill_preallocated(GuestDisk& disk, uint64_t offset, Bytes data, const Mapping& old) {
  const Geometry& g = disk.head.geometry;
  const GuestCluster cluster = g.cluster_of(GuestOffset{offset});
  const uint64_t start = g.start_of(cluster).value;
  const uint64_t within = offset - start;
  const uint64_t first_unit = within / g.unit_size();
  const uint64_t end_unit = div_ceil(within + data.size(), g.unit_size());
  const uint64_t fill_start = first_unit * g.unit_size();
  const uint64_t fill_end = end_unit * g.unit_size();
  Mapping mapping = old;
  for (uint64_t unit = first_unit; unit < end_unit; ++unit) {
    mapping.allocated |= 1u << unit;
    mapping.zero &= ~(1u << unit);
  }
  const Epochs::Pin pin = disk.epochs.pin();
  const uint64_t host = g.start_of(*old.host).value;
  if (fill_start == within && fill_end == within + data.size()) {
    co_await disk.store.write(HostOffset{host + within}, data, false, disk.write_mark(offset));
  } else {
    std::vector<std::byte> filled(fill_end - fill_start);
    const uint64_t before = within - fill_start;
    const uint64_t after = before + data.size();
    if (before != 0) {
      co_await read_mapped(disk, old, start + fill_start, MutableBytes(filled).first(before),
                           kCopyUp);
    }
    if (after != filled.size()) {
      co_await read_mapped(disk, old, start + fill_start + after,
                           MutableBytes(filled).subspan(after), kCopyUp);
    }
    copy(MutableBytes(filled).subspan(before), data);
    co_await disk.store.write(HostOffset{host + fill_start}, filled, false, IoTag::copy_up_write);
  }
  disk.publish(cluster, mapping, old);
}

/// Writes to fresh clusters as many of the clusters `old` as one reservation gives, and returns how
/// many those were.  `data` covers all of them but for the outer edges of the first and the last.
Task<uint64_t> allocate_and_write(GuestDisk& disk, uint64_t offset, Bytes data,
                                  std::span<const Mapping> old) {
  const Geometry& g = disk.head.geometry;
  const GuestCluster first = g.cluster_of(GuestOffset{offset});
  bool reclaimed = false;
  for (;;) {
    Result<Reservation> reserved =
        co_await disk.allocator->reserve(old.size(), Allocator::Use::data).result();
    if (!reserved && reserved.error().code() == Errc::no_space && !reclaimed) {
      reclaimed = true;
      co_await disk.reclaim_space();
      continue;
    }
    Reservation fresh = co_await std::move(reserved);
    const uint64_t count = fresh.count();
    const Bytes ours =
        data.first(std::min<uint64_t>(data.size(), g.start_of(first + count).value - offset));
    std::vector<Mapping> mappings(count);

    Result<void> written =
        co_await fill_new(disk, offset, ours, old.first(count), fresh, mappings).result();
    if (!written && written.error().code() == Errc::no_space && !reclaimed) {
      reclaimed = true;
      {
        const Reservation failed = std::move(fresh);
      }  // To limbo: its write may still land (H6).
      co_await disk.reclaim_space();
      continue;
    }
    co_await std::move(written);
    for (uint64_t i = 0; i < count; ++i) disk.publish(first + i, mappings[i], old[i]);
    fresh.keep();
    ++disk.stats.writes_allocating;
    co_return count;
  }
}

/// Fills the reserved clusters: the caller's bytes, and around them what each touched unit held.
Task<void> fill_new(GuestDisk& disk, uint64_t offset, Bytes data, std::span<const Mapping> old,
                    const Reservation& fresh, std::span<Mapping> mappings) {
  const Geometry& g = disk.head.geometry;
  const GuestCluster first = g.cluster_of(GuestOffset{offset});
  const uint64_t host_start = g.start_of(fresh.first()).value;
  const uint64_t guest_start = g.start_of(first).value;
  const uint64_t end = offset + data.size();
  const Epochs::Pin pin = disk.epochs.pin();

  // What must be there before and behind the caller's bytes.
  uint64_t fill_from = offset;
  uint64_t fill_to = end;
  for (uint64_t i = 0; i < mappings.size(); ++i) {
    const uint64_t start = guest_start + i * disk.cluster_size();
    const uint64_t from = std::max(offset, start) - start;
    const uint64_t to = std::min(end, start + disk.cluster_size()) - start;
    Mapping mapping{.copied = true, .host = fresh.first() + i};
    if (old[i].compressed || old[i].allocated != 0) {
      mapping.allocated = g.all_units();  // Everything moves.
    } else {
      const uint64_t end_unit = div_ceil(to, g.unit_size());
      for (uint64_t unit = from / g.unit_size(); unit < end_unit; ++unit)
        mapping.allocated |= 1u << unit;
      mapping.zero = old[i].zero & ~mapping.allocated;
    }
    mappings[i] = mapping;
    const auto low = static_cast<uint64_t>(std::countr_zero(mapping.allocated)) * g.unit_size();
    const auto high = (static_cast<uint64_t>(std::bit_width(mapping.allocated))) * g.unit_size();
    // A cluster that reads as zeros on the host needs no zeros written around the bytes (A4).
    const bool plain = fresh.zero(i) && reads_zero(disk, old[i], mapping.allocated, start);
    if (!plain && i == 0) fill_from = std::min(fill_from, start + low);
    if (!plain && i + 1 == mappings.size()) fill_to = std::max(fill_to, start + high);
  }

  if (fill_from == offset && fill_to == end) {
    co_await disk.store.write(HostOffset{host_start + (offset - guest_start)}, data, false,
                              disk.write_mark(offset));
    co_return;
  }
  // The edges are composed with the part of their cluster that the request covers; what lies
  // between goes down from the caller's own memory.
  const uint64_t last_start = guest_start + (mappings.size() - 1) * disk.cluster_size();
  const uint64_t head_end =
      fill_from == offset ? offset : std::min(end, guest_start + disk.cluster_size());
  const uint64_t tail_start = fill_to == end ? end : std::max(head_end, last_start);
  if (head_end > fill_from || (mappings.size() == 1 && fill_to > end)) {
    const bool one = mappings.size() == 1;
    const uint64_t edge_end = one ? fill_to : head_end;
    std::vector<std::byte> edge(edge_end - fill_from);
    co_await fill_around(disk, old[0], fill_from, edge, offset, data);
    co_await disk.store.write(HostOffset{host_start + (fill_from - guest_start)}, edge, false,
                              IoTag::copy_up_write);
    if (one) co_return;
  }
  if (tail_start > head_end) {
    co_await disk.store.write(HostOffset{host_start + (head_end - guest_start)},
                              data.subspan(head_end - offset, tail_start - head_end), false,
                              disk.write_mark(offset));
  }
  if (fill_to > end) {
    std::vector<std::byte> edge(fill_to - tail_start);
    co_await fill_around(disk, old[mappings.size() - 1], tail_start, edge, offset, data);
    co_await disk.store.write(HostOffset{host_start + (tail_start - guest_start)}, edge, false,
                              IoTag::copy_up_write);
  }
}

/// `edge` becomes guest bytes from `at` on: those of the request where it covers them, old ones
/// elsewhere.
Task<void> fill_around(GuestDisk& disk, const Mapping& old, uint64_t at, MutableBytes edge,
                       uint64_t offset, Bytes data) {
  const uint64_t end = at + edge.size();
  const uint64_t from = std::max(at, offset);
  const uint64_t to = std::min(end, offset + data.size());
  if (from > at) co_await read_mapped(disk, old, at, edge.first(from - at), kCopyUp);
  if (end > to) co_await read_mapped(disk, old, to, edge.subspan(to - at), kCopyUp);
  copy(edge.subspan(from - at), data.subspan(from - offset, to - from));
}

}  // namespace byre
