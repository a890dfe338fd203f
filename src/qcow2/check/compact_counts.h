// SPDX-License-Identifier: Apache-2.0
/// CompactCounts: how often each host cluster is referenced, in a quarter of a byte a cluster.
///
/// Clusters come in regions of 1024.  Where no cluster of a region has more than one reference and
/// none holds metadata, two bits say what there is to know of each; the first that does not fit
/// makes its region one of bytes: six bits of count, of which the last value stands for an exact
/// number in a map, one bit for COPIED, one for metadata.
///
/// Invariant: at() gives what add() was told, exactly.
/// Cost: add() is a load, a test and a store while it stays in one region.  Memory: 256 bytes for a
/// region that something refers to, 1024 for one of bytes (with snapshots or compressed data most
/// are), nothing for the rest of the file.
/// Not here: who refers to a cluster (reference_scan.h), owners told apart (reference_counts.h).
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "format/types.h"

namespace byre {

class CompactCounts {
 public:
  static constexpr uint64_t kRegion = 1024;

  /// What refers to a cluster.
  struct Cell {
    uint64_t references = 0;
    bool copied = false;    ///< An entry of the active disk that leads here has COPIED.
    bool metadata = false;  ///< One of the references is a table's, or the header's.
    friend bool operator==(const Cell&, const Cell&) = default;
  };

  /// More references to a cluster.  Did it hold metadata before?
  bool add(HostCluster cluster, Cell what) {
    const uint64_t index = cluster.value / kRegion;
    if (index != last_index_) find_or_make(index);
    if (!last_->wide && what.references == 1 && !what.metadata) {
      uint8_t& byte = last_->cells[cluster.value % kRegion / 4];
      const uint32_t shift = cluster.value % 4 * 2;
      if ((byte >> shift & 3u) == 0) {
        byte = static_cast<uint8_t>(byte | (what.copied ? 2u : 1u) << shift);
        return false;
      }
    }
    return add_wide(cluster, what);
  }
  Cell at(HostCluster cluster) const;
  bool has_region(HostCluster cluster) const { return find(cluster.value / kRegion) != nullptr; }
  /// Indices of the regions that something refers to (cluster / kRegion), ascending.
  std::vector<uint64_t> regions() const;
  /// Memory in use, about.
  uint64_t bytes() const { return bytes_; }

 private:
  /// Two bits: nothing; one reference; one that has COPIED.
  struct Region {
    std::unique_ptr<uint8_t[]> cells;
    bool wide = false;
  };
  static constexpr uint8_t kCountMask = 63;
  static constexpr uint8_t kMany = 63;  ///< The count is in many_.
  static constexpr uint8_t kCopiedBit = 64;
  static constexpr uint8_t kMetadataBit = 128;

  void find_or_make(uint64_t index);
  void widen(Region& region);
  bool add_wide(HostCluster cluster, Cell what);
  const Region* find(uint64_t index) const;

  std::unordered_map<uint64_t, Region> regions_;
  std::unordered_map<uint64_t, uint64_t> many_;  ///< By cluster.
  mutable uint64_t last_index_ = UINT64_MAX;
  mutable Region* last_ = nullptr;  ///< Elements of the map stay where they are.
  uint64_t bytes_ = 0;
};

}  // namespace byre
