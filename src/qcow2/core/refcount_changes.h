// SPDX-License-Identifier: Apache-2.0
/// RefcountChanges: how many references each host cluster gains or loses in one large step, as when
/// a snapshot is made or deleted.
///
/// The allocator is asked whether all of them fit before any is made (allocator.h, A5), so a step
/// that cannot be done changes nothing.
/// Invariant: the number of references of each cluster is exact; a number above 254 lies in a map.
/// Cost: one byte for each cluster of a region (what one refcount block counts) that is touched, as
/// the allocator has; the references themselves are not kept.
/// Not here: refcounts as they are (allocator.h), which references there are (snapshot.cc).
#pragma once

#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

#include "format/types.h"

namespace byre {

class RefcountChanges {
 public:
  explicit RefcountChanges(const Geometry& geometry) : geometry_(geometry) {}

  void add(HostCluster cluster) {
    Part& part = part_of(geometry_.refcount_table_index(cluster));
    const uint64_t within = geometry_.refcount_block_index(cluster);
    if (part.counts[within] < kMany) {
      if (++part.counts[within] == kMany) part.many[within] = kMany;
    } else {
      ++part.many[within];
    }
  }
  void add(HostSpan span) {
    for (uint64_t i = 0; i < span.count; ++i) add(span.first + i);
  }
  bool empty() const { return parts_.empty(); }

  /// Calls visit(cluster, change) for every cluster with a change, ascending, until one call gives
  /// false.
  template <class Visit>
  bool each(Visit visit) const {
    for (const auto& [index, part] : parts_) {
      const HostCluster first = geometry_.first_of_refcount_table(index);
      for (uint64_t i = 0; i < part.counts.size(); ++i) {
        if (part.counts[i] == 0) continue;
        const uint64_t change = part.counts[i] < kMany ? part.counts[i] : part.many.at(i);
        if (!visit(first + i, change)) return false;
      }
    }
    return true;
  }

 private:
  static constexpr uint8_t kMany = 255;  ///< The number is in `many`.
  struct Part {
    std::vector<uint8_t> counts;
    std::unordered_map<uint64_t, uint64_t> many;
  };
  Part& part_of(uint64_t index) {
    if (last_ && index == last_index_) return *last_;
    Part& part = parts_[index];
    if (part.counts.empty()) part.counts.resize(geometry_.refcount_block_entries());
    last_index_ = index;
    last_ = &part;
    return part;
  }

  const Geometry& geometry_;
  std::map<uint64_t, Part> parts_;
  uint64_t last_index_ = 0;
  Part* last_ = nullptr;
};

}  // namespace byre
