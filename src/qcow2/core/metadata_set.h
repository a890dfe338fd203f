// SPDX-License-Identifier: Apache-2.0
/// MetadataSet: the host clusters that hold metadata (docs/engine.md, M5).
///
/// Every data write is checked against it, so a damaged image cannot make a guest overwrite tables.
/// Runs (header, L1, refcount and snapshot table, all of bitmaps) are kept as ranges that do not
/// touch each other's clusters, single clusters (L2 tables, refcount blocks) in a hash set.
/// Invariant: no two runs share a cluster: add_run() refuses that.
/// Cost: a lookup is a hash probe and one step in a tree of the runs.
/// Not here: the check before each data write (data_store.h), refcounts (allocator.h).
#pragma once

#include <map>
#include <optional>
#include <unordered_set>

#include "base/units.h"
#include "format/types.h"

namespace byre {

class MetadataSet {
 public:
  /// False if it was there already: two owners of one cluster.
  bool add(HostCluster cluster) { return !in_run(cluster) && clusters_.insert(cluster).second; }
  void remove(HostCluster cluster) { clusters_.erase(cluster); }
  /// False, and nothing done, if another run has one of its clusters.
  bool add_run(HostSpan run) {
    if (run.count == 0) return true;
    const auto after = runs_.lower_bound(run.first.value);
    if (after != runs_.end() && after->first - run.first.value < run.count) return false;
    if (in_run(run.first)) return false;
    runs_.emplace_hint(after, run.first.value, run.count);
    return true;
  }
  /// As it was added.
  void remove_run(HostSpan run) {
    const auto found = runs_.find(run.first.value);
    if (found != runs_.end() && found->second == run.count) runs_.erase(found);
  }
  bool contains(HostCluster cluster) const {
    return clusters_.contains(cluster) || in_run(cluster);
  }
  bool in_run(HostCluster cluster) const {
    const auto after = runs_.upper_bound(cluster.value);
    if (after == runs_.begin()) return false;
    const auto& [first, count] = *std::prev(after);
    return cluster.value - first < count;
  }
  /// The first metadata cluster in a run, if any.
  std::optional<HostCluster> find_in(HostSpan run) const {
    for (uint64_t i = 0; i < run.count; ++i) {
      if (contains(run.first + i)) return run.first + i;
    }
    return std::nullopt;
  }

 private:
  std::map<uint64_t, uint64_t> runs_;  ///< First cluster and count.
  std::unordered_set<HostCluster> clusters_;
};

}  // namespace byre
