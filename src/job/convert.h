// SPDX-License-Identifier: Apache-2.0
/// Convert: copies the contents of one or more disks, one behind the other, into a target.
///
/// 1. One reader of the map at a time asks the source what comes next (status()) and cuts it into
///    pieces; zeros are never read.
/// 2. Up to `requests_max` coroutines each take a piece, read it, look for zeros in it, and write
///    what is left.  With `in_order` writes are issued in the order of the disk (they still
///    overlap), so that an image that allocates as it is written comes out in that order.
/// 3. What reads as zeros is left out of a target that reads as zeros, and zeroed in any other.
/// What
///    the target has beyond the end of the sources is zeroed, too.
/// 4. One flush at the end.  A failure or stop() ends it as soon as what is under way has ended.
/// Memory: requests_max * request_size.
/// Not here: opening and creating (open.h, create.h), who may be target and source at once.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/units.h"
#include "block/device.h"
#include "coro/event.h"
#include "coro/scope.h"
#include "coro/semaphore.h"
#include "io/buffer.h"

namespace byre {

struct ConvertOptions {
  /// Runs of zero bytes of this length and alignment are not written; 0: everything is written, and
  /// what the source has no data for as well.
  uint64_t sparse_size = 4 * KiB;
  /// Whatever has not been written reads as zeros in the target.
  bool target_reads_zero = false;
  /// The target has a backing disk that already holds what the sources' own backing disks do, so
  /// only what the sources themselves have is copied.
  bool target_has_backing = false;
  /// Size of that backing disk: beyond it the target reads as zeros.
  uint64_t target_backing_size = 0;
  /// Written as compressed streams, in whole multiples of the target's preferred_size(): where one
  /// of those is not zeros throughout, all of it is data.
  bool compressed = false;
  int compression_level = 0;  ///< format/codec.h; 0: the default.
  bool in_order = true;
  bool fua = false;  ///< Every write is durable before it counts as done.
  unsigned requests_max = 16;
  uint64_t request_size = 2 * MiB;
  /// Called after each piece, with bytes of the disk done and in all.
  std::function<void(uint64_t done, uint64_t total)> progress;
};

class Convert {
 public:
  /// The devices outlive it.
  Convert(std::vector<Device*> sources, Device& target, ConvertOptions options);

  /// Bytes of the sources together, each rounded up to whole sectors: what the target must hold.
  uint64_t total() const { return total_; }
  uint64_t done() const { return done_; }
  /// Was it a source that made it fail?
  bool source_failed() const { return source_failed_; }
  /// Has anything been written to the target?
  bool wrote() const { return wrote_; }

  /// Errc::cancelled after stop().
  Task<void> run();
  /// Begins nothing more.
  void stop() { stopped_ = true; }
  /// What is under way, for a user who waits: "3 reads of 'a', 1 write to 'b'".
  std::string waiting_for() const;

 private:
  struct Source {
    Device* device;
    uint64_t start;  ///< In the target.
    uint64_t size;   ///< Rounded up to whole sectors.
  };
  enum class Kind : uint8_t {
    data,  ///< To be read.
    fill,  ///< Zeros, to be written byte for byte.
    zero,  ///< Reads as zeros; the target must, too.
    skip,  ///< The target is right as it is.
  };
  struct Piece {
    Kind kind = Kind::data;
    uint64_t at = 0;  ///< In the target.
    uint64_t length = 0;
    uint64_t sequence = 0;
  };

  Task<void> work();
  Task<std::optional<Piece>> next();
  Kind kind_of(const Extent& extent, uint64_t at) const;
  void make_whole(Piece& piece) const;
  Task<void> copy(const Piece& piece, Buffer& buffer);
  Task<void> read(uint64_t at, MutableBytes data);
  Task<void> write_runs(uint64_t at, Bytes data);
  Task<void> write(uint64_t at, Bytes data);
  Task<void> zero(uint64_t at, uint64_t length);
  Task<void> in_turn(uint64_t sequence);
  void end_turn(uint64_t sequence);

  std::vector<Source> sources_;
  Device& target_;
  const ConvertOptions options_;
  const uint64_t unit_;  ///< Pieces begin and end at its multiples, but for the last.
  uint64_t total_ = 0;

  Mutex cursor_lock_;  ///< Over everything up to next_sequence_: status() may wait.
  uint64_t position_ = 0;
  size_t source_ = 0;
  Extent extent_;  ///< What is at position_, from there on.
  uint64_t extent_left_ = 0;
  Kind extent_kind_ = Kind::data;
  uint64_t next_sequence_ = 0;

  Event turn_;
  uint64_t turn_sequence_ = 0;  ///< Whose turn it is to write.
  bool first_write_ = true;
  bool stopped_ = false;
  bool wrote_ = false;
  bool source_failed_ = false;
  bool failed_ = false;
  uint64_t done_ = 0;

  struct Counts {
    unsigned reads = 0;
    unsigned writes = 0;
    unsigned maps = 0;
    unsigned flushes = 0;
  } under_way_;
};

}  // namespace byre
