// SPDX-License-Identifier: Apache-2.0
/// Commit: what an overlay, and the images between it and a disk below, have, goes down into that
/// disk.
///
/// Offline: nobody else uses the chain, and the base was opened for writing with it
/// (ImageOptions::writable_below).
///   1. The base grows, where it is smaller than the overlay.
///   2. What the overlay shows from above the base is copied: data as data, zeros (and what an
///   image
///      between that is shorter hides of the base) as zeros.
///   3. The base is flushed.
///   4. Unless the overlay is to keep them, all its entries go, at once (qcow2/ops/empty.h).
/// Invariant (docs/engine.md, O9): at each moment, a power loss included, the overlay reads what it
/// did: until the end of step 4 through its own entries, which nothing has changed; then through
/// the base, which holds the same durably.
/// A failure or a stop leaves the overlay as it was, and the base sound, with a part of the copy in
/// it.  What cannot be read of the overlay is an error, never zeros.
/// Images between overlay and base, and other overlays of either, show other contents afterwards.
/// Cost: each byte that is above the base once.  Memory: that of the loop (copy.h).
/// Not here: bitmaps (those of the base record what is written, those of the overlay stay); which
/// disk is the base.
#pragma once

#include "job/copy.h"
#include "qcow2/image.h"

namespace byre {

struct CommitOptions {
  uint32_t depth = 1;  ///< Of the base below the overlay.
  /// Step 4.  Only where the base is the next disk: one between would show what it has instead.
  bool empty = true;
  /// As qemu-img has it: clusters of the base (4 KiB at least, 64 KiB of a raw one) are copied as a
  /// whole, and as data where one of them is not alike throughout.
  bool whole_clusters = false;
  bool fua = false;   ///< Every write is durable before it counts as done.
  uint64_t rate = 0;  ///< Bytes a second; 0: no limit.
  unsigned requests_max = 16;
  uint64_t request_size = 2 * MiB;
};

class Commit final : private CopySource {
 public:
  /// Both outlive it.  Errc::invalid when there is no disk at that depth, or the overlay could not
  /// be emptied over it; Errc::read_only when it is not open for writing.
  static Result<std::unique_ptr<Commit>> make(Image& overlay, Progress& progress,
                                              CommitOptions options);

  /// Errc::cancelled after Progress::stop().
  Task<void> run();
  Device& base() const { return base_; }
  /// The disks between, whose contents change.
  const std::vector<Device*>& between() const { return between_; }
  /// Did the overlay, or what it reads from, make it fail?
  bool source_failed() const { return copy_.source_failed(); }
  std::string waiting_for() const { return copy_.waiting_for(); }

 private:
  Commit(Image& overlay, std::vector<Device*> between, Device& base, Progress& progress,
         CommitOptions options);
  uint64_t size() const override { return overlay_.size(); }
  Task<Stretch> look(uint64_t at) override;
  Task<Stretch> look_once(uint64_t at);
  uint64_t limit(uint64_t at, uint64_t length, size_t depth) const;
  Task<Parts> read(uint64_t at, MutableBytes data) override;
  std::string names() const override { return byre::quoted(overlay_.name()); }

  Image& overlay_;
  const std::vector<Device*> between_;
  Device& base_;
  Progress& progress_;
  const CommitOptions options_;
  Copy copy_;
};

}  // namespace byre
