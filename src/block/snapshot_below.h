// SPDX-License-Identifier: Apache-2.0
/// SnapshotBelow: what the target of a copy-before-write filter shows of the disk that is kept,
/// where it lies over that disk: the disk as it was when the filter was made.
///
///   guest -> [filter] - filtered ------------------------------> [disk]
///               \- other -> [target] - backing -> [this] - other -> [disk]
/// A reader of the target who finds a cluster unallocated would read the disk itself, which guests
/// may have changed since he looked.  Here he reads the snapshot (copy_before_write.h): what was
/// not changed is on the disk, and what was is in the target by then.  That is all that a pull
/// backup needs: its clients read the target as if it held everything.
/// The edge leads to the disk, so a drain of the disk holds the target's readers as well, and the
/// graph has no circle; only the requests go through the filter.
/// Invariant: a read gives bytes of the moment, or fails: also when the snapshot is broken, has
/// ended, or leaves the range out.  A read waits for I/O alone, never for a lock or a copy: whoever
/// reads the target may hold what a copy into it needs.
/// Cost: a frame for each read.
/// Not here: when it comes and goes (CopyBeforeWrite::enter(), close()).
#pragma once

#include <cstdint>
#include <string>

#include "block/graph.h"
#include "coro/event.h"

namespace byre {

class CopyBeforeWrite;

class SnapshotBelow final : public Device {
 public:
  /// The edge by which `target` shows `disk`, through filters and through disks that nobody else
  /// uses; null: it does not.
  static Child* edge_that_shows(Device& target, const Device& disk);
  /// What users know: the disk in whose place the device is, or itself.
  static Device& stands_for(Device& device);

  SnapshotBelow(Child disk, CopyBeforeWrite& filter);

  /// From here on reads fail; those that are under way have ended when this does.
  Task<void> end();
  /// The same where none is under way any more.
  void forget_filter() { filter_ = nullptr; }
  const Child& disk() const { return disk_; }

  uint64_t size() const override { return size_; }
  bool writable() const override { return false; }
  uint32_t alignment() const override { return disk_->alignment(); }
  uint32_t preferred_size() const override { return disk_->preferred_size(); }
  const std::string& name() const override { return disk_->name(); }
  Reactor& reactor() override { return disk_->reactor(); }
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  Task<void> flush(IoTag tag) override;
  Task<Extent> status(uint64_t offset, uint64_t length) override;
  BYRE_CORO_WRAPPER Task<void> close() override { return disk_.close(); }
  void abandon() override { disk_.abandon(); }

 private:
  class Reading;
  Error ended() const;

  Child disk_;
  const uint64_t size_;  ///< At the moment.
  CopyBeforeWrite* filter_;
  uint64_t readings_ = 0;
  Event idle_;
};

}  // namespace byre
