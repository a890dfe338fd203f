// SPDX-License-Identifier: Apache-2.0
#include "export/nbd_dirty_context.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

namespace byre::nbd {
namespace {

class Runs final : public DirtyRuns {
 public:
  std::optional<std::pair<uint64_t, uint64_t>> next_run(uint64_t from) const override {
    for (const auto& [first, length] : runs) {
      if (first + length <= from) continue;
      const uint64_t at = std::max(first, from);
      return std::pair(at, first + length - at);
    }
    return std::nullopt;
  }
  std::map<uint64_t, uint64_t> runs;
};

using Described = std::pair<uint64_t, uint32_t>;

TEST(NbdDirtyContext, TellsCleanAndDirtyRangesApart) {
  const auto runs = std::make_shared<Runs>();
  runs->runs = {{100, 50}, {300, 10}};
  const ExportContext context = dirty_bitmap_context("daily", runs);
  EXPECT_EQ(context.name, "qemu:dirty-bitmap:daily");
  EXPECT_EQ(context.describe(0), Described(100, 0));
  EXPECT_EQ(context.describe(100), Described(50, 1));
  EXPECT_EQ(context.describe(149), Described(1, 1));
  EXPECT_EQ(context.describe(150), Described(150, 0));
  EXPECT_EQ(context.describe(300), Described(10, 1));
}

TEST(NbdDirtyContext, WithoutAnotherRunAllThatFollowsIsClean) {
  const ExportContext context = dirty_bitmap_context("", std::make_shared<Runs>());
  EXPECT_EQ(context.name, "qemu:dirty-bitmap:");
  EXPECT_EQ(context.describe(7), Described(UINT64_MAX - 7, 0));
}

TEST(NbdDirtyContext, SaysWhatIsDirtyNow) {
  const auto runs = std::make_shared<Runs>();
  const ExportContext context = dirty_bitmap_context("b", runs);
  runs->runs = {{0, 4}};
  EXPECT_EQ(context.describe(0), Described(4, 1));
}

}  // namespace
}  // namespace byre::nbd
