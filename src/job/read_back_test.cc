// SPDX-License-Identifier: Apache-2.0
#include "job/read_back.h"

#include <gtest/gtest.h>

#include "base/prng.h"
#include "block/filter.h"
#include "block/memory.h"
#include "job/convert.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

/// A target that answers writes and does something else.
class Lying final : public Forwarder {
 public:
  enum class Lie : uint8_t { none, drops, flips, elsewhere };
  using Forwarder::Forwarder;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    if (lie == Lie::none || offset > spot || spot - offset >= data.size()) {
      co_await below().write(offset, data, options);
      co_return;
    }
    if (lie == Lie::drops) co_return;
    std::vector<std::byte> other(data.begin(), data.end());
    if (lie == Lie::flips) other[spot - offset] ^= std::byte{4};
    co_await below().write(lie == Lie::elsewhere ? offset + 4096 : offset, other, options);
  }
  Lie lie = Lie::none;
  uint64_t spot = 0;
};

class ReadBackTest : public testing::Test {
 protected:
  static constexpr uint64_t kSize = 4 * MiB;

  ReadBackTest() {
    // Data with holes of zeros, short and long.
    std::vector<std::byte> data(kSize);
    Prng prng(3);
    for (uint64_t at = 0; at < kSize; ++at) {
      if (at / (300 * KiB) % 3 != 1) data[at] = static_cast<std::byte>(prng.next() | 1);
    }
    source_.poke(0, data);
  }
  Result<void> copy(Device& target) {
    Convert job({&source_}, target,
                {.target_reads_zero = true, .request_size = 256 * KiB, .record = &notes_});
    Result<void> done = reactor_.run(target.resize(job.total()));
    if (done) done = reactor_.run(job.run());
    return done;
  }
  Result<void> check(Device& target) {
    Progress progress;
    return reactor_.run(notes_.check(target, progress, 4));
  }

  SimReactor reactor_{5};
  MemoryDevice source_{reactor_, kSize};
  MemoryDevice memory_{reactor_};
  ReadBack notes_;
};

TEST_F(ReadBackTest, WhatWasCopiedIsThere) {
  ASSERT_TRUE(copy(memory_));
  EXPECT_EQ(notes_.total(), kSize);
  const Result<void> same = check(memory_);
  EXPECT_TRUE(same) << same.error().message();
}

TEST_F(ReadBackTest, ATargetThatLiesIsFound) {
  for (const auto lie : {Lying::Lie::drops, Lying::Lie::flips, Lying::Lie::elsewhere}) {
    for (const uint64_t spot : {uint64_t{0}, 1 * MiB + 77, 2 * MiB + 9}) {
      notes_ = {};
      memory_.poke(0, std::vector<std::byte>(kSize));
      Lying target(memory_);
      target.lie = lie;
      target.spot = spot;
      ASSERT_TRUE(copy(target));
      const Result<void> found = check(memory_);
      ASSERT_FALSE(found) << static_cast<int>(lie) << " " << spot;
      EXPECT_EQ(found.error().code(), Errc::io);
      EXPECT_NE(found.error().message().find("not what was read"), std::string::npos)
          << found.error().message();
    }
  }
}

TEST_F(ReadBackTest, AnyByteThatChangesLaterIsFound) {
  ASSERT_TRUE(copy(memory_));
  Prng prng(9);
  for (int i = 0; i < 200; ++i) {
    const uint64_t at = prng.below(kSize);
    std::byte old[1];
    memory_.peek(at, old);
    const std::byte other[1] = {old[0] ^ std::byte{0x80}};
    memory_.poke(at, other);
    const Result<void> found = check(memory_);
    EXPECT_FALSE(found) << at;
    memory_.poke(at, old);
  }
  EXPECT_TRUE(check(memory_));
}

TEST_F(ReadBackTest, StopEndsIt) {
  ASSERT_TRUE(copy(memory_));
  Progress progress;
  progress.stop();
  EXPECT_EQ(reactor_.run(notes_.check(memory_, progress, 4)).error().code(), Errc::cancelled);
}

}  // namespace
}  // namespace byre
