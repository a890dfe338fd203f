// SPDX-License-Identifier: Apache-2.0
#include "daemon/qmp_type.h"

#include <gtest/gtest.h>

#include "daemon/blockdev_options.h"
#include "daemon/qmp_command.h"

namespace byre::qmp {
namespace {

enum class Colour : uint8_t { red, green };
const Enumeration& definition_of(const Colour*) {
  static const Enumeration kColours({"red", "green"}, {{"pink", "pink is not supported"}});
  return kColours;
}
struct Inner {
  std::string path;
  std::vector<uint32_t> numbers;
};
const Struct& definition_of(const Inner*) {
  static const Struct kStruct(
      {field("path", &Inner::path, "."), with_default("numbers", &Inner::numbers, ".")});
  return kStruct;
}
struct Outer {
  std::string name;
  std::optional<int64_t> size;
  bool on = true;
  Colour colour = Colour::green;
  std::optional<Inner> inner;
  std::optional<std::string> red_only;
};
const Struct& definition_of(const Outer*) {
  static const Struct kStruct(
      {field("name", &Outer::name, "."), field("size", &Outer::size, "."),
       with_default("on", &Outer::on, "."), with_default("colour", &Outer::colour, "."),
       field("inner", &Outer::inner, ".")},
      "colour", {{.value = "red", .fields = {field("red-only", &Outer::red_only, ".")}}});
  return kStruct;
}

/// The error of `text`, or "" when it is taken.
std::string refusal(const std::string& text, bool from_words = false) {
  Outer outer;
  const Result<void> read = definition_of(static_cast<const Outer*>(nullptr))
                                .read(Json::parse(text), {"", from_words}, &outer);
  return read ? "" : read.error().message();
}

TEST(QmpType, WhatIsWellFormedIsRead) {
  Outer outer;
  const Json json = Json::parse(
      R"({"name": "x", "size": -3, "on": false, "colour": "red", "red-only": "r",
          "inner": {"path": "p", "numbers": [1, 2]}})");
  ASSERT_TRUE(definition_of(static_cast<const Outer*>(nullptr)).read(json, {}, &outer));
  EXPECT_EQ(outer.name, "x");
  EXPECT_EQ(outer.size, -3);
  EXPECT_FALSE(outer.on);
  EXPECT_EQ(outer.colour, Colour::red);
  EXPECT_EQ(outer.red_only, "r");
  ASSERT_TRUE(outer.inner);
  EXPECT_EQ(outer.inner->numbers, (std::vector<uint32_t>{1, 2}));
}

TEST(QmpType, EachMistakeHasItsWords) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({})", "Parameter 'name' is missing"},
      {R"({"name": 1})", "Invalid parameter type for 'name', expected: string"},
      {R"({"name": null})", "Invalid parameter type for 'name', expected: string"},
      {R"({"name": "x", "y": 1})", "Parameter 'y' is unexpected"},
      {R"({"name": "x", "size": 1.5})", "Invalid parameter type for 'size', expected: integer"},
      {R"({"name": "x", "size": 9223372036854775808})",
       "Invalid parameter type for 'size', expected: integer"},
      {R"({"name": "x", "on": "on"})", "Invalid parameter type for 'on', expected: boolean"},
      {R"({"name": "x", "colour": "blue"})", "Parameter 'colour' does not accept value 'blue'"},
      {R"({"name": "x", "colour": "pink"})", "pink is not supported"},
      {R"({"name": "x", "red-only": "r"})", "Parameter 'red-only' is unexpected"},
      {R"({"name": "x", "inner": []})", "Invalid parameter type for 'inner', expected: object"},
      {R"({"name": "x", "inner": {}})", "Parameter 'inner.path' is missing"},
      {R"({"name": "x", "inner": {"path": "", "z": 0}})", "Parameter 'inner.z' is unexpected"},
      {R"({"name": "x", "inner": {"path": "", "numbers": {}}})",
       "Invalid parameter type for 'inner.numbers', expected: array"},
      {R"({"name": "x", "inner": {"path": "", "numbers": [1, "a"]}})",
       "Invalid parameter type for 'inner.numbers[1]', expected: integer"},
      {R"({"name": "x", "inner": {"path": "", "numbers": [-1]}})",
       "Parameter 'inner.numbers[0]' expects uint32_t"},
      {R"([])", "Invalid parameter type for 'null', expected: object"},
  };
  for (const auto& [text, words] : cases) EXPECT_EQ(refusal(text), words) << text;
}

TEST(QmpType, ACommandLineHasOnlyTexts) {
  EXPECT_EQ(refusal(R"({"name": "x", "size": "12", "on": "off"})", true), "");
  EXPECT_EQ(refusal(R"({"name": "x", "size": "many"})", true), "Parameter 'size' expects integer");
  EXPECT_EQ(refusal(R"({"name": "x", "on": "maybe"})", true),
            "Parameter 'on' expects 'on' or 'off'");
}

TEST(QmpType, DevicesAreCheckedByTheirDriversDefinitions) {
  const auto refused = [](const char* text) {
    const Result<void> checked = check_blockdev(Json::parse(text), {});
    return checked ? "" : checked.error().message();
  };
  EXPECT_EQ(refused(R"({"driver": "qcow2", "node-name": "q", "file": "f"})"), "");
  EXPECT_EQ(refused(R"({"driver": "qcow2", "node-name": "q",
                        "file": {"driver": "file", "filename": "x", "cache": {"direct": true}},
                        "backing": null})"),
            "");
  EXPECT_EQ(refused(R"({"node-name": "q"})"), "Parameter 'driver' is missing");
  EXPECT_EQ(refused(R"({"driver": "nosuch"})"),
            "Parameter 'driver' does not accept value 'nosuch'");
  EXPECT_EQ(refused(R"({"driver": "rbd"})"), "Driver 'rbd' is not supported (yet)");
  EXPECT_EQ(refused(R"({"driver": "file"})"), "Parameter 'filename' is missing");
  EXPECT_EQ(refused(R"({"driver": "qcow2"})"), "Parameter 'file' is missing");
  EXPECT_EQ(refused(R"({"driver": "file", "filename": "x", "foo": 1})"),
            "Parameter 'foo' is unexpected");
  EXPECT_EQ(refused(R"({"driver": "qcow2", "file": {"driver": "file"}})"),
            "Parameter 'file.filename' is missing");
  EXPECT_EQ(refused(R"({"driver": "file", "filename": "x", "read-only": "yes"})"),
            "Invalid parameter type for 'read-only', expected: boolean");
}

}  // namespace
}  // namespace byre::qmp
