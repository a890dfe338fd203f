// SPDX-License-Identifier: Apache-2.0
#include "cli/ranged.h"

#include <gtest/gtest.h>

namespace byre {
namespace {

constexpr ValueRange kCount{.what = "count", .low = 1, .high = 100};

std::string error_of(const Result<uint64_t>& result) {
  return result ? "" : result.error().message();
}

TEST(RangedNumber, IsReadAsStrtoullReadsIt) {
  EXPECT_EQ(*ranged_number("17", kCount), 17u);
  EXPECT_EQ(*ranged_number(" +0x10", kCount), 16u);
  EXPECT_EQ(*ranged_number("010", kCount), 8u);
  for (const char* text : {"", " ", "x", "1k", "1.0", "5 ", "--5", "0x"}) {
    EXPECT_EQ(error_of(ranged_number(text, kCount)), cat("Invalid count specified: '", text, "'."));
  }
  for (const char* text : {"0", "101", "-1", "99999999999999999999999"}) {
    EXPECT_EQ(error_of(ranged_number(text, kCount)),
              "Invalid count specified. Must be between 1 and 100.");
  }
  EXPECT_EQ(*ranged_number("-0", {.what = "count", .low = 0, .high = 1}), 0u);
}

TEST(RangedSize, HasSuffixes) {
  constexpr ValueRange kSize{.what = "bs", .low = 1, .high = 1 << 20};
  EXPECT_EQ(*ranged_size("1.5k", kSize), 1536u);
  EXPECT_EQ(*ranged_size("1M", kSize), 1u << 20);
  for (const char* text : {"", "abc", "1kk", "+-1"}) {
    EXPECT_EQ(error_of(ranged_size(text, kSize)), cat("Invalid bs specified: '", text, "'."));
  }
  for (const char* text : {"0", "-1", "2M", "9E", "99999999999999999999"}) {
    EXPECT_EQ(error_of(ranged_size(text, kSize)),
              "Invalid bs specified. Must be between 1 and 1048576.");
  }
}

}  // namespace
}  // namespace byre
