// SPDX-License-Identifier: Apache-2.0
/// Compress: each write asks for compressed clusters.
///
/// The device below compresses what covers whole clusters; the rest is written as it is.
#pragma once

#include "block/filter.h"

namespace byre {

class Compress final : public Filter {
 public:
  using Filter::Filter;
  BYRE_CORO_WRAPPER Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    options.compressed = true;
    return below_.write(offset, data, options);
  }
};

}  // namespace byre
