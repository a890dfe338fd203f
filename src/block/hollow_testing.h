// SPDX-License-Identifier: Apache-2.0
/// A disk that keeps an image's metadata in memory and does nothing with guest data: what is left
/// of a request is what the engine itself costs.
#pragma once

#include <memory>

#include "block/filter.h"
#include "block/memory.h"

namespace byre {

class HollowDevice final : public Filter {
 public:
  explicit HollowDevice(Reactor& reactor) : Filter(std::make_unique<MemoryDevice>(reactor)) {}
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    if (options.tag != IoTag::read_guest) co_await below().read(offset, data, options);
  }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    if (options.tag != IoTag::write_guest) co_await below().write(offset, data, options);
  }
  Task<void> close() override { co_return; }
};

}  // namespace byre
