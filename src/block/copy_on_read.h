// SPDX-License-Identifier: Apache-2.0
/// CopyOnRead: what is read from below a disk is written into it, so that it is read from there
/// once.
///
/// A part of a read that is not allocated in the device below (status() says so) is read in whole
/// clusters, as preferred_size() has them, and written back before the read is answered; zeros are
/// written back as zeros, without data.  What is allocated is read as without the filter.
/// A write-back that fails fails the read, as it does in QEMU: whoever reads a disk to fill it must
/// know.
///
/// Invariant: a write-back never covers a newer write.  It takes its clusters exclusively, and asks
/// again under the lock what is not allocated; writes, zeros and discards share theirs.
/// With a bottom only what the layers down to that one have is copied; what lies deeper, or
/// nowhere, is read and not copied.  A cluster of which a part is copied may be filled up by the
/// device. Cost: a status() for each run of a read; a copy needs a buffer of up to 1 MiB. Not here:
/// filling a whole disk.
#pragma once

#include <memory>
#include <optional>

#include "block/filter.h"
#include "coro/range_lock.h"

namespace byre {

class CopyOnRead final : public Filter {
 public:
  /// Refuses a device that cannot be written.
  static Result<void> fits(const Device& below);
  /// How many layers below `top` the node of that name is, 1 at least.
  static Result<uint32_t> depth_of(const Device& top, std::string_view node);
  /// It is abandoned when fits() says no.  `bottom`: the depth down to which is copied.
  static Result<std::unique_ptr<CopyOnRead>> make(Child below, std::optional<uint32_t> bottom = {});

  /// Copies what a read of the range would, whole clusters, and gives nothing back; how much that
  /// was is in bytes_copied().
  Task<void> fill(uint64_t offset, uint64_t length);
  /// What has nothing of its own in the range gets zeros, whatever lies below.
  Task<void> fill_with_zeros(uint64_t offset, uint64_t length);
  uint64_t cluster_size() const { return cluster_; }

  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  Task<void> resize(uint64_t size) override;

  uint64_t bytes_copied() const { return bytes_copied_; }
  /// Since the filter was made; fill() is none.
  uint64_t guest_requests() const { return guest_requests_; }

 private:
  CopyOnRead(Child below, std::optional<uint32_t> bottom);
  bool wants(const Extent& extent) const;
  RangeLock::Request lock(uint64_t offset, uint64_t length, RangeLock::Mode mode);
  Task<uint64_t> unwanted_until(uint64_t offset, uint64_t end);
  Task<void> copy_clusters(uint64_t offset, MutableBytes data, IoTag tag);
  Task<void> copy_extent(const Extent& extent, uint64_t at, IoTag tag, uint64_t wanted_at,
                         MutableBytes wanted);

  const uint64_t cluster_;
  const std::optional<uint32_t> bottom_;
  RangeLock locks_;  ///< In clusters.
  uint64_t bytes_copied_ = 0;
  uint64_t guest_requests_ = 0;
};

}  // namespace byre
