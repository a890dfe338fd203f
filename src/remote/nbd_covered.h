// SPDX-License-Identifier: Apache-2.0
/// Covered: which parts of a read have come, in whatever order a server sends them.
///
/// Memory that is not covered holds what another read left there, so a read whose chunks overlap
/// or leave a gap must never succeed.
/// Cost: nothing but two numbers while chunks come in order; else a map of at most kPiecesMax.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "base/checked.h"

namespace byre::nbd {

class Covered {
 public:
  static constexpr size_t kPiecesMax = 1024;

  Covered() = default;
  explicit Covered(uint64_t size) : size_(size) {}

  /// False when a part of it came before, it passes the end, or there are too many pieces.
  bool add(uint64_t offset, uint64_t length) {
    if (!within(offset, length, size_) || offset < front_) return false;
    const auto after = pieces_.lower_bound(offset);
    if (after != pieces_.end() && after->first - offset < length) return false;
    if (after != pieces_.begin()) {
      const auto before = std::prev(after);
      if (before->second > offset) return false;
    }
    if (offset != front_) {
      if (pieces_.size() == kPiecesMax) return false;
      pieces_.emplace(offset, offset + length);
      return true;
    }
    front_ = offset + length;
    while (!pieces_.empty() && pieces_.begin()->first == front_) {
      front_ = pieces_.begin()->second;
      pieces_.erase(pieces_.begin());
    }
    return true;
  }
  bool is_whole() const { return front_ == size_; }

 private:
  uint64_t size_ = 0;
  uint64_t front_ = 0;                   ///< All before it has come.
  std::map<uint64_t, uint64_t> pieces_;  ///< Behind it: offsets and ends.
};

}  // namespace byre::nbd
