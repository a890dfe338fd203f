// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/reference_counts.h"

#include <algorithm>
#include <utility>

#include "base/assert.h"

namespace byre {
namespace {

/// Regions in a slab: as many as there are already, within these bounds.
constexpr uint64_t kSlabMin = 16;
constexpr uint64_t kSlabMax = 32768;  // 8 MiB

uint64_t saturating_add(uint64_t a, uint64_t b) { return b > UINT64_MAX - a ? UINT64_MAX : a + b; }

}  // namespace

std::string_view name_of(Owner owner) {
  switch (owner) {
    case Owner::nobody:
      return "nothing";
    case Owner::header:
      return "the header";
    case Owner::refcounts:
      return "the refcount table or a refcount block";
    case Owner::l1:
      return "an L1 table";
    case Owner::l2:
      return "an L2 table";
    case Owner::data:
      return "data";
    case Owner::compressed:
      return "compressed data";
    case Owner::other:
      return "the snapshot table, bitmaps or the encryption header";
  }
  return "unknown";
}

std::optional<Owner> ReferenceCounts::add(HostCluster cluster, Owner owner, uint64_t identity,
                                          uint64_t weight) {
  Cell& cell = at(cluster);
  const Owner before = cell.owner();
  const uint32_t hash = owner == Owner::compressed ? 0 : hash14(identity) & 0x3fffu;
  set_count(cluster, cell, saturating_add(references(cluster), weight));
  if (before == Owner::nobody) {
    cell.owner_bits = static_cast<uint32_t>(owner) & 7u;
    cell.identity = hash & 0x3fffu;
    return std::nullopt;
  }
  if ((before == owner && cell.identity == hash) || cell.aliased) return std::nullopt;
  cell.aliased = 1;
  has_aliases_ = true;
  return before;
}

void ReferenceCounts::drop(HostCluster cluster) {
  const uint64_t count = references(cluster);
  BYRE_ASSERT(count != 0);
  set_count(cluster, at(cluster), count - 1);
}

uint64_t ReferenceCounts::references(HostCluster cluster) const {
  const Cell* cell = find(cluster);
  if (!cell) return 0;
  return cell->count == kMany ? many_.at(cluster.value) : cell->count;
}

bool ReferenceCounts::remember(uint64_t index) const {
  const uint64_t block = index / kRegionsInBlock;
  if (block != last_block_index_) {
    const auto found = blocks_.find(block);
    if (found == blocks_.end()) return false;
    last_block_index_ = block;
    last_block_ = &found->second;
  }
  Region* region = (*last_block_)[index % kRegionsInBlock];
  if (!region) return false;
  last_index_ = index;
  last_ = region;
  return true;
}

void ReferenceCounts::make(uint64_t index) {
  if (slab_left_ == 0) {
    slab_left_ = std::clamp(regions_count_, kSlabMin, kSlabMax);
    slabs_.emplace_back(slab_left_ * sizeof(Region));
  }
  // Memory of zeros is regions of cells that nobody owns (P0593R6: they come to be by its use).
  Region* region = static_cast<Region*>(slabs_.back().data()) + --slab_left_;
  ++regions_count_;
  blocks_[index / kRegionsInBlock][index % kRegionsInBlock] = region;
  last_index_ = index;
  last_ = region;
}

std::vector<HostCluster> ReferenceCounts::aliased() const {
  std::vector<HostCluster> found;
  if (!has_aliases_) return found;
  for (const uint64_t index : regions()) {
    for (uint64_t i = 0; i < kRegion; ++i) {
      const HostCluster cluster{index * kRegion + i};
      if (find(cluster)->aliased) found.push_back(cluster);
    }
  }
  return found;
}

std::vector<uint64_t> ReferenceCounts::regions() const {
  std::vector<uint64_t> blocks;
  blocks.reserve(blocks_.size());
  for (const auto& [index, block] : blocks_) blocks.push_back(index);
  std::sort(blocks.begin(), blocks.end());
  std::vector<uint64_t> indices;
  indices.reserve(regions_count_);
  for (const uint64_t index : blocks) {
    const Block& block = blocks_.at(index);
    for (uint64_t i = 0; i < kRegionsInBlock; ++i) {
      if (block[i]) indices.push_back(index * kRegionsInBlock + i);
    }
  }
  return indices;
}

void ReferenceCounts::set_count(HostCluster cluster, Cell& cell, uint64_t count) {
  if (count < kMany) {
    if (cell.count == kMany) many_.erase(cluster.value);
    cell.count = count & kMany;
  } else {
    cell.count = kMany;
    many_[cluster.value] = count;
  }
}

}  // namespace byre
