// SPDX-License-Identifier: Apache-2.0
/// What clients have asked of one export since it was made.
///
/// Invariant: each request that was answered counts once, under what it was: as done, with its
/// bytes, or as failed.  Zeros count as writes.
/// Cost: a few additions a request.
/// Not here: what a whole server counts (nbd_session.h); how long requests take.
#pragma once

#include <algorithm>
#include <cstdint>

namespace byre::nbd {

struct ExportCounts {
  struct Kind {
    uint64_t done = 0;
    uint64_t bytes = 0;
    uint64_t failed = 0;
    void add(bool well, uint64_t length) {
      done += well ? 1 : 0;
      bytes += well ? length : 0;
      failed += well ? 0 : 1;
    }
    void add(const Kind& other) {
      done += other.done;
      bytes += other.bytes;
      failed += other.failed;
    }
    uint64_t all() const { return done + failed; }
  };
  Kind reads, writes, flushes, trims;
  uint64_t written_end = 0;  ///< The highest offset that was written, its end.

  void wrote(bool well, uint64_t offset, uint64_t length) {
    writes.add(well, length);
    if (well) written_end = std::max(written_end, offset + length);
  }
  void add(const ExportCounts& other) {
    reads.add(other.reads);
    writes.add(other.writes);
    flushes.add(other.flushes);
    trims.add(other.trims);
    written_end = std::max(written_end, other.written_end);
  }
  uint64_t requests() const { return reads.all() + writes.all() + flushes.all() + trims.all(); }
};

}  // namespace byre::nbd
