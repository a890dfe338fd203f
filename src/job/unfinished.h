// SPDX-License-Identifier: Apache-2.0
/// A disk that is being made, and is not whole yet.
///
/// Whoever is killed in the middle of making a disk must not leave something that looks like one.
/// So the first sector of a new image, its header, stays in memory until all else is there; until
/// then the file begins with a sector that says so: a qcow2 header with an incompatible feature
/// that no reader has and whose name is the explanation.  byre, QEMU, and everyone else who follows
/// the specification refuse it with that name, and nobody takes it for a raw disk.
/// A raw disk has no header; where its file can grow, its length comes last (job/create.h).
///
/// BeingMade is the device to write such a disk through:
///  * The first sector is kept here until reveal().  It is read as it was written.
///  * The sector that says so goes down before the first change, durably where old contents could
///    still be taken for a disk (block devices) or where that was asked for.
///  * A flush does nothing: no order has to hold inside what is no disk yet.  reveal() syncs,
///    writes the sector, and syncs again; or does neither, where nobody asked for durability.
///  * Once `progress` is stopped, every change fails with Errc::cancelled.
/// close() closes nothing: the file belongs to whoever made this.
/// Not here: which file, and what becomes of it when something fails (job/create.h).
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "base/progress.h"
#include "base/units.h"
#include "block/filter.h"
#include "coro/semaphore.h"

namespace byre {

/// What the file begins with until the disk is whole: one sector.
std::vector<std::byte> unfinished_sector();
/// Does a file that begins with `start` begin with that?
bool is_unfinished(Bytes start);

class BeingMade final : public Forwarder {
 public:
  struct Options {
    bool keep_start = false;       ///< The first sector stays here until reveal().
    bool sync_start = false;       ///< The sector in its place is durable before anything changes.
    Progress* progress = nullptr;  ///< Null: nobody stops it.
  };
  /// `file` is empty, or its old contents are given up.
  BeingMade(Device& file, Options options);

  /// All is written: the disk is whole when this ends.
  Task<void> reveal(bool durable);
  /// Has anything been written?
  bool changed() const { return begun_; }

  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
  BYRE_CORO_WRAPPER Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    if (is_plain(offset)) return below().write(offset, data, options);
    return write_start(offset, data, options);
  }
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t offset, uint64_t length,
                                    ZeroOptions options) override {
    if (is_plain(offset)) return below().zero(offset, length, options);
    return zero_start(offset, length, options);
  }
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  Task<void> flush(IoTag tag) override;
  Task<void> allocate(uint64_t offset, uint64_t length) override;
  Task<void> resize(uint64_t size) override;
  Task<void> close() override { co_return; }
  void abandon() override {}

 private:
  Task<void> write_start(uint64_t offset, Bytes data, WriteOptions options);
  Task<void> zero_start(uint64_t offset, uint64_t length, ZeroOptions options);
  Task<void> begin_change();
  /// Is nothing to be done here about a change at `offset`?
  bool is_plain(uint64_t offset) const {
    return begun_ && in_start(offset, 1) == 0 &&
           !(options_.progress && options_.progress->stopped());
  }
  Result<void> check_stopped() const;
  /// The part of [offset, offset + length) that lies in the first sector.
  uint64_t in_start(uint64_t offset, uint64_t length) const;

  const Options options_;
  std::array<std::byte, kSectorSize> start_{};
  bool begun_ = false;  ///< From the first change on, which the sector goes before.
  Mutex begin_mutex_;
};

}  // namespace byre
