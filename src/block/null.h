// SPDX-License-Identifier: Apache-2.0
/// NullDevice: a disk that does nothing, at once: reads zeros, forgets writes.  For benchmarks of
/// what lies above it.
#pragma once

#include "block/device.h"

namespace byre {

class NullDevice final : public Device {
 public:
  NullDevice(Reactor& reactor, uint64_t size) : reactor_(reactor), size_(size) {}

  uint64_t size() const override { return size_; }
  bool writable() const override { return true; }
  const std::string& name() const override { return name_; }
  Reactor& reactor() override { return reactor_; }

  Task<void> read(uint64_t, MutableBytes data, IoTag) override {
    fill_zero(data);
    co_return;
  }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions) override {
    grow(offset + data.size());
    co_return;
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions) override {
    grow(offset + length);
    co_return;
  }
  Task<void> discard(uint64_t, uint64_t, DiscardOptions) override { co_return; }
  Task<void> flush(IoTag) override { co_return; }
  Task<Extent> status(uint64_t, uint64_t length) override {
    co_return Extent{.length = length, .data = false, .zero = true};
  }
  Task<void> resize(uint64_t size) override {
    size_ = size;
    co_return;
  }
  bool new_space_is_zero() const override { return true; }
  bool can_grow() const override { return true; }
  Task<void> close() override { co_return; }

 private:
  void grow(uint64_t end) {
    if (end > size_) size_ = end;
  }

  Reactor& reactor_;
  uint64_t size_;
  const std::string name_ = "null";
};

}  // namespace byre
