// SPDX-License-Identifier: Apache-2.0
#include "cli/values.h"

#include <gtest/gtest.h>

#include "base/prng.h"

namespace byre {
namespace {

struct SizeCase {
  std::string_view text;
  std::optional<uint64_t> bytes;
};

TEST(ParseSize, TakesWhatQemuImgTakes) {
  const SizeCase cases[] = {
      {"0", 0},
      {"1", 1},
      {"512", 512},
      {"1k", 1024},
      {"1K", 1024},
      {"64M", 64 * MiB},
      {"10g", 10 * GiB},
      {"2T", 2 * TiB},
      {"1P", 1024 * TiB},
      {"7E", 7 * 1024 * 1024 * TiB},
      {"1b", 1},
      {"1B", 1},
      {"1.5G", GiB + 512 * MiB},
      {"1.25M", MiB + 256 * KiB},
      {"1.k", 1024},
      {"0.5k", 512},
      {"0.00001k", 0},
      {"1.999999999k", 2048},
      {"1.0", 1},
      {"0.0", 0},
      {"010", 10},
      {"0x10", 16},
      {"0X1f", 31},
      {" 1k", 1024},
      {"+1k", 1024},
      {"9223372036854775807", INT64_MAX},
      {"7.9999999999999999999999999999999999E", INT64_MAX},
      {"", {}},
      {"k", {}},
      {"abc", {}},
      {"-1", {}},
      {"1.5", {}},
      {"0.5b", {}},
      {".5k", 512},
      {"1kk", {}},
      {"1kB", {}},
      {"1KiB", {}},
      {"1k ", {}},
      {"1 k", {}},
      {"1,5k", {}},
      {"1e3", {}},
      {"0x", {}},
      {"0x10k", {}},
      {"inf", {}},
      {"1s", {}},
      {"8E", {}},
      {"16E", {}},
      {"9223372036854775808", {}},
      {"18446744073709551616", {}},
      {"99999999999999999999999999", {}},
      {"17179869184G", {}},
  };
  for (const SizeCase& c : cases) {
    const Result<uint64_t> size = parse_size(c.text);
    ASSERT_EQ(size.has_value(), c.bytes.has_value()) << c.text;
    if (size) EXPECT_EQ(*size, *c.bytes) << c.text;
  }
}

TEST(ParseSize, TellsTooLargeFromMalformed) {
  for (std::string_view text :
       {"8E", "16E", "-1", "-1M", "9223372036854775808", "99999999999999999999"}) {
    EXPECT_EQ(parse_size(text).error().code(), Errc::no_space) << text;
  }
  EXPECT_EQ(parse_size("1x").error().code(), Errc::invalid);
  EXPECT_EQ(parse_size_option("1x", "thing").error().message(), "Invalid thing specified: '1x'.");
  EXPECT_EQ(parse_size_option("8E", "thing").error().message(),
            "Invalid thing specified. Must be between 0 and 9223372036854775807.");
}

TEST(ParseSize, ParametersGoUpTo64Bits) {
  EXPECT_EQ(*parse_size_parameter("18446744073709551615", "size"), UINT64_MAX);
  EXPECT_EQ(*parse_size_parameter("15E", "size"), 15ull << 60);
  EXPECT_FALSE(parse_size_parameter("16E", "size"));
}

TEST(ParseSize, EveryWholeNumberComesBack) {
  Prng prng(1);
  for (int i = 0; i < 2000; ++i) {
    const uint64_t value = prng.next() >> prng.between(1, 63);
    EXPECT_EQ(*parse_size(cat(value)), value);
    EXPECT_EQ(*parse_size(hex(value)), value);
    if (value < (1ull << 52)) EXPECT_EQ(*parse_size(cat(value, "k")), value << 10);
  }
}

OptionList options_of(std::string_view text) {
  OptionList options;
  EXPECT_TRUE(parse_value(text, options)) << text;
  return options;
}

TEST(ParseOptions, AreSplitAtSingleCommas) {
  OptionList options = options_of("a=1,b=x,,y,c,d==,e=");
  EXPECT_EQ(options.take("a"), "1");
  EXPECT_EQ(options.take("b"), "x,y");
  EXPECT_EQ(options.take("c"), "on");
  EXPECT_EQ(options.take("d"), "=");
  EXPECT_EQ(options.take("e"), "");
  EXPECT_EQ(options.take("a"), std::nullopt);
  EXPECT_TRUE(options.pairs.empty());
}

TEST(ParseOptions, TheLastOneWins) {
  OptionList options = options_of("a=1,a=2");
  ASSERT_TRUE(parse_value("a=3", options));
  EXPECT_EQ(options.take("a"), "3");
  EXPECT_TRUE(options.pairs.empty());
}

TEST(ParseOptions, ANameByItselfIsAFlag) {
  OptionList list;
  ASSERT_TRUE(parse_value("lazy_refcounts,noextended_l2,no,a=no", list));
  const std::vector<std::pair<std::string, std::string>> wanted = {
      {"lazy_refcounts", "on"}, {"extended_l2", "off"}, {"", "off"}, {"a", "no"}};
  EXPECT_EQ(list.pairs, wanted);
}

TEST(ParseOptions, HelpIsAQuestion) {
  EXPECT_TRUE(options_of("help").help);
  EXPECT_TRUE(options_of("a=1,?").help);
  EXPECT_FALSE(options_of("help=1").help);
}

TEST(ParseOptions, LooseEndsAreErrors) {
  for (std::string_view text : {"", ",", "a=1,", ",a=1"}) {
    OptionList options;
    EXPECT_FALSE(parse_value(text, options)) << text;
  }
}

TEST(ParseBool, HasTwoWordsAndTheirKin) {
  for (std::string_view text : {"on", "yes", "true", "y"})
    EXPECT_TRUE(*parse_bool_parameter(text, "x"));
  for (std::string_view text : {"off", "no", "false", "n"}) {
    EXPECT_FALSE(*parse_bool_parameter(text, "x"));
  }
  for (std::string_view text : {"", "1", "0", "ON", "maybe"}) {
    EXPECT_FALSE(parse_bool_parameter(text, "x").has_value()) << text;
  }
}

TEST(ParseNumber, KeepsItsBounds) {
  EXPECT_EQ(*parse_number("16", 1, 16), 16u);
  for (std::string_view text :
       {"0", "17", "", "x", "1x", "-1", " ", "+", "+-1", "1 ", "0x", "0x11", "x1"}) {
    EXPECT_FALSE(parse_number(text, 1, 16)) << text;
  }
  // As strtoul() has it.
  for (std::string_view text : {" 2", "\t2", "+2", " +2", "0x2", "0X2", "02"}) {
    EXPECT_EQ(*parse_number(text, 1, 16), 2u) << text;
  }
}

TEST(CacheModes, AreTheFiveOfQemu) {
  for (std::string_view name : {"writeback", "writethrough", "none", "directsync", "unsafe"}) {
    EXPECT_TRUE(find_cache_mode(name)) << name;
  }
  EXPECT_FALSE(find_cache_mode("fast"));
  EXPECT_TRUE(is_direct(CacheMode::directsync) && is_write_through(CacheMode::directsync));
  EXPECT_TRUE(is_direct(CacheMode::none) && !is_write_through(CacheMode::none));
}

}  // namespace
}  // namespace byre
