// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/compact_counts.h"

#include <algorithm>

namespace byre {

void CompactCounts::find_or_make(uint64_t index) {
  Region& region = regions_[index];
  if (!region.cells) {
    region.cells = std::make_unique<uint8_t[]>(kRegion / 4);
    bytes_ += kRegion / 4 + sizeof(Region) + 32;
  }
  last_index_ = index;
  last_ = &region;
}

void CompactCounts::widen(Region& region) {
  auto wide = std::make_unique<uint8_t[]>(kRegion);
  for (uint64_t i = 0; i < kRegion; ++i) {
    const uint32_t state = region.cells[i / 4] >> i % 4 * 2 & 3u;
    wide[i] = static_cast<uint8_t>(state == 0 ? 0 : state == 1 ? 1 : 1 | kCopiedBit);
  }
  region.cells = std::move(wide);
  region.wide = true;
  bytes_ += kRegion - kRegion / 4;
}

bool CompactCounts::add_wide(HostCluster cluster, Cell what) {
  if (!last_->wide) widen(*last_);
  uint8_t& cell = last_->cells[cluster.value % kRegion];
  const uint64_t before =
      (cell & kCountMask) == kMany ? many_.at(cluster.value) : cell & kCountMask;
  const uint64_t count = before + what.references;
  if (count >= kMany) many_[cluster.value] = count;
  const auto flags =
      static_cast<uint8_t>((what.copied ? kCopiedBit : 0) | (what.metadata ? kMetadataBit : 0));
  const bool held_metadata = (cell & kMetadataBit) != 0;
  cell = static_cast<uint8_t>((cell & ~kCountMask) | flags | std::min<uint64_t>(count, kMany));
  return held_metadata;
}

const CompactCounts::Region* CompactCounts::find(uint64_t index) const {
  if (index == last_index_) return last_;
  const auto found = regions_.find(index);
  if (found == regions_.end()) return nullptr;
  last_index_ = index;
  last_ = const_cast<Region*>(&found->second);
  return last_;
}

CompactCounts::Cell CompactCounts::at(HostCluster cluster) const {
  const Region* found = find(cluster.value / kRegion);
  if (!found) return {};
  const Region& region = *found;
  const uint64_t within = cluster.value % kRegion;
  if (!region.wide) {
    const uint32_t state = region.cells[within / 4] >> within % 4 * 2 & 3u;
    return {.references = state == 0 ? 0u : 1u, .copied = state == 2};
  }
  const uint8_t cell = region.cells[within];
  const uint64_t count = (cell & kCountMask) == kMany ? many_.at(cluster.value) : cell & kCountMask;
  return {.references = count,
          .copied = (cell & kCopiedBit) != 0,
          .metadata = (cell & kMetadataBit) != 0};
}

std::vector<uint64_t> CompactCounts::regions() const {
  std::vector<uint64_t> indices;
  indices.reserve(regions_.size());
  for (const auto& [index, region] : regions_) indices.push_back(index);
  std::sort(indices.begin(), indices.end());
  return indices;
}

}  // namespace byre
