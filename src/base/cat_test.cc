// SPDX-License-Identifier: Apache-2.0
#include "base/cat.h"

#include <gtest/gtest.h>

#include "base/units.h"

namespace byre {
namespace {

TEST(Cat, WritesEachPartAsPeopleReadIt) {
  EXPECT_EQ(cat("at ", HostOffset{0x7ffdc}, ": ", 36, " of ", uint64_t{UINT64_MAX}, " bytes"),
            "at 0x7ffdc: 36 of 18446744073709551615 bytes");
  EXPECT_EQ(cat(INT64_MIN, ' ', int8_t{-1}, ' ', uint8_t{65}, ' ', true, ' ', false, ' ', 'x'),
            "-9223372036854775808 -1 65 true false x");
  EXPECT_EQ(cat(0.5, " ", 2.0, " ", 1e300), "0.5 2 1e+300");
  EXPECT_EQ(cat(std::string("a\0b", 3), std::string_view(), std::string("c")),
            std::string("a\0bc", 4));
  EXPECT_EQ(cat(), "");
  EXPECT_EQ(hex(0), "0x0");
}

}  // namespace
}  // namespace byre
