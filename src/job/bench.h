// SPDX-License-Identifier: Apache-2.0
/// Bench: sends many requests of one size to a disk, and measures how long they take.
///
/// Up to `depth` requests are under way.  Request i begins at offset + i * step, taken modulo the
/// size of the disk; one that passes the end of the disk fails, as it would for a guest.
/// With `flush_interval` a flush follows each that many requests: with `drain` it begins when the
/// requests before it have ended and the next ones wait for it; without, it runs beside them.
/// Invariant: what is in the histogram was answered without an error; the first error ends the run.
/// Cost: a buffer for each request under way, and two readings of the clock a request.
/// Not here: opening (open.h), words (cli/bench.cc).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/progress.h"
#include "block/device.h"
#include "coro/event.h"
#include "coro/scope.h"
#include "coro/semaphore.h"
#include "io/buffer.h"

namespace byre {

/// How long requests took, in classes that are a sixteenth apart.  One nanosecond to ten minutes.
class LatencyHistogram {
 public:
  void add(int64_t ns);
  uint64_t count() const { return count_; }
  int64_t least_ns() const { return count_ == 0 ? 0 : least_; }
  int64_t most_ns() const { return most_; }
  double mean_ns() const;
  /// `part` of the requests (0 to 1) took no longer, to a sixteenth.
  int64_t percentile_ns(double part) const;

 private:
  static constexpr uint64_t kSteps = 16;  ///< Classes for each doubling.
  static constexpr size_t kClasses = 40 * kSteps;
  static size_t class_of(uint64_t ns);
  static uint64_t end_of(size_t index);

  std::array<uint64_t, kClasses> classes_{};
  uint64_t count_ = 0;
  int64_t least_ = INT64_MAX;
  int64_t most_ = 0;
  double sum_ = 0;
};

struct BenchOptions {
  bool write = false;
  uint64_t count = 75000;
  uint64_t depth = 64;
  uint64_t offset = 0;
  uint64_t size = 4096;
  uint64_t step = 4096;
  std::byte pattern{0};
  uint64_t flush_interval = 0;  ///< 0: none.
  bool drain = true;
  bool flushes = true;  ///< False: a flush counts, and is not sent (cache mode unsafe).
  bool fua = false;     ///< Each write is durable before it is answered.
};

struct BenchResult {
  double seconds = 0;
  uint64_t flushes = 0;
  LatencyHistogram latency;
};

class Bench {
 public:
  /// The memory that buffers take together; callers refuse what is too much.
  static uint64_t memory_for(const BenchOptions& options);

  /// The device outlives it; `progress` counts requests.
  Bench(Device& disk, BenchOptions options, Progress& progress);

  /// Errc::cancelled after progress.stop().
  Task<BenchResult> run();

 private:
  Task<void> work();
  Task<void> request(uint64_t index, MutableBytes data);
  Task<void> flush();
  Task<void> before(uint64_t index);
  Task<void> drained();

  Device& disk_;
  const BenchOptions options_;
  Progress& progress_;
  Mutex turn_;  ///< Who begins the next request.
  Scope flushing_;
  Event ended_;  ///< A request has.
  uint64_t begun_ = 0;
  uint64_t running_ = 0;
  bool failed_ = false;
  BenchResult result_;
};

}  // namespace byre
