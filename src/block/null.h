// SPDX-License-Identifier: Apache-2.0
/// NullDevice: a disk that stores nothing: it reads zeros and forgets writes.  For benchmarks of
/// what lies above it, and for tests of slow disks.
///
/// A read always fills its buffer with zeros, whatever `read_zeroes` says: buffers come from a pool
/// and still hold what another client read or wrote (io/buffer.h), so leaving one as it is would
/// show that to whoever reads.  `read_zeroes` off says instead that nobody may rely on the zeros:
/// status() calls everything data, so that a copy reads and writes each byte.
/// A write past the end grows the disk, unless it is `fixed`; then it fails, like every other
/// request that passes the end.
/// Cost: none but the latency, which each read, write, zero, discard and flush takes, side by side.
/// Not here: a disk that remembers (memory.h), faults (filter_fault.h).
#pragma once

#include "base/checked.h"
#include "base/units.h"
#include "block/device.h"

namespace byre {

struct NullOptions {
  uint64_t size = 1 * GiB;
  int64_t latency_ns = 0;  ///< How long each request takes; 0: it ends in its caller's turn.
  bool read_zeroes = true;
  bool fixed = false;  ///< Neither grows nor can be resized.
};

class NullDevice final : public Device {
 public:
  NullDevice(Reactor& reactor, NullOptions options)
      : reactor_(reactor), options_(options), size_(options.size) {}
  NullDevice(Reactor& reactor, uint64_t size) : NullDevice(reactor, NullOptions{.size = size}) {}

  uint64_t size() const override { return size_; }
  bool writable() const override { return true; }
  Capabilities capabilities() const override { return {.zeroes_fast = true, .fua = true}; }
  const std::string& name() const override { return name_; }
  Reactor& reactor() override { return reactor_; }

  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions) override {
    if (options_.fixed) co_await check("read", offset, data.size());
    if (options_.latency_ns > 0) co_await reactor_.sleep(options_.latency_ns);
    fill_zero(data);
  }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    if (options.compressed) co_await fail(no_compression());
    co_await change("write", offset, data.size());
  }
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions) override {
    return change("zero", offset, length);
  }
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions) override {
    if (options_.fixed) co_await check("discard", offset, length);
    if (options_.latency_ns > 0) co_await reactor_.sleep(options_.latency_ns);
  }
  Task<void> flush(IoTag) override {
    if (options_.latency_ns > 0) co_await reactor_.sleep(options_.latency_ns);
  }
  Task<Extent> status(uint64_t offset, uint64_t length) override {
    if (options_.fixed) co_await check("status", offset, length);
    co_return Extent{.length = length, .data = !options_.read_zeroes, .zero = options_.read_zeroes};
  }
  Task<void> resize(uint64_t size) override {
    if (options_.fixed) co_await Device::resize(size);
    size_ = size;
  }
  bool new_space_is_zero() const override { return options_.read_zeroes; }
  bool can_grow() const override { return !options_.fixed; }
  Task<void> close() override { co_return; }

 private:
  Result<void> check(std::string_view what, uint64_t offset, uint64_t length) const {
    if (!within(offset, length, size_)) return out_of_range(what, offset, length);
    return {};
  }
  Task<void> change(std::string_view what, uint64_t offset, uint64_t length) {
    if (options_.fixed) co_await check(what, offset, length);
    if (!within(offset, length, INT64_MAX)) co_await fail(out_of_range(what, offset, length));
    if (options_.latency_ns > 0) co_await reactor_.sleep(options_.latency_ns);
    if (offset + length > size_) size_ = offset + length;
  }

  Reactor& reactor_;
  const NullOptions options_;
  uint64_t size_;
  const std::string name_ = "null";
};

}  // namespace byre
