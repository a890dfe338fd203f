// SPDX-License-Identifier: Apache-2.0
#include "cli/image_spec.h"

#include <gtest/gtest.h>

namespace byre {
namespace {

std::string described(const Result<ImageSpec>& spec) {
  if (!spec) return cat("error: ", spec.error().message());
  std::string text = cat(spec->file, " ", spec->format.value_or("?"));
  if (spec->without_backing) text += " alone";
  if (spec->compress) text += " compressed";
  if (spec->offset) text += cat(" from ", *spec->offset);
  if (spec->size) text += cat(" of ", *spec->size);
  return text;
}

TEST(ImageSpec, JsonNamesSayFileFormatAndBacking) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"driver": "qcow2", "file": {"driver": "file", "filename": "/a/b"}})", "/a/b qcow2"},
      {R"({"driver":"qcow2","file":{"driver":"file","filename":"x"},"backing":null})",
       "x qcow2 alone"},
      {R"({"driver": "raw", "file": {"driver": "host_device", "filename": "/dev/sda"}})",
       "/dev/sda raw"},
      {R"({"driver":"raw","offset":512,"size":1024,"file":{"driver":"file","filename":"x"}})",
       "x raw from 512 of 1024"},
      {R"({"file": {"driver": "file", "filename": "x"}})", "x ?"},
      {R"({"driver": "file", "filename": "x"})", "x raw"},
      {R"({"file.filename": "x", "driver": "qcow2"})", "x qcow2"},
      {R"({"driver":"compress","file":{"driver":"qcow2","file":{"filename":"x"}}})",
       "x qcow2 compressed"},
      {R"({"driver":"raw","file":{"driver":"file","filename":"nbd:x"}})", "file:nbd:x raw"},
  };
  for (const auto& [name, want] : cases) {
    EXPECT_EQ(described(parse_json_name(cat("json:", name))), want) << name;
  }
}

TEST(ImageSpec, OptionsSayTheSame) {
  const std::pair<const char*, const char*> cases[] = {
      {"driver=compress,file.driver=qcow2,file.file.driver=file,file.file.filename=a,,b",
       "a,b qcow2 compressed"},
      {"driver=qcow2,file.filename=x,backing=", "x qcow2 alone"},
      {"file.filename=x", "x ?"},
      {"driver=file,filename=x,aio=native", "x raw"},
      {"driver=raw,offset=1M,file.driver=file,file.filename=x", "x raw from 1048576"},
  };
  for (const auto& [text, want] : cases) EXPECT_EQ(described(parse_image_opts(text)), want) << text;
}

TEST(ImageSpec, WhatIsNotKnownIsAnErrorThatNamesIt) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"driver":"qcow2","file":{"driver":"file","filename":"x"},"lazy-refcounts":true})",
       "lazy-refcounts"},
      {R"({"driver":"qcow2","file":{"driver":"file","filename":"x","locking":"off"}})",
       "file.locking"},
      {R"({"driver":"qcow2","backing":{"driver":"raw"},"file":{"filename":"x"}})",
       "backing.driver"},
      {R"({"driver":"qcow2","backing":"node","file":{"filename":"x"}})", "backing"},
      {R"({"driver":"raw","backing":null,"file":{"filename":"x"}})", "backing"},
      {R"({"driver":"vmdk","file":{"filename":"x"}})", "vmdk"},
      {R"({"driver":"qcow2","file":{"driver":"nbd","path":"x"}})", "nbd"},
      {R"({"driver":"qcow2","file":{"driver":"raw","offset":512,"file":{"filename":"x"}}})",
       "inside a part"},
      {R"({"driver":"qcow2","file":{"driver":"file"}})", "filename"},
      {R"({"driver":"qcow2","file":{"filename":""}})", "filename"},
      {R"({"driver":"qcow2","file":"node"})", "filename"},
      {R"({"driver":"qcow2","file":{"filename":"a\u0000b"}})", "zero byte"},
      {R"({"driver":"raw","offset":-5,"file":{"filename":"x"}})", "offset"},
      {R"({"driver":"raw","offset":"many","file":{"filename":"x"}})", "many"},
      {R"({"driver":["qcow2"]})", "driver"},
      {R"([])", "JSON"},
      {R"({"driver")", "JSON"},
      {R"({"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":1}}}}}}}}}})", "deep"},
      {R"({})", "filename"},
  };
  for (const auto& [name, want] : cases) {
    const std::string told = described(parse_json_name(cat("json:", name)));
    EXPECT_TRUE(told.starts_with("error: ")) << name << " " << told;
    EXPECT_NE(told.find(want), std::string::npos) << name << " " << told;
  }
  for (const char* text : {"", "driver=qcow2", "a=b", "driver=qcow2,file.filename=x,c"})
    EXPECT_FALSE(parse_image_opts(text)) << text;
}

}  // namespace
}  // namespace byre
