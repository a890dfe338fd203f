// SPDX-License-Identifier: Apache-2.0
#include "job/compare.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/prng.h"
#include "block/filter.h"
#include "block/memory.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

using Data = std::vector<std::byte>;

/// Memory with a map: what is zeros in whole blocks is said to be zeros, and reads are counted.
class Mapped final : public Filter {
 public:
  Mapped(Reactor& reactor, const Data& data) : Filter(std::make_unique<MemoryDevice>(reactor)) {
    if (data.empty()) return;
    Device& memory = below();
    auto fill = [](Device& to, const Data& from) -> Task<void> {
      co_await to.resize(from.size());
      co_await to.write(0, from);
    };
    EXPECT_TRUE(static_cast<SimReactor&>(reactor).run(fill(memory, data)));
    data_ = data;
  }
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    read_bytes += data.size();
    const uint64_t end = offset + data.size();
    if (bad_at >= offset && bad_at < end) co_await fail(Error(Errc::io, "bad block", EIO));
    co_await below().read(offset, data, options);
  }
  Task<Extent> status(uint64_t offset, uint64_t length) override {
    if (no_map_from <= offset) co_return Error(Errc::corrupt, "no map");
    const auto is_hole = [&](uint64_t at) {
      const uint64_t start = round_down(at, kBlock);
      const uint64_t stop = std::min<uint64_t>(data_.size(), start + kBlock);
      return is_zero(Bytes(data_).subspan(start, stop - start));
    };
    const bool hole = is_hole(offset);
    uint64_t end = offset;
    while (end < offset + length && is_hole(end) == hole) {
      end = std::min<uint64_t>(round_down(end, kBlock) + kBlock, offset + length);
    }
    co_return Extent{.length = end - offset, .data = !hole, .zero = hole};
  }

  static constexpr uint64_t kBlock = 4 * KiB;
  uint64_t read_bytes = 0;
  uint64_t bad_at = UINT64_MAX;
  uint64_t no_map_from = UINT64_MAX;

 private:
  Data data_;
};

Data noise(Prng& prng, uint64_t size) {
  Data data(size);
  for (uint64_t at = 0; at < size; at += 16 * KiB) {
    if (prng.one_in(3)) continue;
    const uint64_t end = std::min<uint64_t>(size, at + 16 * KiB);
    for (uint64_t i = at; i < end; i += 7) data[i] = std::byte(prng.next() | 1);
  }
  return data;
}

class CompareTest : public testing::TestWithParam<int> {
 protected:
  CompareTest()
      : reactor_(static_cast<uint64_t>(GetParam())), prng_(static_cast<uint64_t>(GetParam())) {}

  CompareOptions small() {
    return {.requests_max = static_cast<unsigned>(prng_.between(1, 6)),
            .piece_size = 512u << prng_.below(9),
            .step = 512u << prng_.below(6),
            .on_rest = nullptr};
  }
  Result<CompareResult> compare(Mapped& left, Mapped& right, CompareOptions options) {
    Progress progress;
    Compare job(left, right, std::move(options), progress);
    Result<CompareResult> result = reactor_.run(job.run());
    failure_ = job.failure();
    if (result && result->difference == Difference::none) {
      EXPECT_EQ(progress.done(), std::max(left.size(), right.size()));
    }
    return result;
  }

  SimReactor reactor_;
  Prng prng_;
  std::optional<CompareFailure> failure_;
};
INSTANTIATE_TEST_SUITE_P(Seeds, CompareTest, testing::Range(1, 25));

TEST_P(CompareTest, TheFirstSectorThatDiffersIsFoundInWhateverOrderPiecesEnd) {
  const Data a = noise(prng_, 512 * prng_.between(1, 1500));
  Data b = a;
  uint64_t first = UINT64_MAX;
  for (uint64_t count = prng_.below(4); count > 0; --count) {
    const uint64_t at = prng_.below(b.size());
    b[at] ^= std::byte(1);
  }
  for (uint64_t i = 0; i < b.size() && first == UINT64_MAX; ++i) {
    if (a[i] != b[i]) first = round_down(i, kSectorSize);
  }
  Mapped left(reactor_, a);
  Mapped right(reactor_, b);
  const Result<CompareResult> result = compare(left, right, small());
  ASSERT_TRUE(result);
  if (first == UINT64_MAX) {
    EXPECT_EQ(result->difference, Difference::none);
  } else {
    EXPECT_EQ(result->difference, Difference::content);
    EXPECT_EQ(result->offset, first);
  }
}

TEST_P(CompareTest, AllRangesAreListed) {
  const Data a = noise(prng_, 512 * 600);
  Data b = noise(prng_, 512 * prng_.between(500, 700));
  std::copy_n(a.begin(), 512 * 300, b.begin() + 0);
  Mapped left(reactor_, a);
  Mapped right(reactor_, b);
  CompareOptions options = small();
  options.all = true;
  const Result<CompareResult> result = compare(left, right, std::move(options));
  ASSERT_TRUE(result);
  const uint64_t size = std::max(a.size(), b.size());
  Data longer_a = a, longer_b = b;
  longer_a.resize(size);
  longer_b.resize(size);
  std::vector<DifferentRange> expected;
  for (uint64_t at = 0; at < size; at += 512) {
    if (std::equal(longer_a.begin() + static_cast<int64_t>(at),
                   longer_a.begin() + static_cast<int64_t>(at + 512),
                   longer_b.begin() + static_cast<int64_t>(at)))
      continue;
    if (!expected.empty() && expected.back().start + expected.back().length == at) {
      expected.back().length += 512;
    } else {
      expected.push_back({.start = at, .length = 512});
    }
  }
  ASSERT_EQ(result->ranges.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(result->ranges[i].start, expected[i].start);
    EXPECT_EQ(result->ranges[i].length, expected[i].length);
  }
  if (!expected.empty()) EXPECT_EQ(result->offset, expected[0].start);
}

TEST_P(CompareTest, WhatBothMapsCallZerosIsNeverRead) {
  Mapped left(reactor_, Data(4 * MiB));
  Data b(6 * MiB);
  std::fill_n(b.begin() + MiB, 4 * KiB, std::byte(7));
  Mapped right(reactor_, b);
  Mapped zeros(reactor_, Data(6 * MiB));
  ASSERT_EQ(compare(left, zeros, small())->difference, Difference::none);
  EXPECT_EQ(left.read_bytes + zeros.read_bytes, 0u);
  const Result<CompareResult> result = compare(left, right, small());
  EXPECT_EQ(result->offset, MiB);
  EXPECT_EQ(left.read_bytes, 0u);
  EXPECT_LE(right.read_bytes, 4 * KiB);
}

TEST_P(CompareTest, TheRestOfTheLongerDiskMustBeZeros) {
  const Data a = noise(prng_, 512 * prng_.between(1, 300));
  Data b = a;
  b.resize(a.size() + 512 * prng_.between(1, 300));
  const bool differs = prng_.one_in(2);
  if (differs) b.back() = std::byte(1);
  Mapped left(reactor_, a);
  Mapped right(reactor_, b);
  bool told = false;
  CompareOptions options = small();
  options.on_rest = [&] { told = true; };
  const bool turned = prng_.one_in(2);
  const Result<CompareResult> result =
      compare(turned ? right : left, turned ? left : right, std::move(options));
  ASSERT_TRUE(result);
  EXPECT_TRUE(told);
  EXPECT_EQ(result->difference, differs ? Difference::content : Difference::none);
  if (differs) EXPECT_EQ(result->offset, b.size() - 512);
}

TEST_P(CompareTest, StrictComparesSizesAndMaps) {
  Data a(64 * KiB);
  std::fill_n(a.begin(), 16 * KiB, std::byte(1));
  Mapped left(reactor_, a);
  Mapped right(reactor_, a);
  Data longer = a;
  longer.resize(65 * KiB);
  Mapped third(reactor_, longer);
  CompareOptions options = small();
  options.strict = true;
  EXPECT_EQ(compare(left, right, options)->difference, Difference::none);
  EXPECT_EQ(compare(left, third, options)->difference, Difference::size);
  Data other = a;
  other[40 * KiB] = std::byte(1);
  Mapped fourth(reactor_, other);
  const Result<CompareResult> result = compare(left, fourth, options);
  EXPECT_EQ(result->difference, Difference::allocation);
  EXPECT_EQ(result->offset, 40 * KiB);
  // The last range of one disk goes to its end, that of the other does not.
  options.ends_count = true;
  EXPECT_EQ(compare(left, fourth, options)->offset, 16 * KiB);
}

TEST_P(CompareTest, AFailedReadIsToldUnlessADifferenceComesFirst) {
  const Data a(MiB, std::byte(1));
  Data b = a;
  b[300 * KiB] = std::byte(2);
  Mapped left(reactor_, a);
  Mapped right(reactor_, b);
  left.bad_at = 500 * KiB;
  CompareOptions options = small();
  options.piece_size = 64 * KiB;
  EXPECT_EQ(compare(left, right, options)->offset, 300 * KiB);
  left.bad_at = 200 * KiB;
  const Result<CompareResult> result = compare(left, right, options);
  EXPECT_FALSE(result);
  ASSERT_TRUE(failure_);
  EXPECT_EQ(failure_->stage, CompareFailure::Stage::read);
  EXPECT_EQ(failure_->side, 0);
  EXPECT_EQ(failure_->offset, 192 * KiB);
}

TEST_P(CompareTest, AMapThatCannotBeReadIsToldApart) {
  Data a(MiB);
  a[0] = std::byte(1);
  Mapped left(reactor_, a);
  Mapped right(reactor_, a);
  right.no_map_from = 4 * KiB;
  EXPECT_FALSE(compare(left, right, small()));
  ASSERT_TRUE(failure_);
  EXPECT_EQ(failure_->stage, CompareFailure::Stage::map);
  EXPECT_EQ(failure_->side, 1);
}

TEST_P(CompareTest, ItStopsWhenAsked) {
  Mapped left(reactor_, Data(MiB, std::byte(1)));
  Mapped right(reactor_, Data(MiB, std::byte(1)));
  Progress progress;
  progress.on_change([&](const Progress& now) {
    if (now.done() > 0) progress.stop();
  });
  CompareOptions options = small();
  options.requests_max = 1;
  Compare job(left, right, options, progress);
  Result<CompareResult> result = reactor_.run(job.run());
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code(), Errc::cancelled);
  EXPECT_LE(left.read_bytes, 2 * options.piece_size);
}

}  // namespace
}  // namespace byre
