// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/metadata_set.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

namespace byre {
namespace {

TEST(MetadataSet, TellsWhatWasThereAlready) {
  MetadataSet set;
  EXPECT_TRUE(set.add({7}));
  EXPECT_FALSE(set.add({7}));
  EXPECT_TRUE(set.add_run({{511}, 3}));  // Over the end of a word.
  EXPECT_FALSE(set.add({512}));
  EXPECT_FALSE(set.add_run({{513}, 1}));
  EXPECT_TRUE(set.contains({511}));
  EXPECT_TRUE(set.contains({513}));
  EXPECT_FALSE(set.contains({514}));
  set.remove({7});
  EXPECT_FALSE(set.contains({7}));
  set.remove_run({{511}, 2});  // Not as it was added.
  EXPECT_TRUE(set.contains({512}));
  set.remove_run({{511}, 3});
  EXPECT_FALSE(set.contains({512}));
}

/// Beside a set of clusters and a list of runs, with lookups between all changes.
TEST(MetadataSet, KeepsUpWithChanges) {
  std::mt19937_64 draw(1);
  MetadataSet set;
  std::set<uint64_t> single;
  std::vector<HostSpan> runs;
  const auto in_runs = [&](uint64_t cluster) {
    for (const HostSpan& run : runs)
      if (cluster - run.first.value < run.count) return true;
    return false;
  };
  for (int step = 0; step < 20000; ++step) {
    const uint64_t cluster = draw() % 4096;
    switch (draw() % 5) {
      case 0:
        EXPECT_EQ(set.add({cluster}), !in_runs(cluster) && single.insert(cluster).second);
        break;
      case 1:
        set.remove({cluster});
        single.erase(cluster);
        break;
      case 2: {
        const HostSpan run{{cluster}, draw() % 700 + 1};
        bool is_free = true;
        for (uint64_t i = 0; i < run.count; ++i) is_free &= !in_runs(cluster + i);
        EXPECT_EQ(set.add_run(run), is_free);
        if (is_free) runs.push_back(run);
        break;
      }
      case 3:
        if (!runs.empty()) {
          set.remove_run(runs.back());
          runs.pop_back();
        }
        break;
      default:
        break;
    }
    for (int i = 0; i < 3; ++i) {
      const uint64_t asked = (cluster + draw() % 600) % 5000;
      ASSERT_EQ(set.contains({asked}), single.contains(asked) || in_runs(asked)) << step;
    }
  }
}

}  // namespace
}  // namespace byre
