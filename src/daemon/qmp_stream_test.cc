// SPDX-License-Identifier: Apache-2.0
#include "daemon/qmp_stream.h"

#include <gtest/gtest.h>

#include <vector>

namespace byre::qmp {
namespace {

/// "value", "wrong: ..." or "broken: ..." of each message in `text`, fed `step` bytes at a time.
std::vector<std::string> heard(std::string_view text, size_t step = 1, Stream::Limits limits = {}) {
  Stream stream(limits);
  std::vector<std::string> all;
  for (size_t at = 0; at < text.size(); at += step) {
    stream.feed(text.substr(at, step));
    for (Message m = stream.next({}); m.kind != Message::Kind::none; m = stream.next({})) {
      if (m.kind == Message::Kind::value) {
        all.push_back(text_of_json(m.value));
        continue;
      }
      all.push_back((m.kind == Message::Kind::wrong ? "wrong: " : "broken: ") + m.problem);
      if (m.kind == Message::Kind::broken) return all;
    }
  }
  return all;
}
using Texts = std::vector<std::string>;

TEST(QmpStream, ValuesNeedNothingBetweenThem) {
  EXPECT_EQ(heard(R"({"a":1}{"b":[2]} [3]"x"4 null )"),
            (Texts{R"({"a":1})", R"({"b":[2]})", "[3]", R"("x")", "4", "null"}));
}

TEST(QmpStream, HoweverTextIsCutTheSameValuesComeOut) {
  const std::string text = R"({"execute": "x", "arguments": {"n": "}]\"'", 'm': '"\'{'}} {} )";
  const Texts whole = heard(text, text.size());
  ASSERT_EQ(whole.size(), 2u);
  EXPECT_EQ(whole[0], R"({"arguments":{"m":"\"'{","n":"}]\"'"},"execute":"x"})");
  for (size_t step = 1; step < text.size(); ++step) EXPECT_EQ(heard(text, step), whole) << step;
}

TEST(QmpStream, WhatIsNoJsonIsSkippedToItsLastBracket) {
  const Texts all = heard("{]{\"a\":1} } nonsense {\"a\" 1}[1,]{\"a\":1,\"a\":2} {}");
  ASSERT_EQ(all.size(), 8u);
  EXPECT_TRUE(all[0].starts_with("wrong: JSON parse error")) << all[0];
  EXPECT_EQ(all[1], R"({"a":1})");
  for (size_t i = 2; i <= 6; ++i) EXPECT_TRUE(all[i].starts_with("wrong: ")) << all[i];
  EXPECT_EQ(all[6], "wrong: JSON parse error, duplicate key");
  EXPECT_EQ(all[7], "{}");
}

TEST(QmpStream, AValueThatIsTooLongEndsIt) {
  const Texts all = heard("{\"a\": \"" + std::string(200, 'x') + "\"}", 7, {.text_max = 100});
  EXPECT_EQ(all, (Texts{"broken: JSON value of more than 100 bytes"}));
}

TEST(QmpStream, AValueThatIsTooDeepEndsItBeforeItIsWhole) {
  EXPECT_EQ(heard(std::string(5000, '['), 64, {.depth_max = 10}),
            (Texts{"broken: JSON value with more than 10 levels"}));
  EXPECT_EQ(heard(std::string(10, '[') + std::string(10, ']'), 64, {.depth_max = 10}).size(), 1u);
}

TEST(QmpStream, AValueWithTooManyPartsIsWrong) {
  EXPECT_EQ(heard("[1,2,3,4] [1,2]", 64, {.items_max = 4}),
            (Texts{"wrong: JSON value with more than 4 values in it", "[1,2]"}));
}

TEST(QmpStream, TooManyValuesInASecondEndIt) {
  Stream stream(Stream::Limits{.rate_max = 3});
  stream.feed("1 2 3 4 ");
  for (int i = 0; i < 3; ++i) EXPECT_EQ(stream.next({}).kind, Message::Kind::value);
  EXPECT_EQ(stream.next({}).kind, Message::Kind::broken);
  EXPECT_EQ(stream.next({kSecond}).kind, Message::Kind::broken);  // For good.

  Stream slow(Stream::Limits{.rate_max = 3});
  slow.feed("1 2 3 4 ");
  for (int i = 0; i < 4; ++i) EXPECT_EQ(slow.next({i * kSecond}).kind, Message::Kind::value);
}

}  // namespace
}  // namespace byre::qmp
