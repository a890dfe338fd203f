// SPDX-License-Identifier: Apache-2.0
#include "job/bench.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/checked.h"

namespace byre {

/// The first kSteps classes are one nanosecond each; then each doubling has kSteps.
size_t LatencyHistogram::class_of(uint64_t ns) {
  if (ns < kSteps) return ns;
  const auto doubling = static_cast<uint64_t>(std::bit_width(ns)) - std::bit_width(kSteps);
  const uint64_t step = (ns >> doubling) - kSteps;
  return std::min<size_t>((doubling + 1) * kSteps + step, kClasses - 1);
}

/// The largest value of the class.
uint64_t LatencyHistogram::end_of(size_t index) {
  if (index < kSteps) return index;
  const uint64_t doubling = index / kSteps - 1;
  return ((index % kSteps + kSteps + 1) << doubling) - 1;
}

void LatencyHistogram::add(int64_t ns) {
  const auto value = static_cast<uint64_t>(std::max<int64_t>(ns, 0));
  ++classes_[class_of(value)];
  ++count_;
  least_ = std::min(least_, static_cast<int64_t>(value));
  most_ = std::max(most_, static_cast<int64_t>(value));
  sum_ += static_cast<double>(value);
}

double LatencyHistogram::mean_ns() const {
  return count_ == 0 ? 0 : sum_ / static_cast<double>(count_);
}

int64_t LatencyHistogram::percentile_ns(double part) const {
  const auto wanted =
      std::max<uint64_t>(1, static_cast<uint64_t>(part * static_cast<double>(count_) + 0.999999));
  uint64_t seen = 0;
  for (size_t index = 0; index < kClasses; ++index) {
    seen += classes_[index];
    if (seen >= wanted) return std::min(static_cast<int64_t>(end_of(index)), most_);
  }
  return most_;
}

uint64_t Bench::memory_for(const BenchOptions& options) {
  return checked_multiply(std::min(options.depth, options.count), options.size)
      .value_or(UINT64_MAX);
}

Bench::Bench(Device& disk, BenchOptions options, Progress& progress)
    : disk_(disk),
      options_(options),
      progress_(progress),
      turn_(disk.reactor().ready()),
      flushing_(disk.reactor().ready()),
      ended_(disk.reactor().ready()) {
  BYRE_ASSERT(options_.depth > 0 && options_.size > 0);
}

Task<BenchResult> Bench::run() {
  if (options_.count != 0) progress_.set_total(options_.count);
  const Instant start = disk_.reactor().now();
  Scope workers(disk_.reactor().ready());
  const uint64_t count = std::min(options_.depth, options_.count);
  for (uint64_t i = 0; i < count && !failed_; ++i) workers.spawn(work());
  Result<void> done = co_await workers.join().result();
  const bool ends_with_flush = options_.flush_interval != 0 && options_.count != 0 &&
                               options_.count % options_.flush_interval == 0;
  if (done && ends_with_flush && !progress_.stopped()) flushing_.spawn(flush());
  Result<void> flushed = co_await flushing_.join().result();
  if (!done) co_return std::move(done).error();
  if (!flushed) co_return std::move(flushed).error();
  if (Result<void> wanted = progress_.check("benchmark"); !wanted) {
    co_return std::move(wanted).error();
  }
  result_.seconds =
      static_cast<double>(disk_.reactor().now() - start) / static_cast<double>(kSecond);
  co_return std::move(result_);
}

Task<void> Bench::work() {
  const Buffer buffer(options_.size);
  const MutableBytes data = buffer.bytes().first(options_.size);
  std::memset(data.data(), static_cast<int>(options_.pattern), data.size());
  while (!failed_) {
    uint64_t index = 0;
    {
      const auto hold = co_await turn_.lock();
      if (failed_ || progress_.stopped() || begun_ == options_.count) break;
      co_await before(begun_);
      if (failed_) break;
      index = begun_++;
      ++running_;
    }
    Result<void> done = co_await request(index, data).result();
    --running_;
    if (!done) failed_ = true;
    ended_.notify();
    co_await std::move(done);
    progress_.advance(1);
  }
}

/// The flush that comes between two requests.
Task<void> Bench::before(uint64_t index) {
  if (options_.flush_interval == 0 || index == 0 || index % options_.flush_interval != 0) co_return;
  if (!options_.drain) {
    flushing_.spawn(flush());
    co_return;
  }
  co_await drained();
  if (failed_) co_return;
  Result<void> flushed = co_await flush().result();
  if (!flushed) failed_ = true;
  co_await std::move(flushed);
}

Task<void> Bench::drained() {
  while (running_ != 0) co_await ended_.wait();
}

Task<void> Bench::flush() {
  ++result_.flushes;
  if (options_.flushes) co_await disk_.flush(IoTag::flush);
}

Task<void> Bench::request(uint64_t index, MutableBytes data) {
  const uint64_t disk_size = disk_.size();
  uint64_t at = options_.offset;
  if (index != 0 && disk_size != 0) {
    // In 128 bits: the largest step and count pass 64.
    __extension__ using Wide = unsigned __int128;
    at = static_cast<uint64_t>((Wide{options_.offset} + Wide{index} * options_.step) % disk_size);
  }
  if (!within(at, data.size(), disk_size)) {
    co_await fail(Error(Errc::io,
                        cat("a request of ", data.size(), " bytes at ", at,
                            " passes the end of the disk, which has ", disk_size, " bytes"),
                        EIO));
  }
  const Instant start = disk_.reactor().now();
  if (options_.write) {
    co_await disk_.write(at, data, {.fua = options_.fua});
  } else {
    co_await disk_.read(at, data, IoTag::read_guest);
  }
  result_.latency.add(disk_.reactor().now() - start);
}

}  // namespace byre
