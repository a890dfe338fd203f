// SPDX-License-Identifier: Apache-2.0
/// MetadataSet: the host clusters that hold metadata (docs/engine.md, M5).
///
/// Every data write is checked against it, so a damaged image cannot make a guest overwrite tables.
/// Runs (header, L1, refcount table) are kept as ranges, single clusters (L2 tables, refcount
/// blocks) in a hash set.
#pragma once

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/units.h"
#include "format/types.h"

namespace byre {

class MetadataSet {
 public:
  /// False if it was there already: two owners of one cluster.
  bool add(HostCluster cluster) { return !in_run(cluster) && clusters_.insert(cluster).second; }
  void remove(HostCluster cluster) { clusters_.erase(cluster); }
  bool add_run(HostSpan run) {
    bool alone = true;
    for (uint64_t i = 0; i < run.count; ++i) alone &= !in_run(run.first + i);
    if (run.count > kShortRun) {
      runs_.push_back(run);
    } else {
      for (uint64_t i = 0; i < run.count; ++i) ++in_short_runs_[run.first + i];
    }
    return alone;
  }
  void remove_run(HostSpan run) {
    if (run.count > kShortRun) {
      runs_.erase(std::remove(runs_.begin(), runs_.end(), run), runs_.end());
      return;
    }
    for (uint64_t i = 0; i < run.count; ++i) {
      const auto found = in_short_runs_.find(run.first + i);
      if (found != in_short_runs_.end() && --found->second == 0) in_short_runs_.erase(found);
    }
  }
  bool contains(HostCluster cluster) const {
    return clusters_.contains(cluster) || in_run(cluster);
  }
  /// Is it part of the header's, an L1 table's, the refcount table's, the snapshot table's run?
  bool in_run(HostCluster cluster) const {
    if (in_short_runs_.contains(cluster)) return true;
    for (const HostSpan& run : runs_) {
      if (cluster.value - run.first.value < run.count) return true;
    }
    return false;
  }
  /// The first metadata cluster in a run, if any.
  std::optional<HostCluster> find_in(HostSpan run) const {
    for (uint64_t i = 0; i < run.count; ++i) {
      if (contains(run.first + i)) return run.first + i;
    }
    return std::nullopt;
  }

 private:
  /// Runs up to this long are kept by the cluster: an image may have 65536 snapshots.
  static constexpr uint64_t kShortRun = 16;
  std::vector<HostSpan> runs_;
  std::unordered_map<HostCluster, uint32_t> in_short_runs_;
  std::unordered_set<HostCluster> clusters_;
};

}  // namespace byre
