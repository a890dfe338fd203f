// SPDX-License-Identifier: Apache-2.0
/// Slice: a part of a device as a device of its own.
///
/// It neither grows nor shrinks.  What lies outside is neither read nor written.
#pragma once

#include "base/checked.h"
#include "block/filter.h"

namespace byre {

class Slice final : public Filter {
 public:
  /// [offset, offset + size) lies in `below`, and `offset` is a multiple of its alignment.
  Slice(Child below, uint64_t offset, uint64_t size)
      : Filter(std::move(below)), offset_(offset), size_(size) {
    BYRE_ASSERT(within(offset_, size_, Filter::below().size()) &&
                offset_ % Filter::below().alignment() == 0);
  }

  uint64_t size() const override { return size_; }
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    co_await check("read", offset, data.size());
    co_await below().read(offset_ + offset, data, options);
  }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    co_await check("write", offset, data.size());
    co_await below().write(offset_ + offset, data, options);
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override {
    co_await check("write zeroes", offset, length);
    co_await below().zero(offset_ + offset, length, options);
  }
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override {
    co_await check("discard", offset, length);
    co_await below().discard(offset_ + offset, length, options);
  }
  Task<Extent> status(uint64_t offset, uint64_t length) override {
    if (Result<void> fits = check("status", offset, length); !fits)
      co_return std::move(fits).error();
    co_return co_await below().status(offset_ + offset, length);
  }
  Task<void> allocate(uint64_t offset, uint64_t length) override {
    co_await check("allocate", offset, length);
    co_await below().allocate(offset_ + offset, length);
  }
  Task<void> resize(uint64_t) override {
    co_await fail(unsupported("a part of a disk has a fixed size"));
  }
  bool can_grow() const override { return false; }

 private:
  Result<void> check(std::string_view what, uint64_t offset, uint64_t length) const {
    if (within(offset, length, size_)) return {};
    return invalid(what, " of ", length, " bytes at ", offset, ": the disk has ", size_, " bytes");
  }

  uint64_t offset_;
  uint64_t size_;
};

}  // namespace byre
