// SPDX-License-Identifier: Apache-2.0
/// DetectZeroes: a write of nothing but zeros becomes a request to zero.
///
/// So a client that does not know of zeroes (or of discards) fills no space with them.  A write is
/// taken as a whole: one with a single other byte is written as it is.
/// Cost: looks at the bytes of each write until the first that is not zero.
#pragma once

#include "base/bytes.h"
#include "block/filter.h"

namespace byre {

enum class DetectZeroesMode : uint8_t {
  off,
  on,     ///< Space that was given stays with the disk.
  unmap,  ///< It is given back.
};

class DetectZeroes final : public Filter {
 public:
  DetectZeroes(Child below, DetectZeroesMode mode) : Filter(std::move(below)), mode_(mode) {}
  BYRE_CORO_WRAPPER Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    if (mode_ == DetectZeroesMode::off || options.compressed || data.empty() || !is_zero(data))
      return below().write(offset, data, options);
    return below().zero(offset, data.size(),
                        {.may_unmap = mode_ == DetectZeroesMode::unmap, .fua = options.fua});
  }

 private:
  DetectZeroesMode mode_;
};

}  // namespace byre
