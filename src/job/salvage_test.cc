// SPDX-License-Identifier: Apache-2.0
#include "job/salvage.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/units.h"
#include "block/memory.h"
#include "job/convert.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

/// Reads that touch a bad range fail.
class Bad final : public Filter {
 public:
  using Filter::Filter;
  struct Range {
    uint64_t offset, length;
    Errc code;
  };
  std::vector<Range> ranges;
  uint64_t reads = 0;
  uint32_t preferred_size() const override { return 64 * KiB; }

  Result<void> check(uint64_t offset, uint64_t length) const {
    for (const Range& bad : ranges) {
      if (offset < bad.offset + bad.length && bad.offset < offset + length)
        return Error(bad.code, cat("bad at ", bad.offset));
    }
    return {};
  }
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    ++reads;
    co_await check(offset, data.size());
    co_await below().read(offset, data, options);
  }
  Task<Extent> status(uint64_t offset, uint64_t length) override {
    for (const Range& bad : ranges) {
      if (bad.code == Errc::corrupt) co_await check(offset, length);
    }
    co_return Extent{.length = length};
  }
};

class SalvageTest : public testing::Test {
 protected:
  static constexpr uint64_t kSize = 4 * MiB;
  SalvageTest() : data_(kSize, std::byte{7}) {
    auto memory = std::make_unique<MemoryDevice>(reactor_, kSize);
    memory->poke(0, data_);
    bad_ = std::make_unique<Bad>(std::move(memory));
  }
  /// Copies it, and compares: the lost ranges are zeros, the rest is there.
  std::vector<Salvage::Lost> copy() {
    Salvage source(*bad_);
    MemoryDevice target(reactor_);
    Convert job({&source}, target, {.target_reads_zero = true, .request_size = 256 * KiB});
    EXPECT_TRUE(reactor_.run(target.resize(job.total())));
    EXPECT_TRUE(reactor_.run(job.run()));
    std::vector<std::byte> found(kSize);
    target.peek(0, found);
    std::vector<std::byte> expected = data_;
    for (const Salvage::Lost& range : source.lost()) {
      std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(range.offset), range.length,
                  std::byte{0});
    }
    EXPECT_TRUE(found == expected);
    return source.lost();
  }

  SimReactor reactor_{1};
  std::vector<std::byte> data_;
  std::unique_ptr<Bad> bad_;
};

TEST_F(SalvageTest, ABadBlockCostsItsSectorsOnly) {
  bad_->ranges = {{MiB + 1000, 30, Errc::io}};
  const auto lost = copy();
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].offset, MiB + 512);
  EXPECT_EQ(lost[0].length, 1024u);
  EXPECT_NE(lost[0].reason.find("bad at"), std::string::npos);
}

TEST_F(SalvageTest, ABrokenEntryCostsItsCluster) {
  bad_->ranges = {
      {MiB + 1000, 1, Errc::corrupt}, {MiB + 70000, 1, Errc::corrupt}, {0, 1, Errc::corrupt}};
  const auto lost = copy();
  ASSERT_EQ(lost.size(), 2u) << "those side by side are one";
  EXPECT_EQ(lost[0].offset, 0u);
  EXPECT_EQ(lost[0].length, 64 * KiB);
  EXPECT_EQ(lost[1].offset, MiB);
  EXPECT_EQ(lost[1].length, 128 * KiB);
}

TEST_F(SalvageTest, WhatWasLostDifferentlyIsToldApart) {
  bad_->ranges = {{0, 64 * KiB, Errc::corrupt}, {64 * KiB, 512, Errc::io}};
  const auto lost = copy();
  ASSERT_EQ(lost.size(), 2u);
  EXPECT_EQ(lost[0].code, Errc::corrupt);
  EXPECT_EQ(lost[1].code, Errc::io);
  EXPECT_EQ(lost[1].length, 512u);
}

TEST_F(SalvageTest, ASoundDiskIsReadOnce) {
  EXPECT_TRUE(copy().empty());
  EXPECT_EQ(bad_->reads, kSize / (256 * KiB));
}

}  // namespace
}  // namespace byre
