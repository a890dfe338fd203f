// SPDX-License-Identifier: Apache-2.0
#include "format/kept_clusters.h"

#include <algorithm>

#include "base/assert.h"

namespace byre {
namespace {

constexpr uint32_t kVersion = 1;

/// The payload: version, count, then the first cluster and the number of clusters of each range.
constexpr size_t kHeadSize = 8;
constexpr size_t kRangeSize = 16;

}  // namespace

KeptClusters KeptClusters::covering(const std::vector<HostSpan>& spans, size_t ranges_max) {
  BYRE_ASSERT(ranges_max != 0);
  // The widest gaps stay gaps.
  std::vector<uint64_t> gaps;
  for (size_t i = 1; i < spans.size(); ++i) {
    gaps.push_back(spans[i].first.value - spans[i - 1].end().value);
  }
  uint64_t gap_min = 1;
  if (spans.size() > ranges_max) {
    const auto nth = gaps.end() - static_cast<std::ptrdiff_t>(ranges_max);
    std::nth_element(gaps.begin(), nth, gaps.end());
    gap_min = *nth + 1;
  }
  std::vector<HostSpan> ranges;
  for (const HostSpan& span : spans) {
    if (span.count == 0) continue;
    const bool apart = ranges.empty() || span.first.value - ranges.back().end().value >= gap_min;
    if (apart) {
      ranges.push_back(span);
    } else {
      ranges.back().count = span.end().value - ranges.back().first.value;
    }
  }
  return KeptClusters(std::move(ranges));
}

Result<KeptClusters> KeptClusters::parse(Bytes data) {
  if (data.size() < kHeadSize) return corrupt("list of kept clusters: ", data.size(), " bytes");
  if (const auto version = load_be<uint32_t>(data, 0); version != kVersion)
    return unsupported("list of kept clusters of version ", version);
  const uint64_t count = load_be<uint32_t>(data, 4);
  if (count == 0 || data.size() != kHeadSize + count * kRangeSize)
    return corrupt("list of kept clusters: ", data.size(), " bytes for ", count, " ranges");
  std::vector<HostSpan> ranges;
  for (uint64_t i = 0; i < count; ++i) {
    const HostSpan range{{load_be<uint64_t>(data, kHeadSize + i * kRangeSize)},
                         load_be<uint64_t>(data, kHeadSize + i * kRangeSize + 8)};
    const bool sound = range.count != 0 && range.count <= UINT64_MAX - range.first.value &&
                       (ranges.empty() || range.first > ranges.back().end());
    if (!sound) return corrupt("list of kept clusters: range ", i, " is out of order");
    ranges.push_back(range);
  }
  return KeptClusters(std::move(ranges));
}

std::vector<std::byte> KeptClusters::serialize() const {
  std::vector<std::byte> data(kHeadSize + ranges_.size() * kRangeSize);
  store_be<uint32_t>(data, 0, kVersion);
  store_be<uint32_t>(data, 4, static_cast<uint32_t>(ranges_.size()));
  for (size_t i = 0; i < ranges_.size(); ++i) {
    store_be<uint64_t>(data, kHeadSize + i * kRangeSize, ranges_[i].first.value);
    store_be<uint64_t>(data, kHeadSize + i * kRangeSize + 8, ranges_[i].count);
  }
  return data;
}

bool KeptClusters::contains(HostCluster cluster) const {
  const auto after = std::upper_bound(
      ranges_.begin(), ranges_.end(), cluster,
      [](HostCluster value, const HostSpan& range) { return value < range.first; });
  return after != ranges_.begin() &&
         cluster.value - std::prev(after)->first.value < std::prev(after)->count;
}

KeptClusters kept_clusters_of(const Extensions& extensions) {
  const auto found = std::find_if(
      extensions.unknown.begin(), extensions.unknown.end(),
      [](const UnknownExtension& each) { return each.type == kKeptClustersExtension; });
  if (found == extensions.unknown.end()) return {};
  Result<KeptClusters> kept = KeptClusters::parse(found->data);
  return kept ? *std::move(kept) : KeptClusters::all();
}

}  // namespace byre
