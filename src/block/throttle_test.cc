// SPDX-License-Identifier: Apache-2.0
#include "block/throttle.h"

#include <gtest/gtest.h>

#include <vector>

#include "block/entrance.h"
#include "block/let_through.h"
#include "block/null.h"
#include "coro/scope.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

class ThrottleTest : public testing::Test {
 protected:
  /// `count` disks in one group.
  void make(const ThrottleLimits& limits, size_t count = 1) {
    disks_.clear();
    const Result<void> sound = check_throttle_limits(limits);
    ASSERT_TRUE(sound) << sound.error().message();
    group_ = std::make_shared<ThrottleGroup>(reactor_, limits);
    for (size_t i = 0; i < count; ++i) {
      disks_.push_back(std::make_unique<Throttle>(
          std::make_unique<NullDevice>(reactor_, NullOptions{.size = 1 * TiB}), group_));
    }
    done_.assign(count, 0);
    start_ = reactor_.now();
  }
  void join() {
    const Result<void> joined = reactor_.run(scope_.join());
    ASSERT_TRUE(joined) << joined.error().message();
  }
  Task<void> writes(size_t disk, size_t size, int count) {
    const std::vector<std::byte> data(size);
    for (int i = 0; i < count; ++i) {
      co_await disks_[disk]->write(0, data, {});
      ++done_[disk];
      order_.push_back(disk);
    }
  }
  Task<void> reads(size_t disk, size_t size, int count) {
    std::vector<std::byte> data(size);
    for (int i = 0; i < count; ++i) {
      co_await disks_[disk]->read(0, data, IoTag::read_guest);
      ++done_[disk];
    }
  }
  double seconds() const {
    return static_cast<double>(reactor_.now() - start_) / static_cast<double>(kSecond);
  }
  /// Virtual time passes, and whatever was started runs.
  void run_until(double second) {
    reactor_.run_for(start_.ns + static_cast<int64_t>(second * 1e9) - reactor_.now().ns);
  }

  SimReactor reactor_{1};
  Scope scope_{reactor_.ready()};
  std::shared_ptr<ThrottleGroup> group_;
  std::vector<std::unique_ptr<Throttle>> disks_;
  std::vector<int> done_;
  std::vector<size_t> order_;
  Instant start_;
};

TEST_F(ThrottleTest, WithoutLimitsNothingWaits) {
  make({});
  scope_.spawn(writes(0, 1 << 20, 1000));
  EXPECT_EQ(done_[0], 1000);
  join();
}

// Virtual time is exact, so what the rate comes to can be told.
TEST_F(ThrottleTest, TheRateIsKept) {
  make({.bps_total = {.average = 1'000'000}});
  scope_.spawn(writes(0, 10'000, 1000));  // 10 MB.
  join();
  EXPECT_NEAR(seconds(), 9.9, 0.01);  // A tenth of a second is what the bucket holds.

  make({.iops_total = {.average = 100}});
  scope_.spawn(writes(0, 10'000, 1010));
  join();
  EXPECT_NEAR(seconds(), 10.0, 0.02);
}

TEST_F(ThrottleTest, ReadsAndWritesHaveTheirOwnOrShareOne) {
  make({.iops_read = {.average = 100}, .iops_write = {.average = 10}}, 2);
  scope_.spawn(reads(0, 512, 2000));
  scope_.spawn(writes(1, 512, 200));
  run_until(5);
  EXPECT_NEAR(done_[0], 500, 15);
  EXPECT_NEAR(done_[1], 50, 5);
  join();

  make({.iops_total = {.average = 100}}, 2);
  scope_.spawn(reads(0, 512, 500));
  scope_.spawn(writes(1, 512, 500));
  run_until(5);
  EXPECT_NEAR(done_[0] + done_[1], 500, 15);
  EXPECT_GT(done_[0], 150);
  EXPECT_GT(done_[1], 150);
  join();
}

TEST_F(ThrottleTest, ABurstMayUseWhatARestHasSaved) {
  make({.iops_total = {.average = 100, .max = 1000}});
  scope_.spawn(writes(0, 512, 2000));
  EXPECT_NEAR(done_[0], 1000, 2);  // At once.
  run_until(5);
  EXPECT_NEAR(done_[0], 1500, 5);
  disks_[0]->release();
  join();
}

TEST_F(ThrottleTest, ALongBurstKeepsToItsOwnRate) {
  make({.iops_total = {.average = 100, .max = 1000, .max_length = 3}});
  scope_.spawn(writes(0, 512, 10'000));
  run_until(1);
  EXPECT_NEAR(done_[0], 1100, 15);
  run_until(3);
  EXPECT_NEAR(done_[0], 3100, 120);
  run_until(10);
  EXPECT_NEAR(done_[0], 4000, 30);  // 3000 of the burst, and 100 a second.
  disks_[0]->release();
  join();
}

TEST_F(ThrottleTest, ALargeRequestCountsByItsSize) {
  make({.iops_total = {.average = 100}, .iops_size = 4096});
  scope_.spawn(writes(0, 16'384, 100));  // Four each.
  join();
  EXPECT_NEAR(seconds(), 3.9, 0.1);
  make({.iops_total = {.average = 100}, .iops_size = 4096});
  scope_.spawn(writes(0, 512, 100));  // None is less than one.
  join();
  EXPECT_NEAR(seconds(), 0.9, 0.1);
}

TEST_F(ThrottleTest, ARequestAboveTheCapacityPassesAndThoseBehindItPay) {
  make({.bps_total = {.average = 1000}});
  scope_.spawn(writes(0, 50'000, 1));
  EXPECT_EQ(done_[0], 1);
  scope_.spawn(writes(0, 1, 1));
  join();
  EXPECT_NEAR(seconds(), 49.9, 0.1);
}

TEST_F(ThrottleTest, DisksOfAGroupTakeTurns) {
  make({.iops_total = {.average = 100}}, 3);
  for (int i = 0; i < 8; ++i) scope_.spawn(writes(0, 512, 1000));  // One is greedy.
  scope_.spawn(writes(1, 512, 1000));
  scope_.spawn(writes(2, 512, 1000));
  run_until(9);
  for (const int done : done_) EXPECT_NEAR(done, 300, 15);
  for (const auto& disk : disks_) disk->release();
  join();
}

TEST_F(ThrottleTest, RequestsOfADiskKeepTheirOrder) {
  make({.iops_write = {.average = 100}});
  std::vector<int> order;
  const auto one = [&](int number) -> Task<void> {
    co_await disks_[0]->zero(0, 512, {});
    order.push_back(number);
  };
  for (int i = 0; i < 50; ++i) {
    scope_.spawn(one(i));
    run_until(seconds() + 0.001);
  }
  join();
  for (int i = 0; i < 50; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
}

TEST_F(ThrottleTest, ZeroesAndDiscardsCountAsWritesAndFlushesNotAtAll) {
  make({.iops_write = {.average = 10}});
  const auto all = [&]() -> Task<void> {
    for (int i = 0; i < 10; ++i) {
      co_await disks_[0]->zero(0, 512, {});
      co_await disks_[0]->discard(0, 512, {});
      co_await disks_[0]->flush(IoTag::flush);
    }
  };
  scope_.spawn(all());
  join();
  EXPECT_NEAR(seconds(), 1.8, 0.1);
}

TEST_F(ThrottleTest, ReleaseLetsEverythingGoUntilAsManyResume) {
  make({.iops_total = {.average = 1}}, 2);
  for (int i = 0; i < 20; ++i) scope_.spawn(writes(0, 512, 1));
  scope_.spawn(reads(0, 512, 3));
  scope_.spawn(writes(1, 512, 2));
  EXPECT_GE(disks_[0]->waiting(), 19u);
  disks_[0]->release();
  EXPECT_EQ(disks_[0]->waiting(), 0u);
  EXPECT_EQ(disks_[1]->waiting(), 1u);
  run_until(0.5);
  EXPECT_EQ(done_[0], 23);
  EXPECT_EQ(done_[1], 0);
  disks_[0]->release();
  disks_[0]->resume();
  scope_.spawn(writes(0, 512, 100));  // Still released.
  EXPECT_EQ(done_[0], 123);
  disks_[0]->resume();
  scope_.spawn(writes(0, 512, 1));
  EXPECT_EQ(done_[0], 123);
  join();
  EXPECT_EQ(done_[1], 2);  // The other's timekeeper was found again.
  EXPECT_LT(seconds(), 5);
}

TEST_F(ThrottleTest, ADrainDoesNotWaitForALimit) {
  const ThrottleLimits limits{.iops_total = {.average = 1}};
  Entrance disk(std::make_unique<Throttle>(
      std::make_unique<NullDevice>(reactor_, NullOptions{.size = 1 * TiB}),
      std::make_shared<ThrottleGroup>(reactor_, limits)));
  int ended = 0;
  const auto write = [&]() -> Task<void> {
    const std::vector<std::byte> data(512);
    const Entrance::Pass pass = co_await disk.enter();
    co_await pass->write(0, data);
    ++ended;
  };
  const auto story = [&]() -> Task<void> {
    const Instant before = reactor_.now();
    for (int i = 0; i < 100; ++i) scope_.spawn(write());
    {
      Drain drain(disk.edge().node());
      co_await drain.begin();
      EXPECT_EQ(ended, 100);
      EXPECT_LT(reactor_.now() - before, kSecond);
    }
    // The limit holds again.
    co_await write();
    co_await write();
    co_await write();
    EXPECT_GT(reactor_.now() - before, kSecond);
  };
  const Result<void> done = reactor_.run(story());
  EXPECT_TRUE(done);
  join();
}

TEST_F(ThrottleTest, WhoeverWaitsForAnEndLetsAllBelowThrough) {
  const ThrottleLimits limits{.iops_total = {.average = 1}};
  const auto group = std::make_shared<ThrottleGroup>(reactor_, limits);
  Child disk = std::make_unique<Filter>(std::make_unique<Throttle>(
      std::make_unique<NullDevice>(reactor_, NullOptions{.size = 1 * TiB}), group));
  int ended = 0;
  const auto write = [&]() -> Task<void> {
    const std::vector<std::byte> data(512);
    co_await disk->write(0, data, {});
    ++ended;
  };
  for (int i = 0; i < 20; ++i) scope_.spawn(write());
  {
    const LetThrough unthrottled(*disk);
    join();
    EXPECT_EQ(ended, 20);
  }
  start_ = reactor_.now();
  for (int i = 0; i < 3; ++i) scope_.spawn(write());
  join();
  EXPECT_GT(seconds(), 1);  // The limit holds again.
  // The disk may go first.
  const LetThrough unthrottled(*disk);
  EXPECT_TRUE(reactor_.run(disk.close()));
  disk.reset();
}

TEST_F(ThrottleTest, CloseDoesNotWaitForALimit) {
  make({.iops_total = {.average = 1}});
  for (int i = 0; i < 20; ++i) scope_.spawn(writes(0, 512, 1));
  EXPECT_TRUE(reactor_.run(disks_[0]->close()));
  join();
  EXPECT_LT(seconds(), 0.1);
}

TEST_F(ThrottleTest, NewLimitsHoldAtOnceForWhatWaits) {
  make({.iops_total = {.average = 1}});
  scope_.spawn(writes(0, 512, 3));
  run_until(0.2);
  EXPECT_EQ(done_[0], 1);
  group_->set_limits({.iops_total = {.average = 1000}});
  join();
  EXPECT_LT(seconds(), 0.3);
}

TEST(ThrottleLimits, WhatCannotBeIsRefusedByName) {
  const auto message = [](const ThrottleLimits& limits) {
    const Result<void> checked = check_throttle_limits(limits);
    return checked ? std::string() : checked.error().message();
  };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({.bps_read = {.average = 10, .max = 10, .max_length = 5}}), "");
  EXPECT_EQ(message({.bps_total = {.average = 100}, .bps_read = {.average = 5}}),
            "throttle: bps-total goes with neither bps-read nor bps-write");
  EXPECT_EQ(message({.iops_total = {.average = 100}, .iops_write = {.average = 5}}),
            "throttle: iops-total goes with neither iops-read nor iops-write");
  EXPECT_EQ(message({.iops_total = {.max = 5}}), "throttle: iops-total-max needs iops-total");
  EXPECT_EQ(message({.iops_total = {.average = 10, .max = 5}}),
            "throttle: iops-total-max=5 is less than iops-total=10");
  EXPECT_EQ(message({.bps_write = {.average = 10, .max_length = 5}}),
            "throttle: bps-write-max-length needs bps-write-max");
  EXPECT_EQ(message({.bps_write = {.average = 10, .max = 20, .max_length = 0}}),
            "throttle: bps-write-max-length cannot be 0");
  EXPECT_EQ(message({.iops_size = 512}),
            "throttle: iops-size needs iops-total, iops-read or iops-write");
  EXPECT_NE(message({.bps_total = {.average = 1'000'000'000'000'001}}), "");
  EXPECT_NE(message({.bps_total = {.average = 1, .max = 1'000'000'000'000'000, .max_length = 2}}),
            "");
}

}  // namespace
}  // namespace byre
