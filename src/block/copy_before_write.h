// SPDX-License-Identifier: Apache-2.0
/// CopyBeforeWrite: a filter that keeps what a disk held when the filter was made: before a write
/// changes a cluster for the first time, its old contents are copied to another device, the target.
///
/// The snapshot is what it keeps; snapshot_access.h shows it as a Device.  A cluster of it is in
/// the target once it was copied, and in `file` (the device that is filtered) until then.
///
///   1. A write, a zero, a discard or a smaller size waits here, before anything below sees it,
///      until each cluster that it touches is in the target.  Requests of the guest to clusters
///      that are there already wait for nothing.
///   2. A copy takes its clusters exclusively.  A read of the snapshot takes no lock: it reads from
///      `file`, and looks again; a cluster that was not copied even then was not changed while it
///      was read, and what was copied is read once more, from the target, where it never changes.
///   3. A copy that fails, or takes longer than the timeout, fails the guest's request and leaves
///      the snapshot whole (CbwError::break_guest_write); or the request goes on, nothing is copied
///      from then on, and every read of the snapshot fails, also one that is under way.
///
/// Invariant: what a read of the snapshot gives was there when the filter was made, byte for byte,
/// or the read fails.  A cluster is marked as copied when the target has answered, never before.
/// Where the disk lies below the target, who reads the target gets the snapshot as well: what shows
/// of the disk goes through a SnapshotBelow (snapshot_below.h) as long as the filter is there.
/// Who puts the filter above a disk in use makes it in a drain of its own (drain.h): nobody may
/// write past it.  Who removes it, or changes an image below it as a whole (Image::resize(),
/// applying a snapshot: no requests that it sees), ends those who read the snapshot first. Locks:
/// requests wait here above the engine, before any range lock, and hold nothing when they go on: so
/// a copy may wait for the engine, and the engine never waits for a copy. Cost: once copied, a look
/// into a set for each cluster of a write; no frame.  Memory: a bit for each cluster that was
/// copied (in chunks of 512 bytes), and a buffer of up to 1 MiB a copy. Not here: durability (the
/// snapshot ends with the process), copying the rest (a backup job).
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "block/cluster_set.h"
#include "block/filter.h"
#include "coro/range_lock.h"
#include "coro/scope.h"

namespace byre {

/// What breaks when a copy fails.
enum class CbwError : uint8_t { break_guest_write, break_snapshot };

struct CopyBeforeWriteOptions {
  CbwError on_error = CbwError::break_guest_write;
  int64_t timeout_ns = 0;         ///< Of a copy; 0: none.
  uint64_t cluster_size_min = 0;  ///< A power of two, or 0.
  /// The parts of the disk that are to be kept; null: all.  Gives the first such byte from `from`
  /// on, and where that part ends; nullopt: none follows.
  struct Part {
    uint64_t offset;
    uint64_t end;
  };
  std::function<std::optional<Part>(uint64_t from)> wanted = {};
  bool compressed = false;  ///< Old contents become compressed clusters of the target.
  /// Is told of each range that a guest is about to change, from the first change on.
  std::function<void(uint64_t offset, uint64_t length)> on_change = {};
  /// Is told what the target is about to get, before each attempt: whole clusters, up to the end of
  /// the disk; no data: so many zeros.
  std::function<void(uint64_t offset, uint64_t length, Bytes data)> on_copy = {};
  /// Is told that a copy has failed, and with it the snapshot (CbwError::break_snapshot).
  std::function<void()> on_break = {};
};

class SnapshotBelow;

class CopyBeforeWrite final : public Filter {
 public:
  /// Refuses a target that is too small or cannot be written, if the disk can be.
  static Result<void> fits(const Device& file, const Device& target,
                           const CopyBeforeWriteOptions& options);
  /// fits() said yes.
  CopyBeforeWrite(Child file, Child target, const CopyBeforeWriteOptions& options);
  ~CopyBeforeWrite() override;
  /// Puts the filter, where `filter` leads, between the disk and its other parents.  Where the
  /// target shows the disk it shows the snapshot from then on.  `drain` holds the disk.
  Task<void> enter(const Drain& drain, Child& filter);
  /// Of a filter that nobody uses yet, over a disk that nobody else writes: only what the target
  /// shows changes.
  Task<void> show_snapshot_in_target();
  /// From here on nobody else may write the disk or the target; Errc::busy when somebody can.
  Result<void> claim();

  uint64_t cluster_size() const { return cluster_; }
  uint64_t bytes_copied() const { return bytes_copied_; }
  Device& target() const { return *target_; }

  /// Copies what of the range is not in the target yet, as a change of it would.
  struct Kept {
    Error error;
    bool of_target = false;  ///< The error is the target's.
  };
  Task<Kept> keep(uint64_t offset, uint64_t length);
  /// Of [offset, end) the first byte that is not in the target yet; `end` without one.
  uint64_t next_missing(uint64_t offset, uint64_t end) const;
  /// Nobody needs whole clusters of the range any more: they are no part of the snapshot from here
  /// on, guests change them without a copy, and the target gives back what it has of them.  Who
  /// reads them meanwhile gets an error.
  Task<void> let_go(uint64_t offset, uint64_t length);
  /// The range is no part of the snapshot.
  void leave_out(uint64_t offset, uint64_t length);
  /// Nobody needs the snapshot any more: what guests change goes on, whatever the target does.
  void break_snapshot(Error why) {
    if (!broken_) broken_ = std::move(why);
  }
  /// The same, and who reads the target over the disk has ended, or been refused: from here on
  /// guests may write past the filter.
  Task<void> end_snapshot(Error why);
  /// Null while the snapshot is whole.
  const Error& broken() const { return broken_; }

  // The snapshot.
  uint64_t snapshot_size() const { return size_; }
  Task<void> read_snapshot(uint64_t offset, MutableBytes data, IoTag tag);
  /// As that of the disk and the target; but nothing says where the bytes are: they may move.
  Task<Extent> snapshot_status(uint64_t offset, uint64_t length);

  /// Since the filter was made; those for the snapshot are not of them.
  uint64_t guest_requests() const { return guest_requests_; }

  BYRE_CORO_WRAPPER Task<void> read(uint64_t offset, MutableBytes data,
                                    ReadOptions options) override {
    ++guest_requests_;
    return below().read(offset, data, options);
  }
  BYRE_CORO_WRAPPER Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    ++guest_requests_;
    if (on_change_) on_change_(offset, data.size());
    if (is_kept(offset, data.size())) return below().write(offset, data, options);
    return write_after_copy(offset, data, options);
  }
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t offset, uint64_t length,
                                    ZeroOptions options) override {
    ++guest_requests_;
    if (on_change_) on_change_(offset, length);
    if (is_kept(offset, length)) return below().zero(offset, length, options);
    return zero_after_copy(offset, length, options);
  }
  BYRE_CORO_WRAPPER Task<void> discard(uint64_t offset, uint64_t length,
                                       DiscardOptions options) override {
    ++guest_requests_;
    if (on_change_) on_change_(offset, length);
    if (is_kept(offset, length)) return below().discard(offset, length, options);
    return discard_after_copy(offset, length, options);
  }
  Task<void> resize(uint64_t size) override;
  /// Waits for copies whose time was over.
  Task<void> settle() override;
  /// What the target showed of the disk it shows again, if nobody reads it; else its reads fail.
  Task<void> close() override;
  void abandon() override;

 private:
  struct Clusters {
    uint64_t first;
    uint64_t end;
    bool empty() const { return first >= end; }
  };
  struct Attempt;
  Clusters clusters_of(uint64_t offset, uint64_t length) const;
  bool is_kept(uint64_t offset, uint64_t length) const;
  Task<void> preserve(uint64_t offset, uint64_t length);
  Task<void> copy(Clusters clusters, bool* of_target = nullptr);
  Task<void> copy_run(Clusters run, bool* of_target);
  Task<uint64_t> zeros_from(uint64_t at, uint64_t length, uint64_t end);
  Task<void> copy_in_time(Clusters clusters);
  Task<void> attempt(std::shared_ptr<Attempt> attempt, Clusters clusters);
  Task<void> write_after_copy(uint64_t offset, Bytes data, WriteOptions options);
  Task<void> zero_after_copy(uint64_t offset, uint64_t length, ZeroOptions options);
  Task<void> discard_after_copy(uint64_t offset, uint64_t length, DiscardOptions options);
  Task<uint64_t> read_piece(uint64_t offset, MutableBytes data, IoTag tag);
  uint64_t end_of_run(bool kept, uint64_t offset, uint64_t end) const;
  Result<void> check_readable(uint64_t offset, uint64_t end) const;
  Result<void> check_whole() const;
  std::optional<Move> move_for_target();
  SnapshotBelow& below_target() const;
  Task<void> show_disk_again();

  Child target_;
  const uint64_t size_;  ///< Of the snapshot.
  const uint64_t cluster_;
  const CbwError on_error_;
  const int64_t timeout_ns_;
  const bool compressed_;
  const std::function<void(uint64_t, uint64_t)> on_change_;
  const std::function<void(uint64_t, uint64_t, Bytes)> on_copy_;
  const std::function<void()> on_break_;
  ClusterSet kept_;      ///< In the target, or unwanted.
  ClusterSet unwanted_;  ///< Clusters that are no part of the snapshot.
  Error broken_;         ///< Why there is no snapshot any more.
  RangeLock locks_;      ///< In clusters; of copies.
  Scope late_;           ///< Copies that are under way, where a timeout is set.
  uint64_t bytes_copied_ = 0;
  // Of a target over the disk.
  Child below_target_;      ///< To the SnapshotBelow; or none.
  Child* shows_ = nullptr;  ///< The edge that leads there.
  Child showed_;            ///< Where it led before, unless to the disk of the SnapshotBelow.
  uint64_t guest_requests_ = 0;
  bool lets_go_ = false;  ///< Parts of the snapshot were let go.
};

}  // namespace byre
