// SPDX-License-Identifier: Apache-2.0
/// SnapshotAccess: the disk as it was when a copy-before-write filter was made, as a Device that is
/// only read.  A discard says that nobody needs that part any more (CopyBeforeWrite::let_go()).
///
/// Its edge leads to the filter and stays there (Role::name): what is put between the filter and
/// the guest later is no business of the snapshot.  A drain of the disk holds its readers too.
/// Invariant: that of the filter (copy_before_write.h): bytes of that moment, or an error.
/// Cost: that of the device which has the bytes.
/// Not here: how they are kept.
#pragma once

#include <memory>

#include "block/copy_before_write.h"

namespace byre {

class SnapshotAccess final : public Device {
 public:
  /// `below` leads to a CopyBeforeWrite; anything else is refused.
  static Result<void> fits(const Device& below);
  /// fits() said yes.
  explicit SnapshotAccess(Child below);

  uint64_t size() const override { return filter_.snapshot_size(); }
  bool writable() const override { return false; }
  uint32_t alignment() const override;
  uint32_t preferred_size() const override;
  const std::string& name() const override { return filter_.name(); }
  Reactor& reactor() override { return filter_.reactor(); }
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  Task<void> flush(IoTag tag) override;
  Task<Extent> status(uint64_t offset, uint64_t length) override;
  Task<void> close() override;
  void abandon() override;

 private:
  Child below_;
  CopyBeforeWrite& filter_;
};

}  // namespace byre
