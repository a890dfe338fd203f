// SPDX-License-Identifier: Apache-2.0
/// Verify: two devices that must hold the same, one of them the reference; what QEMU calls
/// blkverify.
///
/// Every read reads both and compares; every change goes to both.  The first byte that differs is
/// an error that names both devices and its offset; so is a request that fails on one of them
/// alone. Later requests go on, so that a test can find out how far the damage reaches.
///
/// Invariant: what the two hold differs only through a fault of one of them.  For that
///   1. changes take their range exclusively and reads share it, so that overlapping requests take
///      effect in the same order on both;
///   2. a discard, whose outcome each device may choose, is followed by zeroing the range on both;
///   3. status() calls everything data: a claim that a range is zero or not allocated would keep
///      its reader from comparing it.
/// Both are of the same size, always.  Compressed writes are compressed on the tested device alone.
/// Cost: each request twice, side by side; a read needs a buffer of its size.
/// Not here: comparing all of two disks (that is a read of the whole of this one).
#pragma once

#include <memory>
#include <string_view>

#include "block/filter.h"
#include "coro/range_lock.h"

namespace byre {

class Verify final : public Filter {
 public:
  /// Refuses sizes that differ, and one that can be written beside one that cannot.
  static Result<void> fits(const Device& test, const Device& reference);
  /// Both devices are abandoned when fits() says no.
  static Result<std::unique_ptr<Verify>> make(Child test, Child reference);

  const Device& reference() const { return *reference_; }

  uint32_t alignment() const override;
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  Task<void> flush(IoTag tag) override;
  Task<Extent> status(uint64_t offset, uint64_t length) override;
  Task<void> allocate(uint64_t offset, uint64_t length) override;
  /// Both or neither: when the second fails the first gets its old size back.
  Task<void> resize(uint64_t size) override;
  bool new_space_is_zero() const override;
  bool can_grow() const override { return below().can_grow() && reference_->can_grow(); }
  Task<void> close() override;
  void abandon() override;

 private:
  struct Where {
    std::string_view what;
    uint64_t offset;
    uint64_t length;
  };
  Verify(Child test, Child reference);
  Result<void> check(Where where) const;
  Task<void> both(Task<void> on_test, Task<void> on_reference, Where where);
  Result<void> agreed(Result<void> test, Result<void> reference, Where where) const;
  Result<void> compare(Bytes test, Bytes reference, uint64_t offset) const;

  Child reference_;
  RangeLock locks_;  ///< In bytes.
};

}  // namespace byre
