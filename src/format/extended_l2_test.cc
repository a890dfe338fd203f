// SPDX-License-Identifier: Apache-2.0
#include "format/extended_l2.h"

#include <gtest/gtest.h>

#include "base/prng.h"

namespace byre {
namespace {

// Every range of half units, against counting unit by unit.
TEST(Units, RangesTouchAndCoverWhatCountingSays) {
  for (const Geometry& geometry :
       {Geometry{}, Geometry{.cluster_bits = 9}, Geometry{.cluster_bits = 14, .extended_l2 = true},
        Geometry{.cluster_bits = 21, .extended_l2 = true}}) {
    const uint64_t unit = geometry.unit_size();
    const uint64_t step = unit / 2;
    for (uint64_t from = 0; from <= geometry.cluster_size(); from += step)
      for (uint64_t to = from; to <= geometry.cluster_size(); to += step) {
        uint32_t touched = 0;
        uint32_t covered = 0;
        for (uint32_t i = 0; i < geometry.units(); ++i) {
          if (from < to && from < (i + 1) * unit && to > i * unit) touched |= 1u << i;
          if (from <= i * unit && to >= (i + 1) * unit) covered |= 1u << i;
        }
        ASSERT_EQ(units_touched(from, to - from, geometry), touched) << from << " " << to;
        ASSERT_EQ(units_covered(from, to - from, geometry), covered) << from << " " << to;
      }
  }
}

TEST(Units, MasksOfEveryRun) {
  for (uint32_t first = 0; first <= 32; ++first)
    for (uint32_t count = 0; first + count <= 32; ++count) {
      uint32_t mask = 0;
      for (uint32_t i = first; i < first + count; ++i) mask |= 1u << i;
      EXPECT_EQ(unit_mask(first, count), mask);
    }
}

// Trap 40: the runs of any mapping, one after the other, say of each unit what its bits say.
TEST(Units, RunsTileTheCluster) {
  Prng random(2);
  for (int i = 0; i < 20'000; ++i) {
    const Geometry geometry{.extended_l2 = !random.one_in(8)};
    Mapping mapping;
    mapping.allocated = static_cast<uint32_t>(random.next() & random.next()) & geometry.all_units();
    if (random.one_in(3)) mapping.allocated = geometry.all_units();
    mapping.zero = static_cast<uint32_t>(random.next()) & geometry.all_units() & ~mapping.allocated;
    mapping.host = HostCluster{1};
    for (uint32_t first = 0; first < geometry.units();) {
      const UnitRun run = unit_run(mapping, first, geometry);
      ASSERT_GE(run.count, 1u);
      ASSERT_LE(first + run.count, geometry.units());
      for (uint32_t unit = first; unit < first + run.count; ++unit) {
        ASSERT_EQ(mapping.allocated >> unit & 1, run.kind == UnitKind::data);
        ASSERT_EQ(mapping.zero >> unit & 1, run.kind == UnitKind::zero);
      }
      first += run.count;
      if (first < geometry.units()) {
        ASSERT_NE(unit_run(mapping, first, geometry).kind, run.kind);
      }
    }
  }
}

TEST(Units, ACompressedClusterIsOneRun) {
  const Geometry geometry{.extended_l2 = true};
  const Mapping mapping{.compressed = true};
  EXPECT_EQ(unit_run(mapping, 0, geometry).kind, UnitKind::compressed);
  EXPECT_EQ(unit_run(mapping, 0, geometry).count, 32u);
  EXPECT_EQ(unit_run(mapping, 5, geometry).count, 27u);
}

}  // namespace
}  // namespace byre
