// SPDX-License-Identifier: Apache-2.0
/// ClusterSet: numbers of clusters of a disk, or of larger pieces; sparse.
///
/// Memory: 512 bytes for each 4096 numbers of which one is in the set.
/// Cost: insert and erase are linear in the length of the run; next() skips what is all alike.
#pragma once

#include <bitset>
#include <cstdint>
#include <unordered_map>

namespace byre {

class ClusterSet {
 public:
  /// The first one from `from` on that is in the set (`in`) or not; `end` without one before it.
  uint64_t next(bool in, uint64_t from, uint64_t end) const;
  bool contains(uint64_t cluster) const { return next(true, cluster, cluster + 1) == cluster; }
  uint64_t count() const { return count_; }
  bool empty() const { return count_ == 0; }
  /// [first, end).
  void insert(uint64_t first, uint64_t end);
  void erase(uint64_t first, uint64_t end);

 private:
  static constexpr uint64_t kChunk = 4096;
  struct Chunk {
    std::bitset<kChunk> bits;
    uint64_t count = 0;
  };
  std::unordered_map<uint64_t, Chunk> chunks_;  ///< None of them is empty.
  uint64_t count_ = 0;
};

}  // namespace byre
