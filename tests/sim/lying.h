// SPDX-License-Identifier: Apache-2.0
/// Lying: a disk that answers a write as if it had done it, and has dropped it, or stored one byte
/// of it wrong.
///
/// It lies once, at the write that was asked for, and only while `may_lie` says so.
/// Not here: writes that go elsewhere, which spoil what was compared before.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "base/prng.h"
#include "block/filter.h"

namespace byre {

class Lying final : public Filter {
 public:
  /// `lied` becomes true when it has.
  Lying(Child below, uint64_t seed, std::function<bool()> may_lie, std::shared_ptr<bool> lied)
      : Filter(std::move(below)),
        prng_(seed),
        may_lie_(std::move(may_lie)),
        lied_(std::move(lied)),
        left_(prng_.below(6)) {}

  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    if (*lied_ || data.empty() || !may_lie_() || left_-- != 0) {
      co_await below().write(offset, data, options);
      co_return;
    }
    *lied_ = true;
    if (prng_.one_in(2)) co_return;
    std::vector<std::byte> other(data.begin(), data.end());
    // The last byte is the one that is forgotten soonest.
    const uint64_t at = prng_.one_in(2) ? other.size() - 1 : prng_.below(other.size());
    other[at] ^= std::byte{1};
    co_await below().write(offset, other, options);
  }

 private:
  Prng prng_;
  std::function<bool()> may_lie_;
  const std::shared_ptr<bool> lied_;
  uint64_t left_;  ///< Writes before that.
};

}  // namespace byre
