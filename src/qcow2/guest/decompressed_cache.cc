// SPDX-License-Identifier: Apache-2.0
#include "qcow2/guest/decompressed_cache.h"

#include <algorithm>

namespace byre {

struct DecompressedCache::Entry {
  Entry(ReadyQueue& ready, const Mapping& s) : stream(s), done(ready) {}
  const Mapping stream;
  std::shared_ptr<std::vector<std::byte>> cluster;  ///< Null until it is decompressed.
  Event done;                                       ///< Unpacked, or failed.
};

DecompressedCache::DecompressedCache(ReadyQueue& ready, const Geometry& geometry)
    : ready_(ready),
      geometry_(geometry),
      entries_max_(std::clamp<uint64_t>(kBytesMax / geometry.cluster_size(), 2, 64)) {}

DecompressedCache::~DecompressedCache() = default;

std::shared_ptr<DecompressedCache::Entry> DecompressedCache::look_up(const Mapping& stream) {
  for (size_t i = entries_.size(); i-- > 0;) {
    if (entries_[i]->stream != stream) continue;
    const auto found = entries_.begin() + static_cast<std::ptrdiff_t>(i);
    std::rotate(found, found + 1, entries_.end());
    return entries_.back();
  }
  return nullptr;
}

DecompressedCache::Cluster DecompressedCache::find(const Mapping& stream) {
  const std::shared_ptr<Entry> entry = look_up(stream);
  return entry ? entry->cluster : nullptr;
}

Task<DecompressedCache::Cluster> DecompressedCache::get(HostAccess access, Mapping stream,
                                                        Source& source) {
  while (const std::shared_ptr<Entry> entry = look_up(stream)) {
    co_await entry->done.wait();
    if (entry->cluster) co_return Cluster(entry->cluster);
  }
  while (!entries_.empty() && entries_.size() >= entries_max_) entries_.erase(entries_.begin());
  const auto entry = std::make_shared<Entry>(ready_, stream);
  entries_.push_back(entry);
  auto cluster = std::make_shared<std::vector<std::byte>>(geometry_.cluster_size());
  Result<void> decompressed = co_await source.decompress(access, stream, *cluster).result();
  if (decompressed) {
    entry->cluster = std::move(cluster);
  } else {
    std::erase(entries_, entry);
  }
  if (entries_max_ == 0) std::erase(entries_, entry);
  entry->done.set();
  co_await std::move(decompressed);
  co_return Cluster(entry->cluster);
}

void DecompressedCache::limit(uint64_t bytes) {
  const uint64_t cluster = geometry_.cluster_size();
  entries_max_ = std::clamp<uint64_t>(bytes / cluster, cluster <= 64 * KiB ? 1 : 0, 64);
  while (entries_.size() > entries_max_) entries_.erase(entries_.begin());
}

void DecompressedCache::forget(HostCluster cluster) {
  std::erase_if(entries_, [&](const std::shared_ptr<Entry>& entry) {
    const HostSpan span = hosts(entry->stream, geometry_);
    return span.first <= cluster && cluster < span.end();
  });
}

}  // namespace byre
