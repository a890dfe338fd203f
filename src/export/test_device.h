// SPDX-License-Identifier: Apache-2.0
/// TestDevice: a disk in memory for the tests of this layer.
///
/// Requests take a time drawn from the reactor, so that they end out of order; a opener can hold
/// them all; each kind can be made to fail.  What a flush or FUA has made durable is kept beside
/// what was written.  Extents of 4 KiB are data, zeros or holes as their bytes and discards say.
#pragma once

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

#include "block/device.h"
#include "coro/event.h"

namespace byre {

class TestDevice final : public Device {
 public:
  static constexpr uint64_t kExtent = 4096;

  TestDevice(Reactor& reactor, uint64_t size)
      : opener(reactor.ready()),
        bytes(size),
        durable(size),
        allocated(div_ceil(size, kExtent)),
        reactor_(reactor) {
    opener.set();
  }

  uint64_t size() const override { return bytes.size(); }
  bool writable() const override { return can_write; }
  uint32_t alignment() const override { return align; }
  uint32_t preferred_size() const override { return preferred; }
  Capabilities capabilities() const override { return {.zeroes_fast = fast_zero, .fua = true}; }
  const std::string& name() const override { return name_; }
  Reactor& reactor() override { return reactor_; }

  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions) override {
    ++reads;
    co_await begin(fail_read, "read");
    copy(data, Bytes(bytes).subspan(offset, data.size()));
  }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    ++writes;
    co_await begin(fail_write, "write");
    copy(MutableBytes(bytes).subspan(offset, data.size()), data);
    mark_allocated(offset, data.size(), true);
    if (options.fua) keep(offset, data.size());
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override {
    ++zeroes;
    last_zero = options;
    if (options.no_fallback && !fast_zero) co_await fail(unsupported("zero: not fast here"));
    co_await begin(fail_write, "zero");
    fill_zero(MutableBytes(bytes).subspan(offset, length));
    mark_allocated(offset, length, !options.may_unmap);
    if (options.fua) keep(offset, length);
  }
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override {
    ++discards;
    co_await begin(fail_discard, "discard");
    const uint64_t first = round_up(offset, kExtent);
    const uint64_t end = round_down(offset + length, kExtent);
    if (first < end) {
      fill_zero(MutableBytes(bytes).subspan(first, end - first));
      mark_allocated(first, end - first, false);
    }
    if (options.fua) keep(offset, length);
  }
  Task<void> flush(IoTag) override {
    ++flushes;
    const std::vector<std::byte> begun = bytes;  // What was answered before is in here.
    co_await begin(fail_flush, "flush");
    durable = begun;
  }
  Task<Extent> status(uint64_t offset, uint64_t length) override {
    ++statuses;
    co_await begin(fail_status, "status");
    Extent extent = at(offset);
    extent.length = std::min(length, round_up(offset + 1, kExtent) - offset);
    co_return extent;
  }
  Task<void> close() override { co_return; }

  bool can_write = true;
  bool fast_zero = true;
  uint32_t align = 1;
  uint32_t preferred = 65536;
  int64_t delay_ns_max = 0;
  Event opener;  ///< Requests wait while it is not set.
  int fail_read = 0, fail_write = 0, fail_discard = 0, fail_flush = 0, fail_status = 0;
  std::vector<std::byte> bytes, durable;
  std::vector<bool> allocated;
  size_t reads = 0, writes = 0, zeroes = 0, discards = 0, flushes = 0, statuses = 0;
  size_t running = 0, running_max = 0;
  ZeroOptions last_zero;

 private:
  Task<void> begin(int error, std::string_view what) {
    running_max = std::max(running_max, ++running);
    if (delay_ns_max > 0)
      co_await reactor_.sleep(
          static_cast<int64_t>(reactor_.random() % static_cast<uint64_t>(delay_ns_max)));
    while (!opener.is_set()) co_await opener.wait();
    --running;
    if (error != 0) co_await fail(errno_error(error, cat("/secret/path/disk: ", what)));
  }
  Extent at(uint64_t offset) const {
    const uint64_t index = offset / kExtent;
    const uint64_t first = index * kExtent;
    const bool zero = is_zero(Bytes(bytes).subspan(first, std::min(kExtent, bytes.size() - first)));
    const bool here = allocated[index];
    return {.data = here, .zero = zero, .allocated = here};
  }
  void mark_allocated(uint64_t offset, uint64_t length, bool value) {
    for (uint64_t i = offset / kExtent; i < div_ceil(offset + length, kExtent); ++i)
      allocated[i] = value;
  }
  void keep(uint64_t offset, uint64_t length) {
    copy(MutableBytes(durable).subspan(offset, length), Bytes(bytes).subspan(offset, length));
  }

  Reactor& reactor_;
  std::string name_ = "test disk";
};

}  // namespace byre
