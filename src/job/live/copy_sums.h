// SPDX-License-Identifier: Apache-2.0
/// CopySums: what each piece of a copy has to read as, while the copy is made; and which pieces
/// were compared with the target.
///
/// A piece is in one of these states; a write of it, at any moment, begins anew:
///
///   unknown -- note: before its bytes are written --> known -- wrote: the target has answered -->
///   open -- flushing: before the target is flushed --> due -- take --> (compared) -- checked -->
///
/// So what is compared was flushed after it was written.  Pieces that are zeros have no checksum:
/// their target is asked whether it reads as zeros.  What the copy leaves to the target's own
/// backing disk stays unknown.
/// Invariant: a piece that is open, due or checked has the checksum of what the target was given
/// last.
/// Cost: a checksum of each piece.  Memory: five bytes a piece at most (80 MiB for each TiB in
/// pieces of 64 KiB); where all are zeros or nothing is known, less than one.
/// Not here: reading the target (copy_check.h); who keeps others from writing a piece while it is
/// compared.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>

#include "base/bytes.h"
#include "block/cluster_set.h"

namespace byre {

class CopySums {
 public:
  struct Pieces {
    uint64_t first = 0;
    uint64_t end = 0;
  };

  /// Of a copy of `size` bytes.
  CopySums(uint64_t size, uint64_t piece) : size_(size), piece_(piece) {}

  uint64_t piece() const { return piece_; }
  /// All pieces.
  Pieces all() const { return {.first = 0, .end = (size_ + piece_ - 1) / piece_}; }
  uint64_t begin_of(uint64_t piece) const { return piece * piece_; }
  /// Of the last piece the end of the disk.
  uint64_t end_of(uint64_t piece) const { return std::min(size_, (piece + 1) * piece_); }

  /// Notes pieces of which the parts come in the order of the disk, each piece from its begin to
  /// its end.
  class Noter {
   public:
    /// Null: nothing is noted.
    explicit Noter(CopySums* sums) : sums_(sums) {}
    void bytes(uint64_t at, Bytes data);
    void zeros(uint64_t at, uint64_t length);

   private:
    void add(uint64_t at, uint64_t length, uint32_t sum, bool zeros);

    CopySums* const sums_;
    uint64_t filled_ = 0;  ///< Of the piece that is not yet whole.
    uint32_t sum_ = 0;
    bool is_zero_ = true;
  };
  /// The same for whole pieces.
  void note(uint64_t at, Bytes data) { Noter(this).bytes(at, data); }
  void note_zeros(uint64_t at, uint64_t length) { Noter(this).zeros(at, length); }

  /// The target is about to be written.
  void forget(Pieces pieces);
  /// The target has what was noted of these.
  void wrote(Pieces pieces);
  /// The target will be flushed.
  void flushing();

  /// The next pieces that are to be compared, from `from` on and then from 0: all of them zeros,
  /// as many as there are, or none, `most` bytes or one piece.  Whoever takes them gives them back
  /// by checked() or put_back().
  struct Taken : Pieces {
    bool zeros = false;
  };
  std::optional<Taken> take(uint64_t from, uint64_t most);
  /// Of the pieces that were taken, those from `first` on that nobody has written since.
  Pieces still(const Taken& taken, uint64_t first) const;
  bool is_right(uint64_t piece, Bytes data) const;
  void checked(Pieces pieces);
  /// They could not be read.
  void put_back(const Taken& taken);

  /// Bytes that are known and not yet compared, but for what is taken.
  uint64_t unchecked_bytes() const { return (open_.count() + due_.count()) * piece_; }
  uint64_t checked_bytes() const { return std::min(size_, checked_.count() * piece_); }

 private:
  static constexpr uint64_t kChunk = 4096;
  void set(uint64_t piece, uint32_t sum);

  const uint64_t size_;
  const uint64_t piece_;
  std::unordered_map<uint64_t, std::unique_ptr<std::array<uint32_t, kChunk>>> sums_;
  ClusterSet known_;
  ClusterSet zeros_;  ///< Of those that are known.
  ClusterSet open_;
  ClusterSet due_;
  ClusterSet checked_;
};

}  // namespace byre
