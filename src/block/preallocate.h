// SPDX-License-Identifier: Apache-2.0
/// Preallocate: a file that grows in large steps, so that its blocks lie together and a growing
/// image seldom waits for the file system.
///
/// A request that passes the end of the file has it extended first: to `prealloc_size` behind its
/// own end, rounded up to `prealloc_align`.  size() is what was written, as without the filter; the
/// rest is cut off by close(), and by a drain (drain.h), after which others may write the file.
/// After a crash it stays: behind a qcow2 image nothing reads it, but a raw disk is longer then.
/// Where the extension fails
/// (a full disk), the request goes down as it is, and says itself whether there is space.  A device
/// that cannot grow is left alone.
///
/// Invariant: what lies between size() and the end of the file reads as zeros, or a write that
/// failed has left it (leftovers_), and resize() cuts it off before it is part of the disk. Cost:
/// one allocation a step; requests that pass the end meanwhile wait for it. Not here: preallocating
/// an image or a disk when it is made (qcow2/ops/preallocate.h).
#pragma once

#include <memory>

#include "base/units.h"
#include "block/filter.h"
#include "coro/semaphore.h"

namespace byre {

struct PreallocateOptions {
  uint64_t prealloc_align = 1 * MiB;
  uint64_t prealloc_size = 128 * MiB;  ///< 0: nothing but the rounding.
};
Result<void> check_preallocate(const PreallocateOptions& options);

class Preallocate final : public Filter {
 public:
  /// `options` have passed check_preallocate().
  explicit Preallocate(Child below, PreallocateOptions options = {});

  uint64_t size() const override { return written_; }
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  Task<Extent> status(uint64_t offset, uint64_t length) override;
  Task<void> allocate(uint64_t offset, uint64_t length) override;
  Task<void> resize(uint64_t size) override;
  Task<void> close() override;
  /// Cuts the rest off: whoever comes to write the file itself has it to the end that it had.
  Task<void> settle() override;

 private:
  Result<void> check_inside(std::string_view what, uint64_t offset, uint64_t length) const;
  Task<void> extend(uint64_t end);
  void wrote(uint64_t end, const Result<void>& result);
  Task<void> cut_rest();

  const PreallocateOptions options_;
  uint64_t written_;       ///< The end of what was written.
  bool extended_ = false;  ///< The file is longer than that, by us.
  bool leftovers_ = false;
  Mutex mutex_;  ///< Who changes the size of the file.
};

}  // namespace byre
