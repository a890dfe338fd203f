// SPDX-License-Identifier: Apache-2.0
/// References: what of a file is referenced, cluster by cluster, and where it ends.
///
/// A scan counts into it whatever it meets; a repair takes it over and counts what it adds.
/// Invariant: no reference counted here leads behind `clusters`; the last cluster of the file may
/// be there in part, or, when a reference leads into it, not at all.
/// Cost: count() takes time by the clusters of the range, each_used() by what is referenced or has
/// a refcount.
/// Not here: how counts are stored (reference_counts.h), findings (scan_context.h).
#pragma once

#include <algorithm>
#include <vector>

#include "format/refcount.h"
#include "format/types.h"
#include "qcow2/check/reference_counts.h"

namespace byre {

/// Identities of owners of the kind Owner::other.
constexpr uint64_t kSnapshotTableIdentity = 1;
constexpr uint64_t kEncryptionHeaderIdentity = 2;
constexpr uint64_t kBitmapDirectoryIdentity = 3;
constexpr uint64_t kPlacedTableIdentity = 8;   ///< A table that a repair writes anew.
constexpr uint64_t kFirstBitmapIdentity = 16;  ///< Two each: the table, and its data.

struct References {
  Geometry geometry;
  uint64_t file_size = 0;
  uint64_t clusters = 0;  ///< Of the file.
  /// The first byte behind the end of the file that something points to.  The file must not grow
  /// beyond it: what was lost there would seem to be back.
  uint64_t pointed_behind_end = UINT64_MAX;
  ReferenceCounts counts;

  /// Does it end behind the end of the file, by a whole cluster or more?
  bool is_behind_end(uint64_t offset, uint64_t length) const;
  void note_behind_end(uint64_t offset) {
    pointed_behind_end = std::min(pointed_behind_end, std::max(offset, file_size));
  }
  /// The first cluster behind those that refcount block `index` counts, within the file.
  HostCluster block_end(uint64_t index) const {
    return std::min(HostCluster{clusters}, geometry.first_of_refcount_table(index + 1));
  }

  enum class Counted : uint8_t {
    whole,
    behind_end,  ///< Nothing was counted: it ends behind the end of the file.
    shared,      ///< It is large and lies in something else: the rest was not counted.
  };
  /// Adds `weight` references to every cluster that [offset, offset + length) touches.
  /// on_second_owner(cluster, other) is called where ReferenceCounts::add() tells of one.
  template <class OnSecondOwner>
  Counted count(uint64_t offset, uint64_t length, Owner owner, uint64_t identity, uint64_t weight,
                const OnSecondOwner& on_second_owner);

  /// Calls visit(cluster, refcount) for each cluster of refcount block `index`, within the file,
  /// whose refcount in `block` (all zeros when empty) is not zero or which lies in one of
  /// `regions`: time follows what is there, not what could be.
  template <class Visit>
  void each_used(uint64_t index, Bytes block, const std::vector<uint64_t>& regions,
                 Visit visit) const;

  /// A structure that lies in another one is not followed when it is larger: it could claim the
  /// same bytes again and again.
  static constexpr uint64_t kFollowedMax = MiB;
};

template <class OnSecondOwner>
References::Counted References::count(uint64_t offset, uint64_t length, Owner owner,
                                      uint64_t identity, uint64_t weight,
                                      const OnSecondOwner& on_second_owner) {
  if (length == 0) return Counted::whole;
  if (is_behind_end(offset, length)) {
    note_behind_end(offset);
    return Counted::behind_end;
  }
  const HostCluster first = geometry.cluster_of(HostOffset{offset});
  const HostCluster last = geometry.cluster_of(HostOffset{offset + length - 1});
  clusters = std::max(clusters, last.value + 1);
  bool alone = true;
  for (HostCluster cluster = first; cluster <= last; ++cluster) {
    const std::optional<Owner> other = counts.add(cluster, owner, identity, weight);
    if (other) on_second_owner(cluster, *other);
    if (counts.find(cluster)->aliased) alone = false;
    if (!alone && length > kFollowedMax) return Counted::shared;
  }
  return Counted::whole;
}

template <class Visit>
void References::each_used(uint64_t index, Bytes block, const std::vector<uint64_t>& regions,
                           Visit visit) const {
  constexpr uint64_t kRegion = ReferenceCounts::kRegion;
  const uint32_t order = geometry.refcount_order;
  const uint64_t first = geometry.first_of_refcount_table(index).value;
  const uint64_t end = block_end(index).value;
  auto region = std::lower_bound(regions.begin(), regions.end(), first / kRegion);
  const auto refcount = [&](uint64_t cluster) {
    return block.empty() ? 0 : get_refcount(block, cluster - first, order);
  };

  uint64_t counted = first;
  for (uint64_t at = first; at < end;) {
    while (region != regions.end() && (*region + 1) * kRegion <= at) ++region;
    const uint64_t in_region = region == regions.end() ? end : std::max(at, *region * kRegion);
    if (block.empty()) counted = end;
    if (counted <= at) {
      counted = first + find_nonzero_refcount(block, at - first, end - first, order);
    }
    if (std::min(in_region, counted) >= end) break;
    if (counted < in_region) {
      visit(HostCluster{counted}, refcount(counted));
      at = counted + 1;
      continue;
    }
    const uint64_t stop = std::min(end, (*region + 1) * kRegion);
    for (at = in_region; at < stop; ++at) visit(HostCluster{at}, refcount(at));
  }
}

}  // namespace byre
