// SPDX-License-Identifier: Apache-2.0
/// ReferenceCounts: how often each host cluster is referenced, and by what.
///
/// A cluster may have one owner: a piece of metadata, one guest cluster (the same one in the active
/// disk and in snapshots), or any number of compressed streams.  add() tells when a second one
/// comes.  An owner is remembered as its kind and 14 bits of a hash, so that one pair of owners of
/// the same kind in 16384 goes unnoticed here; their reference is counted all the same.
///
/// Invariant: the number of references is exact, also where it is more than a cell holds; only
/// owners may be mistaken.
/// Cost: four bytes a cluster, in regions of 64 clusters that come to be when one of them is
/// referenced; a hash table lookup when add() leaves 16 such regions.
/// Not here: what the refcounts in the file say (metadata_scan.h).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/units.h"
#include "base/zeroed_pages.h"

namespace byre {

/// What references a cluster.
enum class Owner : uint8_t { nobody, header, refcounts, l1, l2, data, compressed, other };
std::string_view name_of(Owner owner);

class ReferenceCounts {
 public:
  static constexpr uint64_t kRegion = 64;

  /// Is the refcount in the file exactly one?
  enum class OnDisk : uint8_t { unknown, one, other };

  struct Cell {
    uint32_t count : 10 = 0;  ///< kMany: the exact number is in many_.
    uint32_t owner_bits : 3 = 0;
    uint32_t identity : 14 = 0;
    uint32_t aliased : 1 = 0;       ///< More than one owner.
    uint32_t copied_set : 1 = 0;    ///< An active entry that points here has COPIED,
    uint32_t copied_clear : 1 = 0;  ///< or one has not.
    uint32_t on_disk_bits : 2 = 0;

    Owner owner() const { return static_cast<Owner>(owner_bits); }
    OnDisk on_disk() const { return static_cast<OnDisk>(on_disk_bits); }
    void set_on_disk(uint64_t refcount) {
      on_disk_bits = static_cast<uint32_t>(refcount == 1 ? OnDisk::one : OnDisk::other) & 3u;
    }
    void see_copied(bool copied) { (copied ? copied_set = 1 : copied_clear = 1); }
  };
  using Region = std::array<Cell, kRegion>;

  /// Adds `weight` references by one owner.  When that makes the cluster one with two owners, for
  /// the first time: what it was before.
  std::optional<Owner> add(HostCluster cluster, Owner owner, uint64_t identity,
                           uint64_t weight = 1);
  /// The same for a cluster that nobody has claimed yet; null, and nothing done, for any other.
  Cell* add_first(HostCluster cluster, Owner owner, uint64_t identity, uint64_t weight) {
    Cell& cell = at(cluster);
    if (cell.owner() != Owner::nobody || weight >= kMany) return nullptr;
    cell.count = weight & kMany;
    cell.owner_bits = static_cast<uint32_t>(owner) & 7u;
    cell.identity = hash14(identity) & 0x3fffu;
    return &cell;
  }
  /// Takes one reference back.
  void drop(HostCluster cluster);

  uint64_t references(HostCluster cluster) const;
  /// Of a cluster whose cell is known.
  uint64_t references_of(HostCluster cluster, const Cell& cell) const {
    return cell.count == kMany ? many_.at(cluster.value) : cell.count;
  }
  /// Null when nothing references it.
  Cell* find(HostCluster cluster) { return const_cast<Cell*>(std::as_const(*this).find(cluster)); }
  const Cell* find(HostCluster cluster) const {
    const uint64_t index = cluster.value / kRegion;
    if (index != last_index_ && !remember(index)) return nullptr;
    return &(*last_)[cluster.value % kRegion];
  }
  /// Is this the whole count of the cell?
  static bool is_exactly(const Cell& cell, uint64_t count) {
    return cell.count == count && count != kMany;
  }

  /// Clusters with more than one owner, ascending.
  std::vector<HostCluster> aliased() const;
  void set_aliased(Cell& cell) {
    cell.aliased = 1;
    has_aliases_ = true;
  }
  bool has_aliases() const { return has_aliases_; }

  /// Indices of all regions (cluster / kRegion), ascending.
  std::vector<uint64_t> regions() const;

 private:
  static constexpr uint32_t kMany = (1u << 10) - 1;

  static constexpr uint64_t kRegionsInBlock = 16;
  using Block = std::array<Region*, kRegionsInBlock>;

  static uint32_t hash14(uint64_t identity) {
    return static_cast<uint32_t>(((identity + 1) * 0x9e3779b97f4a7c15u) >> 50);
  }
  Cell& at(HostCluster cluster) {
    const uint64_t index = cluster.value / kRegion;
    if (index != last_index_ && !remember(index)) make(index);
    return (*last_)[cluster.value % kRegion];
  }
  /// Makes region `index` the one at hand; false when it is not there.
  bool remember(uint64_t index) const;
  void make(uint64_t index);
  void set_count(HostCluster cluster, Cell& cell, uint64_t count);

  std::unordered_map<uint64_t, Block> blocks_;  ///< By region / kRegionsInBlock.
  std::vector<ZeroedPages> slabs_;              ///< What regions lie in.
  uint64_t slab_left_ = 0;
  uint64_t regions_count_ = 0;
  std::unordered_map<uint64_t, uint64_t> many_;
  bool has_aliases_ = false;
  mutable uint64_t last_index_ = UINT64_MAX;
  mutable Region* last_ = nullptr;
  mutable uint64_t last_block_index_ = UINT64_MAX;
  mutable const Block* last_block_ = nullptr;  ///< Elements of the map stay where they are.
};

}  // namespace byre
