// SPDX-License-Identifier: Apache-2.0
/// MirrorFilter: above a disk in use that is copied to another device: knows which pieces of it the
/// target has not got yet, and copies them.
///
/// A piece is dirty until the target has it.  At first all are.
///   background:     a guest's change goes down, and then makes its pieces dirty, before it is
///                   answered.
///   write-blocking: a guest's write or zeros go to both devices before they are answered, under an
///                   exclusive lock on the pieces; what it covers wholly is clean then.  If the
///                   target fails, the pieces are dirty, and the guest does not notice.
/// A discard makes its pieces dirty in either mode: what reads there afterwards is for the disk
/// below to say.
/// take() makes pieces clean and hands them to whoever copies; then copy() reads them, under the
/// same lock; pieces that could not be copied are dirty again.
/// Invariant (docs/engine.md, J3): with no request under way, each piece that is neither dirty nor
/// taken reads the same on both devices: a piece becomes clean before the disk is read, and dirty
/// after it has changed.
/// With `above` only what the layers above a base have is copied, and the target shows the base
/// where it has nothing: pieces of which the target never got anything, and which read from the
/// base, are skipped.
/// With `sums` it notes what each piece of the target is given.  The target is then written in
/// whole pieces, or not at all: a guest's write to both devices copies the pieces that it touches.
/// Cost: background: a frame and a few bits for each change.  Memory: a bit for each piece that is
/// dirty, and one for each that the target got (ClusterSet); with `sums` theirs (copy_sums.h).
/// Not here: when what is copied (mirror.h), durability of the target, comparing (copy_check.h).
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "block/cluster_set.h"
#include "block/filter.h"
#include "coro/event.h"
#include "coro/range_lock.h"
#include "coro/semaphore.h"
#include "job/live/copy_sums.h"
#include "job/live/job.h"

namespace byre {

class CopyCheck;

enum class MirrorMode : uint8_t { background, write_blocking };

struct MirrorFilterOptions {
  MirrorMode mode = MirrorMode::background;
  uint64_t granularity =
      0;  ///< Of pieces, a power of two; 0: a cluster of the target, within limits.
  uint64_t request_size = 1 * MiB;  ///< So much is read at a time, a piece at least.
  bool unmap = true;                ///< Zeros need no space in the target.
  bool target_is_zero = false;      ///< All of the target reads as zeros at first.
  /// The target is an image whose disk below is put there later: a piece of it is then whole, or
  /// the target has nothing of it.
  bool backing_comes_later = false;
  /// Layers above the base; 0: all of the disk is copied.
  uint32_t above = 0;
  /// Of those, the ones below the disk itself: where one ends, the base does not show.
  std::vector<const Device*> between = {};
  bool sums = false;  ///< Note what the target is given.
};

class MirrorFilter final : public Filter {
 public:
  /// Refuses a target that is no copy's place, with what to do.
  static Result<void> fits(const Device& source, const Device& target,
                           const MirrorFilterOptions& options);
  /// fits() said yes.
  MirrorFilter(Child source, Child target, MirrorFilterOptions options);

  MirrorMode mode() const { return mode_; }
  void set_mode(MirrorMode mode) { mode_ = mode; }
  uint64_t granularity() const { return granularity_; }
  Device& target() const { return *target_; }
  Child& target_edge() { return target_; }

  /// Bytes of dirty pieces.
  uint64_t dirty_bytes() const { return dirty_.count() * granularity_; }
  bool is_dirty() const { return !dirty_.empty(); }
  /// Nothing is to be copied: for a copy that begins with what changes from now on.
  void forget_dirty() { dirty_.erase(0, pieces_); }
  /// Notified when pieces have become dirty; null: nobody waits.
  void set_changed(Event* event) { changed_ = event; }

  using Pieces = CopySums::Pieces;
  /// The next dirty ones from `from` on, and then from 0; none when none is.  As many as one
  /// request, or more that are zeros.
  Task<std::optional<Pieces>> take(uint64_t from);
  /// What a copy has come to; `side` says which device an error is of.
  struct Copied {
    Error error;
    JobSide side = JobSide::source;
    uint64_t bytes = 0;  ///< That were read or zeroed.
  };
  Task<Copied> copy(Pieces pieces);

  /// What the target was given, as long as none of `locks` is held; null without
  /// MirrorFilterOptions::sums.
  CopySums* sums() const { return sums_.get(); }
  RangeLock& locks() { return locks_; }
  /// From here on a guest that writes to both devices compares more pieces than it wrote, as long
  /// as there are any: so there are fewer and fewer.  Null: no longer.
  void let_guests_help(CopyCheck* check) { helped_ = check; }

  /// Since the filter was made.
  uint64_t guest_requests() const { return guest_requests_; }

  BYRE_CORO_WRAPPER Task<void> read(uint64_t offset, MutableBytes data,
                                    ReadOptions options) override {
    ++guest_requests_;
    return below().read(offset, data, options);
  }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  /// Refused: the target would not follow.
  Task<void> resize(uint64_t size) override;
  Task<void> close() override;
  void abandon() override;

 private:
  Pieces around(uint64_t offset, uint64_t length) const;
  Pieces within(uint64_t offset, uint64_t length) const;
  void mark(uint64_t offset, uint64_t length);
  void mark(Pieces pieces);
  bool reads_from_base(uint64_t at, const Extent& extent) const;
  uint64_t end_of_layers(uint64_t at, uint64_t end) const;
  bool may_skip(uint64_t at, const Extent& extent) const;
  bool gives_whole_pieces() const { return options_.backing_comes_later || sums_; }
  Task<void> choose_whole_pieces(uint64_t at, uint64_t end);
  bool reads_so_at_first(uint64_t at, const Extent& extent) const;
  Task<void> help(uint64_t offset, uint64_t length);
  Task<Copied> copy_locked(Pieces pieces);
  Task<Extent> look(uint64_t at, uint64_t end);
  Task<void> write_both(uint64_t offset, Bytes data, WriteOptions options);
  Task<void> write_and_copy(Pieces pieces, uint64_t offset, Bytes data, WriteOptions options);
  Task<void> zero_both(uint64_t offset, uint64_t length, ZeroOptions options);
  Task<void> finish_both(Pieces pieces, Result<void> done);

  Child target_;
  const MirrorFilterOptions options_;
  const uint64_t granularity_;
  const uint64_t pieces_;
  MirrorMode mode_;
  ClusterSet dirty_;
  ClusterSet given_;                ///< Of which the target got something.
  RangeLock locks_;                 ///< In pieces.
  Mutex cursor_;                    ///< One take() at a time.
  std::unique_ptr<CopySums> sums_;  ///< Or none.
  CopyCheck* helped_ = nullptr;
  Event* changed_ = nullptr;
  uint64_t guest_requests_ = 0;
};

}  // namespace byre
