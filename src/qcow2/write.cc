// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>

#include "base/checked.h"
#include "qcow2/image.h"
#include "qcow2/working.h"

namespace byre {

namespace {
/// A request takes its locks piece by piece, so that a large one does not hold up the rest; a piece
/// stays inside one L2 table (D4).
constexpr uint64_t kPieceMax = 2 * MiB;
}  // namespace

Task<void> Image::write(uint64_t offset, Bytes data, WriteOptions options) {
  const Working working(*this);
  co_await working.begin();
  bool durable = false;
  {
    RangeLock::Request keep_size(size_lock_, 0, 1, RangeLock::Mode::shared);
    co_await keep_size;
    // Not sooner: what was waited for may have been a change that failed (M4).
    co_await check_can_write();
    if (!within(offset, data.size(), size_))
      co_await fail(out_of_range("write", offset, data.size()));
    if (options.compressed) {
      co_await write_compressed(offset, data, options.compression_level);
    } else {
      durable = co_await write_checked(offset, data, options.fua);
    }
  }
  if (options.fua && !durable) co_await committer_->flush(Mark::flush);
}

/// True if everything is durable: it all went, with FUA, to clusters whose mapping is.
Task<bool> Image::write_checked(uint64_t offset, Bytes data, bool fua) {
  const Geometry& g = head_.geometry;
  bool durable = true;
  while (!data.empty()) {
    const uint64_t table_end = (g.l1_index(g.cluster_of(GuestOffset{offset})) + 1) * g.l1_span();
    const uint64_t piece = std::min({uint64_t{data.size()}, kPieceMax, table_end - offset});
    uint64_t done = 0;
    while (done < piece) {
      // L2: peek before the lock, so that writers that allocate do not queue twice.
      const Result<std::optional<Map::Found>> peek =
          map_->find_now(g.cluster_of(GuestOffset{offset + done}));
      const uint64_t in_cluster = g.offset_in_cluster(GuestOffset{offset + done});
      const uint64_t in_first = std::min(cluster_size() - in_cluster, piece - done);
      const bool allocates =
          peek && *peek && !writable_in_place((*peek)->mapping, in_cluster, in_first);
      if (!allocates)
        done +=
            co_await write_in_place(offset + done, data.subspan(done, piece - done), fua, durable);
      if (done < piece) {
        co_await write_allocating(offset + done, data.subspan(done, piece - done));
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
bool Image::writable_in_place(const Mapping& mapping, uint64_t within, uint64_t length) const {
  if (!mapping.copied || !mapping.host) return false;
  const uint64_t unit_size = head_.geometry.unit_size();
  const uint64_t first = within / unit_size;
  const uint64_t last = (within + length - 1) / unit_size;
  for (uint64_t unit = first; unit <= last; ++unit) {
    if ((mapping.allocated >> unit & 1) == 0) return false;
  }
  return true;
}

/// Overwrites from the start of `data` on what is ours alone, under a shared lock; returns how many
/// bytes that were.  Clusters that follow each other on the host are one I/O.
Task<uint64_t> Image::write_in_place(uint64_t offset, Bytes data, bool fua, bool& durable) {
  const Geometry& g = head_.geometry;
  const GuestCluster first = g.cluster_of(GuestOffset{offset});
  const GuestCluster last = g.cluster_of(GuestOffset{offset + data.size() - 1});
  RangeLock::Request lock(locks_, first.value, last.value + 1, RangeLock::Mode::shared);
  co_await lock;
  if (!bitmaps_->mark_now(offset, data.size())) co_await bitmaps_->mark(offset, data.size());
  const Epochs::Pin pin = epochs_.pin();
  uint64_t done = 0;
  while (done < data.size()) {
    uint64_t run = 0;
    uint64_t host = 0;
    while (done + run < data.size()) {
      const GuestOffset at{offset + done + run};
      const uint64_t in_cluster = g.offset_in_cluster(at);
      const uint64_t length =
          std::min<uint64_t>(cluster_size() - in_cluster, data.size() - done - run);
      Result<std::optional<Map::Found>> now = map_->find_now(g.cluster_of(at));
      if (now && !*now) now = std::optional(co_await map_->find(g.cluster_of(at)));
      const Map::Found found = *co_await std::move(now);
      if (!writable_in_place(found.mapping, in_cluster, length)) break;
      const uint64_t here = g.start_of(*found.mapping.host).value + in_cluster;
      if (run == 0) host = here;
      if (here != host + run) break;
      durable &= found.durable && fua;
      run += length;
    }
    if (run == 0) break;
    co_await write_host(host, data.subspan(done, run), fua && durable, write_mark(offset));
    ++stats_.writes_in_place;
    done += run;
  }
  co_return done;
}

/// M5: no data write touches metadata, whatever the tables say.
Task<void> Image::write_host(uint64_t at, Bytes data, bool fua, Mark mark) {
  if (data_) {
    co_await data_->write(at, data, {.fua = fua, .mark = mark});
    co_return;
  }
  const Geometry& g = head_.geometry;
  const HostCluster first = g.cluster_of(HostOffset{at});
  const HostCluster last = g.cluster_of(HostOffset{at + data.size() - 1});
  if (const auto hit = metadata_.find_in({first, last - first + 1})) {
    co_await fail(corrupt("guest data is mapped to ", g.start_of(*hit),
                          ", which holds metadata; run check -r all"));
  }
  co_await file_->write(at, data, {.fua = fua, .mark = mark});
}

/// Writes a piece inside one L2 table under an exclusive lock: lookup, space, data, and only then
/// the map (M3).
Task<void> Image::write_allocating(uint64_t offset, Bytes data) {
  const Geometry& g = head_.geometry;
  const GuestCluster first = g.cluster_of(GuestOffset{offset});
  const GuestCluster last = g.cluster_of(GuestOffset{offset + data.size() - 1});
  co_await room_to_stage();
  RangeLock::Request lock(locks_, first.value, last.value + 1, RangeLock::Mode::exclusive);
  co_await lock;
  if (!bitmaps_->mark_now(offset, data.size())) co_await bitmaps_->mark(offset, data.size());

  std::vector<Mapping> old(last - first + 1);
  {
    const Epochs::Pin pin = epochs_.pin();
    for (uint64_t i = 0; i < old.size(); ++i) old[i] = (co_await map_->find(first + i)).mapping;
  }
  const auto part = [&](uint64_t index) {  // The part of the request inside cluster `index`.
    const uint64_t start = std::max(offset, g.start_of(first + index).value);
    const uint64_t end = std::min(offset + data.size(), g.start_of(first + index + 1).value);
    return std::pair(start, end - start);
  };
  const auto in_place = [&](uint64_t index) {
    const auto [start, length] = part(index);
    return writable_in_place(old[index], g.offset_in_cluster(GuestOffset{start}), length);
  };
  bool all_in_place = true;
  for (uint64_t i = 0; i < old.size(); ++i) all_in_place &= in_place(i);
  if (all_in_place) {
    lock.downgrade();  // A writer was faster, and left it writable.
    const Epochs::Pin pin = epochs_.pin();
    for (uint64_t i = 0; i < old.size(); ++i) {
      const auto [start, length] = part(i);
      co_await write_host(g.start_of(*old[i].host).value + g.offset_in_cluster(GuestOffset{start}),
                          data.subspan(start - offset, length), false, write_mark(offset));
    }
    co_return;
  }

  for (const Mapping& mapping : old) {
    if (!mapping.copied) co_await load_old(mapping);
  }
  co_await prepare_table(g.l1_index(first));
  for (uint64_t i = 0; i < old.size();) {
    const auto [start, length] = part(i);
    if (in_place(i)) {
      const Epochs::Pin pin = epochs_.pin();
      co_await write_host(g.start_of(*old[i].host).value + g.offset_in_cluster(GuestOffset{start}),
                          data.subspan(start - offset, length), false, write_mark(offset));
      ++i;
      continue;
    }
    if (data_) {
      uint64_t end = i + 1;
      while (end < old.size() && !in_place(end)) ++end;
      const auto [last_start, last_length] = part(end - 1);
      co_await write_own(start, data.subspan(start - offset, last_start + last_length - start),
                         std::span(old).subspan(i, end - i));
      i = end;
      continue;
    }
    if (old[i].host && old[i].copied) {
      co_await write_kept(start, data.subspan(start - offset, length), old[i]);
      ++i;
      continue;
    }
    uint64_t end = i + 1;
    while (end < old.size() && !in_place(end) && !(old[end].host && old[end].copied)) ++end;
    const auto [last_start, last_length] = part(end - 1);
    i += co_await write_fresh(start, data.subspan(start - offset, last_start + last_length - start),
                              std::span(old).subspan(i, end - i));
  }
}

/// Do these units, read from anywhere but a host cluster, give zeros?
bool Image::reads_zero(const Mapping& mapping, uint32_t units, uint64_t cluster_start) const {
  if (mapping.compressed || (mapping.allocated & units) != 0) return false;
  if ((mapping.zero & units) == units) return true;
  return !backing_ || cluster_start >= backing_->size();
}

/// Units of a cluster that we hold alone but that are not data yet (preallocated zeros,
/// subclusters): fills each unit that is touched, then marks it allocated.
Task<void> Image::write_kept(uint64_t offset, Bytes data, const Mapping& old) {
  const Geometry& g = head_.geometry;
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
  const Epochs::Pin pin = epochs_.pin();
  const uint64_t host = g.start_of(*old.host).value;
  if (fill_start == within && fill_end == within + data.size()) {
    co_await write_host(host + within, data, false, write_mark(offset));
  } else {
    std::vector<std::byte> filled(fill_end - fill_start);
    const uint64_t before = within - fill_start;
    const uint64_t after = before + data.size();
    if (before != 0) {
      co_await read_mapped(old, start + fill_start, MutableBytes(filled).first(before),
                           Mark::copy_up_read);
    }
    if (after != filled.size()) {
      co_await read_mapped(old, start + fill_start + after, MutableBytes(filled).subspan(after),
                           Mark::copy_up_read);
    }
    copy(MutableBytes(filled).subspan(before), data);
    co_await write_host(host + fill_start, filled, false, Mark::copy_up_write);
  }
  publish(cluster, mapping, old);
}

/// Writes to fresh clusters as many of the clusters `old` as one reservation gives, and returns how
/// many those were.  `data` covers all of them but for the outer edges of the first and the last.
Task<uint64_t> Image::write_fresh(uint64_t offset, Bytes data, std::span<const Mapping> old) {
  const Geometry& g = head_.geometry;
  const GuestCluster first = g.cluster_of(GuestOffset{offset});
  bool reclaimed = false;
  for (;;) {
    Result<Reservation> reserved =
        co_await allocator_->reserve(old.size(), Allocator::Use::data).result();
    if (!reserved && reserved.error().code() == Errc::no_space && !reclaimed) {
      reclaimed = true;
      co_await reclaim_space();
      continue;
    }
    Reservation fresh = co_await std::move(reserved);
    const uint64_t count = fresh.count();
    const Bytes ours =
        data.first(std::min<uint64_t>(data.size(), g.start_of(first + count).value - offset));
    std::vector<Mapping> mappings(count);

    Result<void> written =
        co_await write_reserved(offset, ours, old.first(count), fresh, mappings).result();
    if (!written && written.error().code() == Errc::no_space && !reclaimed) {
      reclaimed = true;
      {
        const Reservation failed = std::move(fresh);
      }  // To limbo: its write may still land (H6).
      co_await reclaim_space();
      continue;
    }
    co_await std::move(written);
    for (uint64_t i = 0; i < count; ++i) publish(first + i, mappings[i], old[i]);
    fresh.keep();
    ++stats_.writes_allocating;
    co_return count;
  }
}

/// Fills the reserved clusters: the caller's bytes, and around them what each touched unit held.
Task<void> Image::write_reserved(uint64_t offset, Bytes data, std::span<const Mapping> old,
                                 const Reservation& fresh, std::span<Mapping> mappings) {
  const Geometry& g = head_.geometry;
  const GuestCluster first = g.cluster_of(GuestOffset{offset});
  const uint64_t host_start = g.start_of(fresh.first()).value;
  const uint64_t guest_start = g.start_of(first).value;
  const uint64_t end = offset + data.size();
  const Epochs::Pin pin = epochs_.pin();

  // What must be there before and behind the caller's bytes.
  uint64_t fill_from = offset;
  uint64_t fill_to = end;
  for (uint64_t i = 0; i < mappings.size(); ++i) {
    const uint64_t start = guest_start + i * cluster_size();
    const uint64_t from = std::max(offset, start) - start;
    const uint64_t to = std::min(end, start + cluster_size()) - start;
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
    const bool plain = fresh.zero(i) && reads_zero(old[i], mapping.allocated, start);
    if (!plain && i == 0) fill_from = std::min(fill_from, start + low);
    if (!plain && i + 1 == mappings.size()) fill_to = std::max(fill_to, start + high);
  }

  if (fill_from == offset && fill_to == end) {
    co_await write_host(host_start + (offset - guest_start), data, false, write_mark(offset));
    co_return;
  }
  // The edges are composed with the part of their cluster that the request covers; what lies
  // between goes down from the caller's own memory.
  const uint64_t last_start = guest_start + (mappings.size() - 1) * cluster_size();
  const uint64_t head_end =
      fill_from == offset ? offset : std::min(end, guest_start + cluster_size());
  const uint64_t tail_start = fill_to == end ? end : std::max(head_end, last_start);
  if (head_end > fill_from || (mappings.size() == 1 && fill_to > end)) {
    const bool one = mappings.size() == 1;
    const uint64_t edge_end = one ? fill_to : head_end;
    std::vector<std::byte> edge(edge_end - fill_from);
    co_await fill_around(old[0], fill_from, edge, offset, data);
    co_await write_host(host_start + (fill_from - guest_start), edge, false, Mark::copy_up_write);
    if (one) co_return;
  }
  if (tail_start > head_end) {
    co_await write_host(host_start + (head_end - guest_start),
                        data.subspan(head_end - offset, tail_start - head_end), false,
                        write_mark(offset));
  }
  if (fill_to > end) {
    std::vector<std::byte> edge(fill_to - tail_start);
    co_await fill_around(old[mappings.size() - 1], tail_start, edge, offset, data);
    co_await write_host(host_start + (tail_start - guest_start), edge, false, Mark::copy_up_write);
  }
}

/// `edge` becomes guest bytes from `at` on: those of the request where it covers them, old ones
/// elsewhere.
Task<void> Image::fill_around(const Mapping& old, uint64_t at, MutableBytes edge, uint64_t offset,
                              Bytes data) {
  const uint64_t end = at + edge.size();
  const uint64_t from = std::max(at, offset);
  const uint64_t to = std::min(end, offset + data.size());
  if (from > at) co_await read_mapped(old, at, edge.first(from - at), Mark::copy_up_read);
  if (end > to) co_await read_mapped(old, to, edge.subspan(to - at), Mark::copy_up_read);
  copy(edge.subspan(from - at), data.subspan(from - offset, to - from));
}

/// The next lookup sees `mapping`; host clusters that it no longer refers to go to limbo (H2).
void Image::publish(GuestCluster cluster, const Mapping& mapping, const Mapping& old) {
  map_->stage(cluster, mapping);
  const HostSpan before = hosts(old, head_.geometry);
  if (data_ && old.host && !mapping.host) note_removed(cluster);
  // A stream has references of its own, even in the cluster that the old one was in.
  if (mapping.compressed || before != hosts(mapping, head_.geometry)) allocator_->release(before);
  staged();
}

}  // namespace byre
