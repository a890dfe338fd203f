// SPDX-License-Identifier: Apache-2.0
/// LostRanges: parts of the disk whose entries lead nowhere, or into metadata (docs/engine.md, V).
///
/// They are found when the image is opened, by what the file was then: once the file has grown over
/// the place where such an entry leads, the entry looks sound, and would show another range's data.
/// So a request that touches one fails, until the guest has given the cluster new contents as a
/// whole.
/// Invariant: a cluster that is lost stays lost until forget() takes it out; add() changes no range
/// that is here.
/// Cost: nothing while there are none; else one step in a tree.
/// Memory: bounded by the scan.
/// Not here: finding them (check/reference_scan.h), adding them when an image is opened
/// (ops/heal.h).
#pragma once

#include <map>
#include <string_view>

#include "base/error.h"
#include "format/types.h"

namespace byre {

class LostRanges {
 public:
  struct Range {
    GuestCluster first;
    uint64_t count = 1;
    bool whole_table = false;  ///< The L1 entry leads nowhere: no single cluster can be given back.
    std::string_view why;      ///< Static; ends a sentence that names the place.
    HostOffset host;
  };

  bool empty() const { return ranges_.empty(); }
  /// What is lost already stays as it was said; whole tables come first.
  void add(const Range& range) {
    if (!find(range.first)) ranges_.emplace(range.first.value, range);
  }
  /// Null when `cluster` is not lost.
  const Range* find(GuestCluster cluster) const {
    return ranges_.empty() ? nullptr : find_among(cluster);
  }
  /// May new contents for the whole of `cluster` take the place of what was lost?
  bool replaceable(GuestCluster cluster) const {
    const Range* range = find(cluster);
    return range && !range->whole_table;
  }
  /// The cluster has new contents.
  void forget(GuestCluster cluster);
  static Error error(const Range& range, GuestCluster cluster, const Geometry& geometry);

 private:
  const Range* find_among(GuestCluster cluster) const;

  std::map<uint64_t, Range> ranges_;  ///< By first cluster.
};

}  // namespace byre
