// SPDX-License-Identifier: Apache-2.0
#include "qcow2/guest/zero.h"

#include <algorithm>

#include "format/extended_l2.h"
#include "qcow2/guest/change.h"
#include "qcow2/guest/external_store.h"
#include "qcow2/guest/guest_disk.h"
#include "qcow2/guest/read.h"
#include "qcow2/guest/write.h"

namespace byre {

namespace {
constexpr uint64_t kZeroBuffer = 64 * KiB;
/// Clusters zeroed under one lock, and staged without asking for room again.
constexpr uint64_t kClustersAtOnce = 4096;
/// The header names a disk below that was left out (`backing: null`).  It shows as soon as the
/// image is opened with it: what reads as zeros because nothing is below does not stay so.
bool hides_backing(const GuestDisk& disk) { return !disk.backing && disk.head.backing_file; }
/// Version 2 has no way to say "zeros" over a backing file.
bool can_stage_zero(const GuestDisk& disk) {
  return disk.geometry().version >= 3 || (!disk.backing && !hides_backing(disk));
}
}  // namespace

static Task<void> zero_edge(GuestDisk& disk, SizeKept size, GuestOffset offset, uint64_t length,
                            ZeroOptions options);
static std::optional<Mapping> zeroed_mapping(const GuestDisk& disk, const Mapping& old,
                                             uint32_t units, GuestOffset start,
                                             const ZeroOptions& options);

Task<void> zero_disk(GuestDisk& disk, GuestOffset offset, uint64_t length, ZeroOptions options) {
  ArrivalOrder::Ticket turn(disk.allocation_order);
  ChangeRequest request(disk, "write zeroes", offset, length);
  co_await request.begin();
  if (!turn.is_first()) co_await turn.wait();
  if (options.no_fallback && !can_stage_zero(disk)) {
    co_await fail(unsupported("version 2 images cannot express zeros over a backing file"));
  }
  co_await zero_checked(disk, request.size(), offset, length, options);
  turn.end();
  if (options.fua) co_await disk.committer->flush(IoTag::flush);
}

Task<void> discard_disk(GuestDisk& disk, GuestOffset offset, uint64_t length,
                        DiscardOptions options) {
  ChangeRequest request(disk, "discard", offset, length);
  co_await request.begin();
  // Version 2 has no way to say "zeros" over a backing file, and old data must not show (trap 90).
  if (disk.options.discard == DiscardPolicy::ignore || !can_stage_zero(disk)) co_return;
  const GuestOffset start{round_up(offset.value, disk.cluster_size())};
  // The last cluster of a disk may be a part of one.
  const uint64_t asked_end = offset.value + length;
  const GuestOffset end{asked_end == disk.size ? round_up(disk.size, disk.cluster_size())
                                               : round_down(asked_end, disk.cluster_size())};
  if (disk.has_raw_data()) {
    if (start < end)
      co_await zero_raw_data(disk, start, end - start, {.may_unmap = !disk.options.discard_keeps});
  } else {
    for (GuestOffset at = start; at < end;)
      at += co_await zero_units(
          disk, request.size(), at, end - at,
          {.may_unmap = !disk.options.discard_keeps, .only_where_needed = true});
  }
  if (options.fua) co_await disk.committer->flush(IoTag::flush);
}

/// Splits into the edges, which are data, and whole units, which are entries (D1).
Task<void> zero_checked(GuestDisk& disk, SizeKept size, GuestOffset offset, uint64_t length,
                        ZeroOptions options) {
  if (disk.has_raw_data()) {
    co_await zero_raw_data(disk, offset, length, options);
    co_return;
  }
  const uint64_t unit = disk.head.geometry.unit_size();
  const GuestOffset end = offset + length;
  // The part of the last unit behind the end of the disk belongs to nobody.
  const GuestOffset whole_start{round_up(offset.value, unit)};
  const GuestOffset whole_end{end.value == disk.size ? round_up(end.value, unit)
                                                     : round_down(end.value, unit)};
  if (!can_stage_zero(disk) || whole_start >= whole_end) {
    co_await zero_edge(disk, size, offset, length, options);
    co_return;
  }
  if (offset < whole_start) co_await zero_edge(disk, size, offset, whole_start - offset, options);
  for (GuestOffset at = whole_start; at < whole_end;)
    at += co_await zero_units(disk, size, at, whole_end - at, options);
  if (whole_end < end) co_await zero_edge(disk, size, whole_end, end - whole_end, options);
}

/// Zeros as data; nothing where it reads as zeros already, whatever is below.
Task<void> zero_edge(GuestDisk& disk, SizeKept size, GuestOffset offset, uint64_t length,
                     ZeroOptions options) {
  std::vector<std::byte> zeros(std::min(length, std::max(kZeroBuffer, disk.cluster_size())));
  while (length != 0) {
    const uint64_t in_cluster = disk.geometry().offset_in_cluster(offset);
    const uint64_t step =
        std::min({length, disk.cluster_size() - in_cluster, uint64_t{zeros.size()}});
    Map::Found found;
    {
      const Epochs::Pin pin = disk.epochs.pin();
      found = co_await disk.map->find(disk.head.geometry.cluster_of(offset));
    }
    const uint32_t units = units_touched(in_cluster, step, disk.geometry());
    const bool is_zero = hides_backing(disk)
                             ? reads_zero(found.mapping, units, true)
                             : reads_zero(disk, found.mapping, units, offset - in_cluster);
    if (!is_zero) {
      if (options.no_fallback) {
        co_await fail(unsupported("zeroing part of a cluster at ", offset, " needs a write"));
      }
      co_await write_checked(disk, size, offset, Bytes(zeros).first(step), false, nullptr,
                             recorded(options.tag));
    }
    offset += step;
    length -= step;
  }
}

/// Zeros whole units from `offset` on, inside one L2 table, and returns how many bytes those were
/// (D4).  `offset` and `length` are multiples of the unit.
Task<uint64_t> zero_units(GuestDisk& disk, SizeKept size, GuestOffset offset, uint64_t length,
                          ZeroOptions options) {
  const Geometry& g = disk.head.geometry;
  const GuestCluster first = g.cluster_of(offset);
  const GuestOffset table_end = g.end_of_table(offset);
  // Without anything below, a missing table reads as zeros already.
  const bool need_not_say = options.only_where_needed || g.version < 3;
  if (need_not_say && !disk.backing && disk.map->table_missing(first))
    co_return std::min(length, table_end - offset);
  length = std::min({length, table_end - offset, kClustersAtOnce * disk.cluster_size()});
  const GuestCluster last = g.cluster_of(offset + (length - 1));
  ExclusiveRange range(disk.clusters, first, last + 1);
  co_await begin_change(disk, range);

  bool prepared = false;
  for (GuestCluster cluster = first; cluster <= last; ++cluster) {
    const GuestOffset start = g.start_of(cluster);
    const uint64_t from = std::max(offset, start) - start;
    const uint64_t to = std::min(offset + length, start + disk.cluster_size()) - start;
    const uint32_t units = units_covered(from, to - from, g);
    Mapping old;
    {
      const Epochs::Pin pin = disk.epochs.pin();
      old = co_await find_old(disk, cluster, units == g.all_units());
    }
    const std::optional<Mapping> zeroed = zeroed_mapping(disk, old, units, start, options);
    if (!zeroed) {
      // No entry can say it: the zeros are written, which takes locks of its own.
      if (options.no_fallback) {
        co_await fail(
            unsupported("zeroing ", to - from, " bytes at ", start + from, " needs a write"));
      }
      range.release();
      co_await zero_edge(disk, size, start + from, to - from, options);
      co_return start + to - offset;
    }
    if (*zeroed == old && !disk.map->lost().replaceable(cluster)) continue;
    const uint64_t changed = recorded(options.tag) == Recorded::yes ? to - from : 0;
    co_await record_change(disk, range, start + from, changed);
    if (hosts(old, g) != hosts(*zeroed, g)) co_await disk.load_refcounts_of(old);
    if (!prepared) co_await disk.prepare_table(range);
    prepared = true;
    disk.publish(range, cluster, *zeroed, old);
  }
  co_return length;
}

/// What the cluster becomes when `units` of it are zeros; nothing if no entry can say so.
std::optional<Mapping> zeroed_mapping(const GuestDisk& disk, const Mapping& old, uint32_t units,
                                      GuestOffset start, const ZeroOptions& options) {
  const Geometry& g = disk.head.geometry;
  if (units != g.all_units()) {
    // Subclusters: their bits change, the host cluster stays.  Of one that others have, too, those
    // that have no data in it.
    const bool is_shared = old.host && !old.copied;
    if (old.compressed || (is_shared && (old.allocated & units) != 0)) return std::nullopt;
    Mapping zeroed = old;
    zeroed.zero |= units;
    zeroed.allocated &= ~units;
    return zeroed;
  }
  const bool shows_below = start.value < disk.backing_end();
  // An entry that says zeros goes on saying so over a backing file that is given later.
  const bool need_not_say = options.only_where_needed || g.version < 3;
  if (old == Mapping{} && !shows_below && need_not_say) return old;
  const bool keep = !options.may_unmap && old.host && old.copied;
  Mapping zeroed;
  if (g.version >= 3) {
    zeroed.zero = units;
  } else if (keep) {
    return std::nullopt;  // Version 2 has no preallocated zeros; to keep the space they are
                          // written.
  }
  if (keep) {
    zeroed.host = old.host;
    zeroed.copied = true;
  }
  return zeroed;
}

}  // namespace byre
