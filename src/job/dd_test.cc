// SPDX-License-Identifier: Apache-2.0
#include "job/dd.h"

#include <gtest/gtest.h>

namespace byre {
namespace {

TEST(PartOf, CountAndSkipAreBlocks) {
  // Each byte of a small disk, taken one by one.
  for (uint64_t size = 0; size < 20; ++size) {
    for (uint64_t block = 1; block < 8; ++block) {
      for (uint64_t skip = 0; skip < 8; ++skip) {
        for (uint64_t count = 0; count < 8; ++count) {
          uint64_t expected = 0;
          for (uint64_t at = skip * block; at < size && at < (skip + count) * block; ++at) {
            ++expected;
          }
          const DiskPart part = part_of(size, {.block_size = block, .count = count, .skip = skip});
          EXPECT_EQ(part.length, expected);
          EXPECT_EQ(part.skips_all, skip * block > size);
          if (expected > 0) EXPECT_EQ(part.offset, skip * block);
          EXPECT_LE(part.offset + part.length, size);
        }
      }
    }
  }
}

TEST(PartOf, ACountFromTheStartIncludesWhatIsSkipped) {
  const BlockRange range{.block_size = 1024, .count = 3, .skip = 2, .count_from_start = true};
  EXPECT_EQ(part_of(1 << 20, range).offset, 2048u);
  EXPECT_EQ(part_of(1 << 20, range).length, 1024u);
  EXPECT_TRUE(part_of(1 << 20, {.count = 1, .skip = 2, .count_from_start = true}).skips_all);
}

TEST(PartOf, NothingOverflows) {
  EXPECT_TRUE(part_of(512, {.block_size = 1 << 30, .skip = uint64_t{1} << 40}).skips_all);
  EXPECT_EQ(part_of(512, {.block_size = 1 << 30, .count = uint64_t{1} << 40}).length, 512u);
}

}  // namespace
}  // namespace byre
