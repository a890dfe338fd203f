// SPDX-License-Identifier: Apache-2.0
/// Compare: do two disks hold the same bytes?
///
/// 1. The maps of both are walked side by side (status()) and cut into pieces that are alike in
///    each.  What reads as zeros on both sides is never read; where one side does, the other is
///    searched for a byte that is not zero.
/// 2. Up to `requests_max` coroutines each take a piece and read it in steps that stay in the
///    processor's cache.
/// 3. What one disk has beyond the end of the other must read as zeros.
/// The answer is the finding that lies first on the disk, whichever was found first: nothing begins
/// behind a finding, and what began before it is finished.
/// Invariant: progress never passes a finding.
/// Memory: two buffers of `step` bytes for each of `requests_max`.
/// Not here: opening (open.h), words and exit codes (cli/compare.cc).
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <vector>

#include "base/progress.h"
#include "base/units.h"
#include "block/device.h"
#include "coro/semaphore.h"
#include "io/buffer.h"

namespace byre {

struct CompareOptions {
  /// Sizes and what is allocated must be the same, too.
  bool strict = false;
  /// With `strict`: two ranges differ also when one of them is the last of its disk and the other
  /// is not, as qemu-img counts it.
  bool ends_count = false;
  /// Goes on behind a difference, and lists all of them.
  bool all = false;
  unsigned requests_max = 8;
  /// Pieces are as long as this at most; a failed read is told with the start of its piece.
  uint64_t piece_size = 2 * MiB;
  uint64_t step = 64 * KiB;
  /// Called before the part is looked at that only one of the disks has.
  std::function<void()> on_rest;
};

enum class Difference : uint8_t {
  none,
  size,        ///< With `strict`.
  allocation,  ///< With `strict`: another kind of range from `offset` on.
  content,     ///< The sector at `offset` holds other bytes.
};

struct DifferentRange {
  uint64_t start = 0;
  uint64_t length = 0;
};

struct CompareResult {
  Difference difference = Difference::none;
  uint64_t offset = 0;
  /// With `all`: what differs in content, in whole sectors.
  std::vector<DifferentRange> ranges;
};

/// Where it could not go on.
struct CompareFailure {
  enum class Stage : uint8_t { map, read };
  Stage stage = Stage::read;
  int side = 0;  ///< 0: the left disk.
  uint64_t offset = 0;
};

class Compare {
 public:
  /// The devices outlive it; `progress` counts bytes of the larger disk.
  Compare(Device& left, Device& right, CompareOptions options, Progress& progress);

  /// Errc::cancelled after progress.stop(); other errors are explained by failure().
  Task<CompareResult> run();
  const std::optional<CompareFailure>& failure() const { return failure_; }

 private:
  /// A range of a disk that is alike.
  struct Run {
    uint64_t end = 0;
    bool data = false;
    bool zero = false;
    bool present = false;  ///< Some layer says what it reads as.
    bool compressed = false;
    bool has_offset = false;
    bool is_last = false;
    bool operator==(const Run& other) const;
  };
  struct Piece {
    uint64_t at = 0;
    uint64_t length = 0;
    std::array<bool, 2> reads{};  ///< Which sides are read; the other reads as zeros.
    uint64_t sequence = 0;
  };
  struct Buffers {
    std::array<Buffer, 2> of;
  };

  Task<void> scan(uint64_t from, uint64_t to);
  Task<void> work();
  Task<std::optional<Piece>> next();
  Task<void> look(int side);
  Task<void> compare(Piece piece, Buffers& buffers);
  void note(const Piece& piece, uint64_t at, Bytes left, Bytes right);
  void found(Difference difference, uint64_t offset);
  void add_range(DifferentRange range);
  void failed(CompareFailure failure, Error error);
  void finish(uint64_t sequence);
  bool is_over() const { return over_; }

  std::array<Device*, 2> disks_;
  const CompareOptions options_;
  Progress& progress_;

  Mutex cursor_lock_;
  uint64_t position_ = 0;
  uint64_t end_ = 0;
  std::array<Run, 2> runs_;

  /// Pieces that have begun, in order, and not all before them have ended: progress tells how far
  /// everything is done, and so the same whichever ends first.
  struct Begun {
    uint64_t length = 0;
    bool ended = false;
  };
  std::deque<Begun> begun_;
  uint64_t first_begun_ = 0;  ///< The sequence of the first of them.

  bool over_ = false;  ///< Nothing more begins.
  CompareResult result_;
  std::optional<CompareFailure> failure_;
  Error error_;
};

}  // namespace byre
