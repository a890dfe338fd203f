// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/lost_ranges.h"

namespace byre {

const LostRanges::Range* LostRanges::find_among(GuestCluster cluster) const {
  const auto after = ranges_.upper_bound(cluster.value);
  if (after == ranges_.begin()) return nullptr;
  const Range& range = std::prev(after)->second;
  return cluster.value - range.first.value < range.count ? &range : nullptr;
}

void LostRanges::forget(GuestCluster cluster) {
  const Range* found = find(cluster);
  if (!found || found->whole_table) return;
  const Range range = *found;
  const GuestCluster end = range.first + range.count;
  ranges_.erase(range.first.value);
  if (range.first < cluster) {
    Range before = range;
    before.count = cluster - range.first;
    add(before);
  }
  if (cluster + 1 < end) {
    Range behind = range;
    behind.first = cluster + 1;
    behind.count = end - behind.first;
    add(behind);
  }
}

Error LostRanges::error(const Range& range, GuestCluster cluster, const Geometry& geometry) {
  return corrupt("guest offset ", geometry.start_of(cluster), ": its ",
                 range.whole_table ? "L1" : "L2", " entry leads to host offset ", range.host, ", ",
                 range.why, "; its contents are lost (byre repair --accept-loss)");
}

}  // namespace byre
