// SPDX-License-Identifier: Apache-2.0
#include "cli/text.h"

#include <gtest/gtest.h>

#include "cli/json.h"

namespace byre {
namespace {

TEST(Printable, LeavesTextAlone) {
  for (std::string_view text : {"", "disk.qcow2", "it's a \\ name", "Müller", "世界 😀"}) {
    EXPECT_EQ(printable(text), text);
  }
}

TEST(Printable, DisarmsWhatDrivesATerminal) {
  EXPECT_EQ(printable("a\x1b[2J\n\x7f"), R"(a\x1b[2J\x0a\x7f)");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            R"(\xc2\x9b31m)");
  EXPECT_EQ(printable("\xff\xfe"), R"(\xff\xfe)");
}

TEST(NextCodepoint, RefusesWhatIsNotUtf8) {
  for (std::string_view text : {"\x80", "\xc3", "\xc0\xaf", "\xe0\x80\x80", "\xed\xa0\x80",
                                "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xc3("}) {
    const Codepoint point = next_codepoint(text);
    EXPECT_FALSE(point.valid) << printable(text);
    EXPECT_EQ(point.length, 1u);
  }
  EXPECT_EQ(next_codepoint("\xf4\x8f\xbf\xbf").value, 0x10ffffu);
  EXPECT_EQ(next_codepoint("\xe4\xb8\x96x").length, 3u);
}

TEST(SizeText, HasThreeDigits) {
  const std::pair<uint64_t, std::string_view> cases[] = {
      {0, "0 B"},           {999, "999 B"},          {1000, "0.977 KiB"},    {1024, "1 KiB"},
      {1536, "1.5 KiB"},    {1000448, "977 KiB"},    {1024000, "0.977 MiB"}, {1047552, "0.999 MiB"},
      {67108864, "64 MiB"}, {1000000000, "954 MiB"}, {UINT64_MAX, "16 EiB"},
  };
  for (const auto& [bytes, text] : cases) EXPECT_EQ(size_text(bytes), text);
}

TEST(ToJson, IsLaidOutAsQemuImgDoes) {
  const Json value = {
      {"b", 1}, {"a", {{"list", {1, 2}}, {"none", Json::array()}}}, {"yes", true}, {"text", "x"}};
  EXPECT_EQ(to_json(value), R"({
    "b": 1,
    "a": {
        "list": [
            1,
            2
        ],
        "none": [
        ]
    },
    "yes": true,
    "text": "x"
}
)");
}

TEST(ToJson, EscapesWhatIsNotPlain) {
  EXPECT_EQ(to_json("a\"\\\b\f\n\r\t\x01\x7fé世😀\xff"),
            R"("a\"\\\b\f\n\r\t\u0001\u007F\u00E9\u4E16\uD83D\uDE00\uFFFD")"
            "\n");
}

TEST(ToListing, IsForPeople) {
  const Json value = {
      {"data-file", "x\x1b"}, {"raw", false}, {"list", {{{"flags", Json::array()}, {"n", 1}}, 2}}};
  EXPECT_EQ(to_listing(value, 1),
            "    data file: x\\x1b\n"
            "    raw: false\n"
            "    list:\n"
            "        [0]:\n"
            "            flags:\n"
            "            n: 1\n"
            "        [1]: 2\n");
}

}  // namespace
}  // namespace byre
