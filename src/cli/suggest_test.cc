// SPDX-License-Identifier: Apache-2.0
#include "cli/suggest.h"

#include <gtest/gtest.h>

#include <array>

namespace byre {
namespace {

constexpr std::array<std::string_view, 7> kKnown = {"check",  "convert", "create",  "info",
                                                    "resize", "map",     "snapshot"};

TEST(Closest, OneSlipForEachThreeLetters) {
  EXPECT_EQ(closest("ino", kKnown), "info");
  EXPECT_EQ(closest("infoo", kKnown), "info");
  EXPECT_EQ(closest("ifno", kKnown), "info");
  EXPECT_EQ(closest("crate", kKnown), "create");
  EXPECT_EQ(closest("snpashto", kKnown), "snapshot");
  EXPECT_EQ(closest("mpa", kKnown), "map");
}

TEST(Closest, ABeginningIsEnough) {
  EXPECT_EQ(closest("snap", kKnown), "snapshot");
  EXPECT_EQ(closest("re", kKnown), "resize");
}

TEST(Closest, WhatIsFarOrUndecidedIsNoAdvice) {
  EXPECT_EQ(closest("rebase", kKnown), "");
  EXPECT_EQ(closest("xyz", kKnown), "");
  EXPECT_EQ(closest("c", kKnown), "");
  EXPECT_EQ(closest("", kKnown), "");
  EXPECT_EQ(closest(std::string(1000, 'x'), kKnown), "");
  constexpr std::array<std::string_view, 2> kTwins = {"--force", "--forge"};
  EXPECT_EQ(closest("--forxe", kTwins), "");
}

}  // namespace
}  // namespace byre
