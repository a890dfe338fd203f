// SPDX-License-Identifier: Apache-2.0
/// WholeSectors: a disk that ends inside a sector, as guests see it.
///
/// A disk has whole sectors of 512 bytes, for everyone: its size is rounded up, and the rest of the
/// last sector reads as zeros.  What lies below keeps its own end until somebody writes there; then
/// it gets the whole sector, first.
/// Cost: a virtual call, no frame, but for requests that touch the rest.
#pragma once

#include "base/units.h"
#include "block/filter.h"
#include "coro/semaphore.h"

namespace byre {

class WholeSectors final : public Filter {
 public:
  explicit WholeSectors(Child below) : Filter(std::move(below)), grow_mutex_(reactor().ready()) {}

  uint64_t size() const override { return round_up(below().size(), kSectorSize); }
  BYRE_CORO_WRAPPER Task<void> read(uint64_t offset, MutableBytes data,
                                    ReadOptions options) override {
    if (ends_below(offset, data.size())) return below().read(offset, data, options);
    return read_rest(offset, data, options.tag);
  }
  BYRE_CORO_WRAPPER Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    if (ends_below(offset, data.size())) return below().write(offset, data, options);
    return write_rest(offset, data, options);
  }
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t offset, uint64_t length,
                                    ZeroOptions options) override {
    if (ends_below(offset, length)) return below().zero(offset, length, options);
    return zero_rest(offset, length, options);
  }
  BYRE_CORO_WRAPPER Task<void> discard(uint64_t offset, uint64_t length,
                                       DiscardOptions options) override {
    if (ends_below(offset, length)) return below().discard(offset, length, options);
    return discard_rest(offset, length, options);
  }
  Task<Extent> status(uint64_t offset, uint64_t length) override;

 private:
  bool ends_below(uint64_t offset, uint64_t length) const {
    return offset + length <= below().size() || offset + length > size();
  }
  Task<void> grow();
  Task<void> read_rest(uint64_t offset, MutableBytes data, IoTag tag);
  Task<void> write_rest(uint64_t offset, Bytes data, WriteOptions options);
  Task<void> zero_rest(uint64_t offset, uint64_t length, ZeroOptions options);
  Task<void> discard_rest(uint64_t offset, uint64_t length, DiscardOptions options);

  Mutex grow_mutex_;
};

}  // namespace byre
