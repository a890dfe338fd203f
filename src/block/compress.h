// SPDX-License-Identifier: Apache-2.0
/// Compress: what a write covers of whole clusters is written compressed, its edges as they are.
///
/// Cost: a write whose edges do not lie on clusters becomes up to three, one after another.
#pragma once

#include "base/units.h"
#include "block/filter.h"

namespace byre {

class Compress final : public Filter {
 public:
  /// `cluster`: what the device below compresses as one.
  Compress(Child below, uint64_t cluster) : Filter(std::move(below)), cluster_(cluster) {}

  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    const uint64_t end = offset + data.size();
    const uint64_t first = round_up(offset, cluster_);
    // The last cluster of a disk may be a part of one.
    const uint64_t last = end == below().size() ? end : round_down(end, cluster_);
    if (first >= last) {
      co_await below().write(offset, data, options);
      co_return;
    }
    WriteOptions compressed = options;
    compressed.compressed = true;
    if (offset < first) co_await below().write(offset, data.first(first - offset), options);
    co_await below().write(first, data.subspan(first - offset, last - first), compressed);
    if (last < end) co_await below().write(last, data.subspan(last - offset), options);
  }

 private:
  uint64_t cluster_;
};

}  // namespace byre
