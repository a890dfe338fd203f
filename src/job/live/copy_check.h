// SPDX-License-Identifier: Apache-2.0
/// CopyCheck: reads the target of a job back, and compares it with what it was given.
///
/// A round flushes the target, drops what the kernel has of its files in memory, and compares all
/// that was written before that (copy_sums.h).  What guests write to it meanwhile is for the next
/// round.
/// Invariant: after a round that ended well, and without requests under way, each piece that is not
/// open held its checksum at some moment since it was last written.
/// Data are read past the page cache of this machine; not past the caches of another server, and
/// the tables of an image are those that it has in memory.
/// Cost: each piece once for each time that it was written, at most; a piece cannot be written
/// while it is compared.  Memory: requests_max * request_size.
/// Not here: when what is checked (mirror.h, backup.h).
#pragma once

#include <functional>
#include <string>

#include "coro/range_lock.h"
#include "io/buffer.h"
#include "job/live/copy_sums.h"
#include "job/live/job.h"

namespace byre {

struct CopyCheckOptions {
  RangeLock* locks = nullptr;  ///< On pieces: who writes them has one; null: nobody does.
  unsigned requests_max = 8;
  uint64_t request_size = 1 * MiB;
  /// Requests of guests so far, for Job::give_way().
  std::function<uint64_t()> guest_requests = {};
  /// Is told how many bytes more were compared.
  std::function<void(uint64_t bytes)> on_checked = {};
};

class CopyCheck {
 public:
  /// All of it outlives the check.  `source`: for messages.
  CopyCheck(CopySums& sums, Device& target, std::string source, CopyCheckOptions options)
      : sums_(sums), target_(target), source_(std::move(source)), options_(std::move(options)) {}

  /// A round, or a part of one, until `enough` says so.  Errc::io where the target holds something
  /// else: a job is to fail then.
  Task<void> run(Job& job, std::function<bool()> enough = {});
  /// The same for whoever has drained the graph: no passes, nothing is waited for or tried again.
  Task<void> run_alone();
  /// For a guest's request, without any lock: compares so many pieces, if there are any.  What it
  /// finds is for the next round to say.
  Task<void> help(uint64_t pieces);
  CopySums& sums() { return sums_; }

 private:
  /// What became of pieces that were taken.
  struct Outcome {
    Error error;
    bool differs = false;  ///< Else the target could not be read.
    uint64_t bytes = 0;    ///< That were read.
  };
  Task<void> begin_round();
  Task<void> worker(Job& job, const std::function<bool()>& enough);
  Task<Outcome> check(CopySums::Taken taken, Buffer& buffer);
  Task<Outcome> compare(CopySums::Taken taken, Buffer& buffer);
  Task<Outcome> compare_data(CopySums::Pieces pieces, Buffer& buffer);
  Task<Outcome> compare_zeros(CopySums::Pieces pieces, Buffer& buffer);
  Error mismatch(uint64_t at, uint64_t length, std::string_view found) const;

  CopySums& sums_;
  Device& target_;
  const std::string source_;
  const CopyCheckOptions options_;
  uint64_t cursor_ = 0;
  bool failed_ = false;  ///< Its workers end.
  Error found_;          ///< The first mismatch.
};

}  // namespace byre
