// SPDX-License-Identifier: Apache-2.0
#include "qcow2/count.h"

#include <algorithm>
#include <utility>

#include "base/assert.h"

namespace byre {
namespace {

uint32_t hash14(uint64_t identity) {
  return static_cast<uint32_t>(((identity + 1) * 0x9e3779b97f4a7c15u) >> 50);
}

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

ReferenceCounts::Cell* ReferenceCounts::add_first(HostCluster cluster, Owner owner,
                                                  uint64_t identity, uint64_t weight) {
  Cell& cell = at(cluster);
  if (cell.owner() != Owner::nobody || weight >= kMany) return nullptr;
  cell.count = weight & kMany;
  cell.owner_bits = static_cast<uint32_t>(owner) & 7u;
  cell.identity = hash14(identity) & 0x3fffu;
  return &cell;
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

ReferenceCounts::Cell* ReferenceCounts::find(HostCluster cluster) {
  return const_cast<Cell*>(std::as_const(*this).find(cluster));
}

const ReferenceCounts::Cell* ReferenceCounts::find(HostCluster cluster) const {
  const uint64_t index = cluster.value / kRegion;
  if (index != last_index_) {
    const auto region = regions_.find(index);
    if (region == regions_.end()) return nullptr;
    last_index_ = index;
    last_ = region->second.get();
  }
  return &(*last_)[cluster.value % kRegion];
}

std::vector<HostCluster> ReferenceCounts::aliased() const {
  std::vector<HostCluster> found;
  if (!has_aliases_) return found;
  for (const auto& [index, region] : regions_) {
    for (uint64_t i = 0; i < kRegion; ++i) {
      if ((*region)[i].aliased) found.push_back({index * kRegion + i});
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<uint64_t> ReferenceCounts::regions() const {
  std::vector<uint64_t> indices;
  indices.reserve(regions_.size());
  for (const auto& [index, region] : regions_) indices.push_back(index);
  std::sort(indices.begin(), indices.end());
  return indices;
}

ReferenceCounts::Cell& ReferenceCounts::at(HostCluster cluster) {
  const uint64_t index = cluster.value / kRegion;
  if (index != last_index_) {
    std::unique_ptr<Region>& region = regions_[index];
    if (!region) region = std::make_unique<Region>();
    last_index_ = index;
    last_ = region.get();
  }
  return (*last_)[cluster.value % kRegion];
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
