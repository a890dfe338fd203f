// SPDX-License-Identifier: Apache-2.0
#include "format/kept_clusters.h"

#include <gtest/gtest.h>

#include "base/prng.h"

namespace byre {
namespace {

TEST(KeptClusters, ItsRangesCoverWhatWasKeptAndAreBounded) {
  Prng prng(1);
  for (int i = 0; i < 2000; ++i) {
    std::vector<HostSpan> spans;
    uint64_t next = prng.below(5);
    for (uint64_t n = prng.below(40); n != 0; --n) {
      const HostSpan span{{next + prng.between(1, prng.one_in(3) ? 100000 : 4)},
                          prng.between(1, 5)};
      spans.push_back(span);
      next = span.end().value;
    }
    const size_t ranges_max = prng.between(1, 12);
    const auto kept = KeptClusters::covering(spans, ranges_max);
    EXPECT_LE(kept.ranges().size(), ranges_max);
    if (spans.size() <= ranges_max) {
      EXPECT_EQ(kept.ranges().size(), spans.size());
    }
    for (const HostSpan& span : spans) {
      EXPECT_TRUE(kept.contains(span.first));
      EXPECT_TRUE(kept.contains(span.end() - 1));
    }
    if (spans.empty()) continue;
    EXPECT_FALSE(kept.contains(spans.back().end()));
    if (spans.front().first.value != 0) {
      EXPECT_FALSE(kept.contains(spans.front().first - 1));
    }
    const Result<KeptClusters> read = KeptClusters::parse(kept.serialize());
    ASSERT_TRUE(read.has_value());
    EXPECT_EQ(*read, kept);
  }
}

TEST(KeptClusters, AllAreAll) {
  EXPECT_TRUE(KeptClusters::all().contains({0}));
  EXPECT_TRUE(KeptClusters::all().contains({UINT64_MAX - 1}));
  const Result<KeptClusters> read = KeptClusters::parse(KeptClusters::all().serialize());
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(*read, KeptClusters::all());
  EXPECT_TRUE(KeptClusters().empty());
}

TEST(KeptClusters, WhatIsOutOfOrderIsRefused) {
  const auto kept = KeptClusters::covering({{{5}, 2}, {{9}, 1}}, 4);
  const std::vector<std::byte> good = kept.serialize();
  for (const size_t at : {size_t{0}, size_t{3}, size_t{7}, size_t{15 + 16}, size_t{23}}) {
    std::vector<std::byte> bad = good;
    bad[at] = bad[at] == std::byte{0} ? std::byte{9} : std::byte{0};
    EXPECT_FALSE(KeptClusters::parse(bad).has_value()) << at;
  }
  EXPECT_FALSE(KeptClusters::parse(Bytes(good).first(good.size() - 1)).has_value());
  EXPECT_FALSE(KeptClusters::parse({}).has_value());
}

}  // namespace
}  // namespace byre
