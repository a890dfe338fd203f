// SPDX-License-Identifier: Apache-2.0
#include "block/cluster_set.h"

#include <algorithm>

#include "base/units.h"

namespace byre {

uint64_t ClusterSet::next(bool in, uint64_t from, uint64_t end) const {
  if (count_ == 0) return in ? end : std::min(from, end);
  while (from < end) {
    const uint64_t chunk_end = std::min(end, round_down(from, kChunk) + kChunk);
    const auto found = chunks_.find(from / kChunk);
    const bool none = found == chunks_.end();
    if (none || found->second.count == kChunk) {  // All of it is alike.
      if (none != in) return from;
      from = chunk_end;
      continue;
    }
    for (; from < chunk_end; ++from) {
      if (found->second.bits.test(from % kChunk) == in) return from;
    }
  }
  return end;
}

void ClusterSet::insert(uint64_t first, uint64_t end) {
  for (uint64_t at = first; at < end; ++at) {
    Chunk& chunk = chunks_[at / kChunk];
    if (chunk.bits.test(at % kChunk)) continue;
    chunk.bits.set(at % kChunk);
    ++chunk.count;
    ++count_;
  }
}

void ClusterSet::erase(uint64_t first, uint64_t end) {
  for (uint64_t at = next(true, first, end); at < end; at = next(true, at + 1, end)) {
    const auto found = chunks_.find(at / kChunk);
    found->second.bits.reset(at % kChunk);
    --count_;
    if (--found->second.count == 0) chunks_.erase(found);
  }
}

}  // namespace byre
