// SPDX-License-Identifier: Apache-2.0
#include "qcow2/guest/write.h"

#include <algorithm>

#include "qcow2/core/space_retry.h"
#include "qcow2/guest/change.h"
#include "qcow2/guest/compress.h"
#include "qcow2/guest/guest_disk.h"
#include "qcow2/guest/read.h"
#include "qcow2/guest/write_plan.h"

namespace byre {

namespace {
/// A request takes its locks piece by piece, so that a large one does not hold up the rest; a piece
/// stays inside one L2 table (D4).
constexpr uint64_t kPieceMax = 2 * MiB;
}  // namespace

struct InPlace;
static Task<InPlace> write_in_place(GuestDisk& disk, GuestOffset offset, Bytes data, bool fua,
                                    Recorded recorded);
// Not inlined: clang would make its frame a part of every overwrite's, which no pool takes then.
[[gnu::noinline]] static Task<void> write_allocating(GuestDisk& disk, GuestOffset offset,
                                                     Bytes data, ArrivalOrder::Ticket* turn,
                                                     Recorded recorded);
static bool fits_in_place(GuestDisk& disk, GuestOffset offset, uint64_t length);
static Task<void> write_segments(GuestDisk& disk, const ExclusiveRange& range, WritePiece piece,
                                 ArrivalOrder::Ticket* turn);
static Task<uint64_t> write_segment(GuestDisk& disk, const ExclusiveRange& range,
                                    const WritePiece& piece, WriteMethod method);
static Task<uint64_t> allocate_and_write(GuestDisk& disk, const ExclusiveRange& range,
                                         const WritePiece& piece, ArrivalOrder::Ticket* turn);
static Task<void> perform(GuestDisk& disk, const WritePiece& segment, const FillPlan& plan);
static Task<void> fill_around(GuestDisk& disk, HostAccess access, const Mapping& old,
                              const HostWrite& write, const WritePiece& segment, MutableBytes edge);
static void publish_segment(GuestDisk& disk, const ExclusiveRange& range, const WritePiece& segment,
                            WriteMethod method, const HostRun& host);

/// An overwrite inside one cluster no step of which needs a wait: most requests of a guest.
class OverwriteNow {
 public:
  OverwriteNow(GuestDisk& disk, GuestOffset offset, uint64_t length)
      : disk_(disk),
        offset_(offset),
        length_(length),
        cluster_(disk.head.geometry.cluster_of(offset)),
        range_(disk.clusters, cluster_, cluster_ + 1),
        pin_(disk.epochs.pin()) {}

  /// The lock, where the bytes lie, and the bitmaps.  False: one of them needs a wait, or the bytes
  /// need another place; then nothing is written yet, and the caller takes the long way.
  bool try_begin(Recorded recorded) {
    const Geometry& g = disk_.head.geometry;
    const uint64_t in_cluster = g.offset_in_cluster(offset_);
    if (length_ == 0 || length_ > disk_.cluster_size() - in_cluster) return false;
    if (!detail::LockStep{disk_, range_, false}.try_now()) return false;
    if (disk_.map->lost().replaceable(cluster_)) return false;
    const Result<std::optional<Map::Found>> now = disk_.map->find_now(cluster_);
    if (!now || !*now || !writable_in_place((*now)->mapping, in_cluster, length_, g)) return false;
    host_ = g.start_of(*(*now)->mapping.host) + in_cluster;
    durable_ = (*now)->durable;
    return detail::RecordStep{disk_, offset_, recorded == Recorded::yes ? length_ : 0}.try_now();
  }
  HostAccess access() const { return pin_; }
  HostOffset host() const { return host_; }
  /// The mapping that leads there is.
  bool durable() const { return durable_; }

 private:
  GuestDisk& disk_;
  const GuestOffset offset_;
  const uint64_t length_;
  const GuestCluster cluster_;
  SharedRange range_;
  const Epochs::Pin pin_;
  HostOffset host_;
  bool durable_ = false;
};

Task<void> write_disk(GuestDisk& disk, GuestOffset offset, Bytes data, WriteOptions options) {
  ArrivalOrder::Ticket turn(disk.allocation_order);
  ChangeRequest request(disk, "write", offset, data.size());
  co_await request.begin();
  bool durable = false;
  if (options.compressed) {
    co_await write_compressed(disk, request.size(), offset, data, options.compression_level, turn);
  } else {
    if (!turn.is_first()) co_await turn.wait();
    bool written = false;
    {
      OverwriteNow now(disk, offset, data.size());
      if (now.try_begin(recorded(options.tag))) {
        turn.end();  // It needs no cluster.
        durable = options.fua && now.durable();
        co_await disk.store.write(now.access(), now.host(), data, durable, disk.write_mark(offset));
        ++disk.stats.writes_in_place;
        written = true;
      }
    }
    if (!written)
      durable = co_await write_checked(disk, request.size(), offset, data, options.fua, &turn,
                                       recorded(options.tag));
  }
  turn.end();
  request.release_size();
  if (options.fua && !durable) co_await disk.committer->flush(IoTag::flush);
}

/// What an overwrite has done.
struct InPlace {
  uint64_t bytes = 0;
  bool durable = true;  ///< They are on the disk, and so are their mappings.
};

/// True if everything is durable: it all went, with FUA, to clusters whose mapping is.
Task<bool> write_checked(GuestDisk& disk, SizeKept, GuestOffset offset, Bytes data, bool fua,
                         ArrivalOrder::Ticket* turn, Recorded recorded) {
  const Geometry& g = disk.head.geometry;
  bool durable = true;
  while (!data.empty()) {
    const uint64_t piece =
        std::min({uint64_t{data.size()}, kPieceMax, g.end_of_table(offset) - offset});
    ArrivalOrder::Ticket* const last_turn = piece == data.size() ? turn : nullptr;
    if (last_turn && disk.allocation_order.wanted() && fits_in_place(disk, offset, piece))
      last_turn->end();
    uint64_t done = 0;
    while (done < piece) {
      // L2: peek before the lock, so that writers that allocate do not queue twice.
      const Result<std::optional<Map::Found>> peek =
          disk.map->find_now(g.cluster_of(offset + done));
      const uint64_t in_cluster = g.offset_in_cluster(offset + done);
      const uint64_t in_first = std::min(disk.cluster_size() - in_cluster, piece - done);
      const bool allocates =
          disk.map->lost().replaceable(g.cluster_of(offset + done)) ||
          (peek && *peek && !writable_in_place((*peek)->mapping, in_cluster, in_first, g));
      if (!allocates) {
        const InPlace part = co_await write_in_place(
            disk, offset + done, data.subspan(done, piece - done), fua && durable, recorded);
        done += part.bytes;
        durable &= part.durable;
      }
      if (done < piece) {
        co_await write_allocating(disk, offset + done, data.subspan(done, piece - done), last_turn,
                                  recorded);
        durable = false;
        done = piece;
      }
    }
    offset += piece;
    data = data.subspan(piece);
  }
  co_return durable;
}

/// Does the range need no cluster, as far as can be told without a wait?
bool fits_in_place(GuestDisk& disk, GuestOffset offset, uint64_t length) {
  const Geometry& g = disk.head.geometry;
  for (uint64_t done = 0; done < length;) {
    const uint64_t in_cluster = g.offset_in_cluster(offset + done);
    const uint64_t step = std::min(disk.cluster_size() - in_cluster, length - done);
    const GuestCluster cluster = g.cluster_of(offset + done);
    const Result<std::optional<Map::Found>> now = disk.map->find_now(cluster);
    if (disk.map->lost().replaceable(cluster) || !now || !*now ||
        !writable_in_place((*now)->mapping, in_cluster, step, g)) {
      return false;
    }
    done += step;
  }
  return true;
}

/// Overwrites from the start of `data` on what is ours alone, under a shared lock.  Clusters that
/// follow each other on the host are one I/O.
Task<InPlace> write_in_place(GuestDisk& disk, GuestOffset offset, Bytes data, bool fua,
                             Recorded recorded) {
  const Geometry& g = disk.head.geometry;
  const GuestCluster first = g.cluster_of(offset);
  const GuestCluster last = g.cluster_of(offset + (data.size() - 1));
  SharedRange range(disk.clusters, first, last + 1);
  co_await begin_change(disk, range, offset, recorded == Recorded::yes ? data.size() : 0);
  const Epochs::Pin pin = disk.epochs.pin();
  uint64_t done = 0;
  bool durable = fua;
  while (done < data.size()) {
    uint64_t run = 0;
    HostOffset host;
    while (done + run < data.size()) {
      const GuestOffset at = offset + done + run;
      const uint64_t in_cluster = g.offset_in_cluster(at);
      const uint64_t length =
          std::min<uint64_t>(disk.cluster_size() - in_cluster, data.size() - done - run);
      if (disk.map->lost().replaceable(g.cluster_of(at))) break;
      Result<std::optional<Map::Found>> now = disk.map->find_now(g.cluster_of(at));
      if (now && !*now) now = std::optional(co_await disk.map->find(g.cluster_of(at)));
      const Map::Found found = *co_await std::move(now);
      if (!writable_in_place(found.mapping, in_cluster, length, g)) break;
      const HostOffset here = g.start_of(*found.mapping.host) + in_cluster;
      if (run == 0) host = here;
      if (here != host + run) break;
      durable &= found.durable;
      run += length;
    }
    if (run == 0) break;
    co_await disk.store.write(pin, host, data.subspan(done, run), durable, disk.write_mark(offset));
    ++disk.stats.writes_in_place;
    done += run;
  }
  co_return InPlace{done, durable};
}

/// Writes a piece under an exclusive lock: lookup, space, data, and only then the map (M3).
Task<void> write_allocating(GuestDisk& disk, GuestOffset offset, Bytes data,
                            ArrivalOrder::Ticket* turn, Recorded recorded) {
  const Geometry& g = disk.head.geometry;
  const GuestCluster first = g.cluster_of(offset);
  const GuestCluster last = g.cluster_of(offset + (data.size() - 1));
  ExclusiveRange range(disk.clusters, first, last + 1);
  co_await begin_change(disk, range, offset, recorded == Recorded::yes ? data.size() : 0);

  std::vector<Mapping> old(last - first + 1);
  // Nothing of what the cluster held will be there.
  const auto whole = [&](GuestCluster cluster) {
    const GuestOffset end{std::min(g.start_of(cluster + 1).value, disk.size)};
    return g.start_of(cluster) >= offset && end <= offset + data.size();
  };
  {
    const Epochs::Pin pin = disk.epochs.pin();
    for (uint64_t i = 0; i < old.size(); ++i)
      old[i] = co_await find_old(disk, first + i, whole(first + i));
  }
  const WritePiece piece{.geometry = &g,
                         .file = disk.data_file(),
                         .backing_end = disk.backing_end(),
                         .at = offset,
                         .data = data,
                         .old = old};
  if (all_in_place(piece)) {
    range.downgrade();  // A writer was faster, and left it writable.
    co_await write_segments(disk, range, piece, turn);
    co_return;
  }
  for (const Mapping& mapping : old) {
    if (!mapping.copied) co_await disk.load_refcounts_of(mapping);
  }
  co_await disk.prepare_table(range);
  co_await write_segments(disk, range, piece, turn);
}

/// Each segment as its clusters need it.  The range may be shared by now if all are in place.
Task<void> write_segments(GuestDisk& disk, const ExclusiveRange& range, WritePiece piece,
                          ArrivalOrder::Ticket* turn) {
  while (!piece.old.empty()) {
    const WriteSegment segment = first_segment(piece);
    const WritePiece part = piece.before(segment.count);
    ArrivalOrder::Ticket* const last_turn = part.old.size() == piece.old.size() ? turn : nullptr;
    uint64_t done = 0;
    if (segment.method == WriteMethod::fresh) {
      SpaceRetry retry(disk);
      done = co_await retry.run(allocate_and_write, disk, range, part, last_turn);
    } else {
      if (last_turn) last_turn->end();
      done = co_await write_segment(disk, range, part, segment.method);
    }
    piece = piece.after(done);
  }
}

/// A segment that has its host clusters already; returns how many clusters that were.
Task<uint64_t> write_segment(GuestDisk& disk, const ExclusiveRange& range, const WritePiece& piece,
                             WriteMethod method) {
  const HostRun host = own_place(piece, method);
  const FillPlan plan = plan_fill(piece, method, host);
  // A raw data file reads as zeros there already, so the entries change nothing.  They are durable
  // before the data go down: not even a write that fails or is cut off tells the two apart.
  if (method == WriteMethod::external && disk.has_raw_data()) {
    publish_segment(disk, range, piece, method, host);
    co_await disk.committer->flush(IoTag::commit_sync);
    co_await perform(disk, piece, plan);
    co_return piece.old.size();
  }
  co_await perform(disk, piece, plan);
  if (method != WriteMethod::in_place) publish_segment(disk, range, piece, method, host);
  co_return piece.old.size();
}

/// Writes to fresh clusters as many clusters of the piece as one reservation gives, and returns how
/// many those were.  A reservation whose write failed goes to limbo: it may still land (H6).
Task<uint64_t> allocate_and_write(GuestDisk& disk, const ExclusiveRange& range,
                                  const WritePiece& piece, ArrivalOrder::Ticket* turn) {
  Reservation fresh = co_await disk.allocator->reserve(piece.old.size(), Allocator::Use::data);
  const uint64_t count = fresh.count();
  if (turn && count == piece.old.size()) turn->end();
  const WritePiece part = piece.before(count);
  const HostRun host{fresh.first(), fresh.zero(0), fresh.zero(count - 1)};
  co_await perform(disk, part, plan_fill(part, WriteMethod::fresh, host));
  publish_segment(disk, range, part, WriteMethod::fresh, host);
  fresh.keep();
  co_return count;
}

/// The map learns what the segment's clusters are now.  Their bytes are down (M3).
void publish_segment(GuestDisk& disk, const ExclusiveRange& range, const WritePiece& segment,
                     WriteMethod method, const HostRun& host) {
  for (uint64_t i = 0; i < segment.old.size(); ++i) {
    disk.publish(range, segment.first() + i, mapping_after(segment, method, host, i),
                 segment.old[i]);
  }
  if (method != WriteMethod::fill_preallocated) ++disk.stats.writes_allocating;
}

/// Writes what the plan says.
Task<void> perform(GuestDisk& disk, const WritePiece& segment, const FillPlan& plan) {
  const Epochs::Pin pin = disk.epochs.pin();
  for (const HostWrite& write : plan) {
    if (!write.around) {
      const Bytes bytes = segment.data.subspan(write.at - segment.at, write.length);
      co_await disk.store.write(pin, write.to, bytes, false, disk.write_mark(segment.at));
      continue;
    }
    std::vector<std::byte> edge(write.length);
    co_await fill_around(disk, pin, segment.old[*write.around], write, segment, edge);
    co_await disk.store.write(pin, write.to, edge, false, IoTag::copy_up_write);
  }
}

/// `edge` becomes the guest bytes of `write`: those of the request where it covers them, old ones
/// elsewhere.
Task<void> fill_around(GuestDisk& disk, HostAccess access, const Mapping& old,
                       const HostWrite& write, const WritePiece& segment, MutableBytes edge) {
  const GuestOffset end = write.at + edge.size();
  const GuestOffset from = std::max(write.at, segment.at);
  const GuestOffset to = std::min(end, segment.end());
  const MutableBytes before = edge.first(from - write.at);
  const MutableBytes behind = edge.subspan(to - write.at);
  if (!before.empty()) co_await read_mapped(disk, access, old, write.at, before, kCopyUp);
  if (!behind.empty()) co_await read_mapped(disk, access, old, to, behind, kCopyUp);
  copy(edge.subspan(from - write.at), segment.data.subspan(from - segment.at, to - from));
}

}  // namespace byre
