// SPDX-License-Identifier: Apache-2.0
#include "cli/exit_code.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace byre {
namespace {

TEST(ExitCode, EachClassOfErrorHasItsOwn) {
  EXPECT_EQ(exit_code(Errc::invalid), 64);
  EXPECT_EQ(exit_code(Errc::corrupt), 65);
  EXPECT_EQ(exit_code(Errc::not_found), 66);
  EXPECT_EQ(exit_code(Errc::unsupported), 69);
  EXPECT_EQ(exit_code(Errc::exists), 73);
  EXPECT_EQ(exit_code(Errc::io), 74);
  EXPECT_EQ(exit_code(Errc::busy), 75);
  EXPECT_EQ(exit_code(Errc::denied), 77);
  EXPECT_EQ(exit_code(Errc::read_only), 77);
  EXPECT_EQ(exit_code(Errc::no_space), 79);
  EXPECT_EQ(exit_code(Errc::cancelled), 1);
}

TEST(ExitCode, EveryCodeIsExplained) {
  for (int number = 0; name_of(static_cast<Errc>(number)) != "unknown"; ++number) {
    const int code = exit_code(static_cast<Errc>(number));
    EXPECT_TRUE(std::ranges::any_of(exit_codes(), [&](const ExitCode& e) {
      return e.code == code;
    })) << code;
  }
  EXPECT_TRUE(std::ranges::is_sorted(exit_codes(), {}, &ExitCode::code));
}

}  // namespace
}  // namespace byre
