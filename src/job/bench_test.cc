// SPDX-License-Identifier: Apache-2.0
#include "job/bench.h"

#include <gtest/gtest.h>

#include <set>

#include "block/filter.h"
#include "block/null.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

/// A disk on which every request takes a millisecond.
class Watched final : public Filter {
 public:
  explicit Watched(Reactor& reactor, uint64_t size)
      : Filter(std::make_unique<NullDevice>(
            reactor, NullOptions{.size = size, .latency_ns = 1'000'000, .fixed = true})) {}
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    begin(offset);
    co_await below().read(offset, data, options);
    --running;
  }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    begin(offset);
    all_fua = all_fua && options.fua;
    for (std::byte byte : data) same_pattern = same_pattern && byte == pattern;
    co_await below().write(offset, data, options);
    --running;
  }
  Task<void> flush(IoTag tag) override {
    ++flushes;
    running_at_flush = std::max(running_at_flush, running);
    co_await below().flush(tag);
  }
  void begin(uint64_t offset) {
    offsets.push_back(offset);
    running_max = std::max(running_max, ++running);
    if (bad == offset) bad_seen = true;
  }
  std::vector<uint64_t> offsets;
  uint64_t bad = UINT64_MAX;
  bool bad_seen = false;
  unsigned running = 0, running_max = 0, running_at_flush = 0, flushes = 0;
  bool all_fua = true, same_pattern = true;
  std::byte pattern{0};
};

class BenchTest : public testing::Test {
 protected:
  Result<BenchResult> run(Watched& disk, BenchOptions options) {
    Progress progress;
    Bench job(disk, options, progress);
    Result<BenchResult> result = reactor_.run(job.run());
    if (result) EXPECT_EQ(progress.done(), options.count);
    return result;
  }
  SimReactor reactor_{1};
};

TEST_F(BenchTest, SendsSoManyRequestsSoManyAtATime) {
  Watched disk(reactor_, 1 << 20);
  const Result<BenchResult> result = run(disk, {.count = 100, .depth = 8});
  ASSERT_TRUE(result);
  EXPECT_EQ(disk.offsets.size(), 100u);
  EXPECT_EQ(disk.running_max, 8u);
  EXPECT_EQ(result->latency.count(), 100u);
  EXPECT_GE(result->latency.least_ns(), 1'000'000);
  EXPECT_GE(result->seconds, 0.012);
  EXPECT_EQ(result->flushes, 0u);
}

TEST_F(BenchTest, OffsetsWrapAroundAtTheEndOfTheDisk) {
  Watched disk(reactor_, 1 << 20);
  ASSERT_TRUE(run(disk, {.write = true, .count = 4, .depth = 1, .step = 600 * 1024}));
  EXPECT_EQ(disk.offsets, (std::vector<uint64_t>{0, 614400, 180224, 794624}));
  EXPECT_TRUE(disk.same_pattern);
}

TEST_F(BenchTest, ARequestPastTheEndFails) {
  Watched disk(reactor_, 10000);
  const Result<BenchResult> result = run(disk, {.count = 5, .depth = 1});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().sys_errno(), EIO);
  EXPECT_EQ(disk.offsets.size(), 2u);
  Watched empty(reactor_, 0);
  EXPECT_FALSE(run(empty, {.count = 1}));
  // The first offset is not wrapped.
  Watched other(reactor_, 1 << 20);
  EXPECT_FALSE(run(other, {.count = 1, .offset = 1 << 20}));
}

TEST_F(BenchTest, AFlushFollowsEachInterval) {
  Watched disk(reactor_, 1 << 20);
  ASSERT_TRUE(run(disk, {.write = true, .count = 12, .depth = 4, .flush_interval = 4}));
  EXPECT_EQ(disk.flushes, 3u);
  EXPECT_EQ(disk.running_at_flush, 0u);
  Watched odd(reactor_, 1 << 20);
  ASSERT_TRUE(run(odd, {.write = true, .count = 13, .depth = 4, .flush_interval = 4}));
  EXPECT_EQ(odd.flushes, 3u);
}

TEST_F(BenchTest, WithoutDrainAFlushRunsBesideRequests) {
  Watched disk(reactor_, 1 << 20);
  ASSERT_TRUE(
      run(disk, {.write = true, .count = 40, .depth = 4, .flush_interval = 5, .drain = false}));
  EXPECT_EQ(disk.flushes, 8u);
  EXPECT_GT(disk.running_at_flush, 0u);
}

TEST_F(BenchTest, WritesHaveThePatternAndAreDurableWhereAsked) {
  Watched disk(reactor_, 1 << 20);
  disk.pattern = std::byte(7);
  ASSERT_TRUE(run(disk, {.write = true, .count = 9, .pattern = std::byte(7), .fua = true}));
  EXPECT_TRUE(disk.same_pattern && disk.all_fua);
  Watched unsafe(reactor_, 1 << 20);
  const Result<BenchResult> result =
      run(unsafe, {.write = true, .count = 9, .depth = 1, .flush_interval = 3, .flushes = false});
  EXPECT_EQ(unsafe.flushes, 0u);
  EXPECT_EQ(result->flushes, 3u);
}

TEST(LatencyHistogram, PercentilesAreRightToASixteenth) {
  LatencyHistogram histogram;
  for (int64_t ns = 1; ns <= 1'000'000; ns += 7) histogram.add(ns);
  for (double part : {0.01, 0.5, 0.9, 0.999}) {
    const auto exact = part * 1e6;
    const auto told = static_cast<double>(histogram.percentile_ns(part));
    EXPECT_GE(told, exact * 0.999) << part;
    EXPECT_LE(told, exact * 1.07) << part;
  }
  EXPECT_EQ(histogram.percentile_ns(1), histogram.most_ns());
  EXPECT_NEAR(histogram.mean_ns(), 5e5, 100);
  EXPECT_EQ(LatencyHistogram().percentile_ns(0.5), 0);
}

}  // namespace
}  // namespace byre
