// SPDX-License-Identifier: Apache-2.0
/// Zeroing and discarding: whole units become zeros in the map, edges become zeros in the data.
#include <algorithm>

#include "base/checked.h"
#include "qcow2/image.h"
#include "qcow2/working.h"

namespace byre {

namespace {
constexpr uint64_t kZeroBuffer = 64 * KiB;
/// Clusters zeroed under one lock, and staged without asking for room again.
constexpr uint64_t kClustersAtOnce = 4096;
}  // namespace

Task<void> Image::zero(uint64_t offset, uint64_t length, ZeroOptions options) {
  const Working working(*this);
  co_await working.begin();
  RangeLock::Request keep_size(size_lock_, 0, 1, RangeLock::Mode::shared);
  co_await keep_size;
  co_await check_can_write();
  if (!within(offset, length, size_)) co_await fail(out_of_range("write zeroes", offset, length));
  if (options.no_fallback && !can_stage_zero()) {
    co_await fail(unsupported("version 2 images cannot express zeros over a backing file"));
  }
  co_await zero_checked(offset, length, options);
  if (options.fua) co_await committer_->flush(Mark::flush);
}

Task<void> Image::discard(uint64_t offset, uint64_t length, DiscardOptions options) {
  const Working working(*this);
  co_await working.begin();
  RangeLock::Request keep_size(size_lock_, 0, 1, RangeLock::Mode::shared);
  co_await keep_size;
  co_await check_can_write();
  if (!within(offset, length, size_)) co_await fail(out_of_range("discard", offset, length));
  // Version 2 has no way to say "zeros" over a backing file, and old data must not show (trap 90).
  if (options_.discard == DiscardPolicy::ignore || !can_stage_zero()) co_return;
  const uint64_t start = round_up(offset, cluster_size());
  // The last cluster of a disk may be a part of one.
  const uint64_t end = offset + length == size_ ? round_up(size_, cluster_size())
                                                : round_down(offset + length, cluster_size());
  if (has_raw_data()) {
    if (start < end)
      co_await zero_raw_data(start, end - start, {.may_unmap = !options_.discard_keeps});
  } else {
    for (uint64_t at = start; at < end;)
      at += co_await zero_units(at, end - at,
                                {.may_unmap = !options_.discard_keeps, .only_where_needed = true});
  }
  if (options.fua) co_await committer_->flush(Mark::flush);
}

/// Splits into the edges, which are data, and whole units, which are entries (D1).
Task<void> Image::zero_checked(uint64_t offset, uint64_t length, ZeroOptions options) {
  if (has_raw_data()) {
    co_await zero_raw_data(offset, length, options);
    co_return;
  }
  const uint64_t unit = head_.geometry.unit_size();
  const uint64_t end = offset + length;
  // The part of the last unit behind the end of the disk belongs to nobody.
  const uint64_t whole_start = round_up(offset, unit);
  const uint64_t whole_end = end == size_ ? round_up(end, unit) : round_down(end, unit);
  if (!can_stage_zero() || whole_start >= whole_end) {
    co_await zero_edge(offset, length, options);
    co_return;
  }
  if (offset < whole_start) co_await zero_edge(offset, whole_start - offset, options);
  for (uint64_t at = whole_start; at < whole_end;)
    at += co_await zero_units(at, whole_end - at, options);
  if (whole_end < end) co_await zero_edge(whole_end, end - whole_end, options);
}

/// Zeros as data; nothing where it reads as zeros already.
Task<void> Image::zero_edge(uint64_t offset, uint64_t length, ZeroOptions options) {
  std::vector<std::byte> zeros(std::min(length, std::max(kZeroBuffer, cluster_size())));
  while (length != 0) {
    const uint64_t in_cluster = offset % cluster_size();
    const uint64_t step = std::min({length, cluster_size() - in_cluster, uint64_t{zeros.size()}});
    Map::Found found;
    {
      const Epochs::Pin pin = epochs_.pin();
      found = co_await map_->find(head_.geometry.cluster_of(GuestOffset{offset}));
    }
    uint32_t units = 0;
    const uint64_t end_unit = div_ceil(in_cluster + step, head_.geometry.unit_size());
    for (uint64_t u = in_cluster / head_.geometry.unit_size(); u < end_unit; ++u) units |= 1u << u;
    if (!reads_zero(found.mapping, units, offset - in_cluster)) {
      if (options.no_fallback) {
        co_await fail(unsupported("zeroing part of a cluster at ", hex(offset), " needs a write"));
      }
      co_await write_checked(offset, Bytes(zeros).first(step), false);
    }
    offset += step;
    length -= step;
  }
}

/// Zeros whole units from `offset` on, inside one L2 table, and returns how many bytes those were
/// (D4).  `offset` and `length` are multiples of the unit.
Task<uint64_t> Image::zero_units(uint64_t offset, uint64_t length, ZeroOptions options) {
  const Geometry& g = head_.geometry;
  const GuestCluster first = g.cluster_of(GuestOffset{offset});
  const uint64_t table_end = (g.l1_index(first) + 1) * g.l1_span();
  // Without anything below, a missing table reads as zeros already.
  const bool need_not_say = options.only_where_needed || g.version < 3;
  if (need_not_say && !backing_ && map_->table_missing(first))
    co_return std::min(length, table_end - offset);
  length = std::min({length, table_end - offset, kClustersAtOnce * cluster_size()});
  const GuestCluster last = g.cluster_of(GuestOffset{offset + length - 1});
  co_await room_to_stage();
  RangeLock::Request lock(locks_, first.value, last.value + 1, RangeLock::Mode::exclusive);
  co_await lock;

  bool prepared = false;
  for (GuestCluster cluster = first; cluster <= last; ++cluster) {
    const uint64_t start = g.start_of(cluster).value;
    const uint64_t from = std::max(offset, start) - start;
    const uint64_t to = std::min(offset + length, start + cluster_size()) - start;
    Mapping old;
    {
      const Epochs::Pin pin = epochs_.pin();
      old = (co_await map_->find(cluster)).mapping;
    }
    uint32_t units = 0;
    for (uint64_t unit = from / g.unit_size(); unit < to / g.unit_size(); ++unit)
      units |= 1u << unit;
    const std::optional<Mapping> zeroed = zeroed_mapping(old, units, start, options);
    if (!zeroed) {
      // No entry can say it: the zeros are written, which takes locks of its own.
      if (options.no_fallback) {
        co_await fail(
            unsupported("zeroing ", to - from, " bytes at ", hex(start + from), " needs a write"));
      }
      lock.release();
      co_await zero_edge(start + from, to - from, options);
      co_return start + to - offset;
    }
    if (*zeroed == old) continue;
    if (!bitmaps_->mark_now(start + from, to - from))
      co_await bitmaps_->mark(start + from, to - from);
    if (hosts(old, g) != hosts(*zeroed, g)) co_await load_old(old);
    if (!prepared) co_await prepare_table(g.l1_index(first));
    prepared = true;
    publish(cluster, *zeroed, old);
  }
  co_return length;
}

/// What the cluster becomes when `units` of it are zeros; nothing if no entry can say so.
std::optional<Mapping> Image::zeroed_mapping(const Mapping& old, uint32_t units, uint64_t start,
                                             const ZeroOptions& options) const {
  const Geometry& g = head_.geometry;
  if (units != g.all_units()) {
    // Subclusters: their bits change, the host cluster stays.
    if (old.compressed || (old.host && !old.copied)) return std::nullopt;
    Mapping zeroed = old;
    zeroed.zero |= units;
    zeroed.allocated &= ~units;
    return zeroed;
  }
  const bool shows_below = backing_ && start < backing_->size();
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
