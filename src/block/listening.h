// SPDX-License-Identifier: Apache-2.0
/// Listening: a device for the tests of filters that remembers what it was asked.
#pragma once

#include <string>
#include <vector>

#include "block/device.h"

namespace byre {

class Listening final : public Device {
 public:
  Listening(Reactor& reactor, std::vector<std::string>& heard, uint64_t size = 1 << 20)
      : reactor_(reactor), heard_(heard), size_(size) {}
  uint64_t size() const override { return size_; }
  bool writable() const override { return true; }
  uint32_t alignment() const override { return 1; }
  uint32_t preferred_size() const override { return 65536; }
  const std::string& name() const override { return name_; }
  Reactor& reactor() override { return reactor_; }
  Task<void> read(uint64_t, MutableBytes, ReadOptions) override { co_return; }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    heard_.push_back(cat("write ", offset, " ", data.size(),
                         options.compressed ? " compressed" : "", options.fua ? " fua" : ""));
    co_return;
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override {
    heard_.push_back(cat("zero ", offset, " ", length, options.may_unmap ? " unmap" : "",
                         options.fua ? " fua" : ""));
    co_return;
  }
  Task<void> discard(uint64_t, uint64_t, DiscardOptions) override { co_return; }
  Task<void> flush(IoTag) override { co_return; }
  Task<Extent> status(uint64_t, uint64_t length) override { co_return Extent{.length = length}; }
  Task<void> close() override { co_return; }

 private:
  Reactor& reactor_;
  std::vector<std::string>& heard_;
  uint64_t size_;
  std::string name_ = "listening";
};

}  // namespace byre
