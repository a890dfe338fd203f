// SPDX-License-Identifier: Apache-2.0
/// MetadataSet: the host clusters that hold metadata (docs/engine.md, M5).
///
/// Every data write is checked against it, so a damaged image cannot make a guest overwrite tables.
/// Runs (header, L1, refcount and snapshot table, all of bitmaps) are kept as ranges that do not
/// touch each other's clusters, single clusters (L2 tables, refcount blocks) as bits, in words of
/// 64 clusters that come to be when one of them is added.
/// Invariant: no two runs share a cluster: add_run() refuses that.
/// Cost: a lookup in the word of the last one is a bit test; else a hash probe and one step in a
/// tree of the runs.  Memory: about 40 bytes for each word, so for each L2 table at most.
/// Not here: the check before each data write (data_store.h), refcounts (allocator.h).
#pragma once

#include <map>
#include <optional>
#include <unordered_map>

#include "base/units.h"
#include "format/types.h"

namespace byre {

class MetadataSet {
 public:
  /// False if it was there already: two owners of one cluster.
  bool add(HostCluster cluster) {
    if (contains(cluster)) return false;
    recent_ = {};
    words_[cluster.value / kWord] |= bit_of(cluster);
    return true;
  }
  void remove(HostCluster cluster) {
    const auto word = words_.find(cluster.value / kWord);
    if (word == words_.end()) return;
    recent_ = {};
    word->second &= ~bit_of(cluster);
    if (word->second == 0) words_.erase(word);
  }
  /// False, and nothing done, if another run has one of its clusters.
  bool add_run(HostSpan run) {
    if (run.count == 0) return true;
    const auto after = runs_.lower_bound(run.first.value);
    if (after != runs_.end() && after->first - run.first.value < run.count) return false;
    if (in_run(run.first)) return false;
    recent_ = {};
    runs_.emplace_hint(after, run.first.value, run.count);
    return true;
  }
  /// As it was added.
  void remove_run(HostSpan run) {
    const auto found = runs_.find(run.first.value);
    if (found == runs_.end() || found->second != run.count) return;
    recent_ = {};
    runs_.erase(found);
  }
  bool contains(HostCluster cluster) const {
    if (cluster.value / kWord != recent_.index) look_up(cluster.value / kWord);
    return (recent_.word & bit_of(cluster)) != 0 || (recent_.has_run && in_run(cluster));
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
  static constexpr uint64_t kWord = 64;
  /// The word that was looked up last: what is asked next mostly lies there, too.
  struct Recent {
    uint64_t index = UINT64_MAX;  ///< Of clusters from index * kWord on.
    uint64_t word = 0;
    bool has_run = false;  ///< A run has a cluster of it.
  };

  static uint64_t bit_of(HostCluster cluster) { return uint64_t{1} << cluster.value % kWord; }
  void look_up(uint64_t index) const {
    const auto word = words_.find(index);
    const auto after = runs_.upper_bound(index * kWord + (kWord - 1));
    bool has_run = false;
    if (after != runs_.begin()) {
      const auto& [first, count] = *std::prev(after);
      has_run = first >= index * kWord || index * kWord - first < count;
    }
    recent_ = {index, word == words_.end() ? 0 : word->second, has_run};
  }

  std::map<uint64_t, uint64_t> runs_;             ///< First cluster and count.
  std::unordered_map<uint64_t, uint64_t> words_;  ///< By cluster / kWord; none is 0.
  mutable Recent recent_;
};

}  // namespace byre
