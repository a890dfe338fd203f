// SPDX-License-Identifier: Apache-2.0
/// Copy: the loop of every job that copies a disk: convert, commit, rebase.
///
/// 1. One at a time, in the order of the disk, asks the source what is to be done with what comes
///    next (look()), and cuts it into pieces; zeros are never read.
/// 2. Up to `requests_max` coroutines each take a piece, read it, look for zeros in it, and write
///    what is left.  With `in_order` writes are issued in the order of the disk (they still
///    overlap), so that an image that allocates as it is written comes out in that order, and with
///    ImageOptions::allocate_in_order with the same bytes every time.
/// A failure, or Progress::stop(), ends it as soon as what is under way has ended.
/// Invariant: the target is written only where the source says data, fill or zero; never before
/// what is written there was read.
/// Cost: for each piece a look, a read and a write.  Memory: requests_max * request_size.
/// Not here: what is copied (convert.h, commit.h, rebase.h), the flush at the end.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/progress.h"
#include "base/units.h"
#include "block/device.h"
#include "coro/event.h"
#include "coro/scope.h"
#include "coro/semaphore.h"
#include "io/buffer.h"

namespace byre {

class CopySource {
 public:
  enum class Kind : uint8_t {
    data,  ///< To be read.
    fill,  ///< Zeros, to be written byte for byte.
    zero,  ///< Reads as zeros; the target must, too.
    skip,  ///< The target is right as it is.
  };
  struct Stretch {
    Kind kind = Kind::data;
    uint64_t length = 0;
  };
  /// Bytes of a piece, by their place in it.
  struct Part {
    uint64_t begin = 0;
    uint64_t end = 0;
    bool as_data = false;  ///< Zeros among them are written, whatever the options say.
  };
  using Parts = std::vector<Part>;

  virtual ~CopySource() = default;
  /// Whole sectors.
  virtual uint64_t size() const = 0;
  /// What is to be done from `at` on.  Called in order, one call at a time.
  virtual Task<Stretch> look(uint64_t at) = 0;
  /// Gives the parts that are to be written, in order.
  virtual Task<Parts> read(uint64_t at, MutableBytes data) = 0;
  /// Puts data into the target without reading them here; false: they must be read and written.
  virtual Task<bool> copy_on_host(uint64_t /*at*/, uint64_t /*length*/) { co_return false; }
  /// For messages: the disks that it reads.
  virtual std::string names() const = 0;
};

/// Through the page cache a copy is two moves of memory: pieces that stay in the processor's cache
/// between the two, a few at a time.  Past it, and where pieces are compressed on all cores, large
/// ones and many (the defaults of CopyOptions).
inline constexpr uint64_t kPieceCached = 256 * KiB;
inline constexpr unsigned kRequestsCached = 8;
/// Of CopyOptions, or of a job's own.
template <class Options>
void copy_through_page_cache(Options& options) {
  options.requests_max = kRequestsCached;
  options.request_size = kPieceCached;
}

struct CopyOptions {
  /// Runs of zero bytes of this length and alignment are not written; 0: everything is written.
  uint64_t sparse_size = 4 * KiB;
  /// Data are copied as they are: no zeros are looked for, and copy_on_host() is asked first.
  bool on_host = false;
  /// Only whole runs of `sparse_size` become zeros, by their place in the target (or its last part,
  /// where the unit is as large); what is less is written.
  bool zero_whole = false;
  /// Whatever has not been written reads as zeros in the target.
  bool target_reads_zero = false;
  /// Pieces begin and end at multiples of this; where one of those is not alike throughout, all of
  /// it is data.
  uint64_t unit = 1;
  /// Written as compressed streams; the unit is then the target's preferred_size().
  bool compressed = false;
  int compression_level = 0;  ///< format/codec.h; 0: the default.
  bool in_order = true;
  bool fua = false;  ///< Every write is durable before it counts as done.
  unsigned requests_max = 16;
  uint64_t request_size = 2 * MiB;
  uint64_t rate = 0;  ///< Bytes a second that are written or zeroed; 0: no limit.
};

class Copy {
 public:
  /// All of them outlive it.  The progress counts the source's bytes.
  Copy(CopySource& source, Device& target, Progress& progress, CopyOptions options);
  Copy(const Copy&) = delete;

  /// Errc::cancelled after Progress::stop().
  Task<void> run();
  /// Zeros in the target, in steps.
  Task<void> zero(uint64_t at, uint64_t length);
  /// Makes what was written durable.
  Task<void> flush();

  /// Was it the source that made it fail?
  bool source_failed() const { return source_failed_; }
  /// Has anything been written to the target?
  bool wrote() const { return wrote_; }
  /// What is under way, for a user who waits: "3 reads of 'a', 1 write to 'b'".
  std::string waiting_for() const;

 private:
  using Kind = CopySource::Kind;
  struct Piece {
    Kind kind = Kind::data;
    uint64_t at = 0;  ///< In the target.
    uint64_t length = 0;
    uint64_t sequence = 0;
  };

  Task<void> work();
  Task<std::optional<Piece>> next();
  void make_whole(Piece& piece) const;
  Task<void> copy(const Piece& piece, Buffer& buffer);
  Task<CopySource::Parts> read(uint64_t at, MutableBytes data);
  Task<void> begin_writes(uint64_t at, Bytes data, bool as_data, Scope& writes);
  Task<void> write_run(uint64_t at, Bytes data, bool zeros, Semaphore::Hold permit);
  bool may_be_zeros(uint64_t begin, uint64_t end) const;
  Task<void> write(uint64_t at, Bytes data);
  Task<void> keep_rate(uint64_t length);
  Task<void> in_turn(uint64_t sequence);
  void end_turn(uint64_t sequence);

  CopySource& source_;
  Device& target_;
  Progress& progress_;
  const CopyOptions options_;
  const uint64_t unit_;  ///< Pieces begin and end at its multiples, but for the last.
  const uint64_t total_;

  Mutex cursor_lock_;  ///< Over everything up to next_sequence_: look() may wait.
  uint64_t position_ = 0;
  CopySource::Stretch stretch_;  ///< What is left of it, from position_ on.
  uint64_t next_sequence_ = 0;

  Event turn_;
  Semaphore writers_;           ///< A unit for each run of bytes or zeros that is being written.
  uint64_t turn_sequence_ = 0;  ///< Whose turn it is to write.
  Instant next_start_;          ///< With a rate: no piece begins before.
  bool first_write_ = true;
  bool wrote_ = false;
  bool source_failed_ = false;
  bool failed_ = false;

  struct Counts {
    unsigned reads = 0;
    unsigned writes = 0;
    unsigned maps = 0;
    unsigned flushes = 0;
  } under_way_;
};

}  // namespace byre
