// SPDX-License-Identifier: Apache-2.0
#include "job/secret.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "job/objects.h"

namespace byre {
namespace {

std::string problem_of(std::string_view text) {
  Objects objects;
  const Result<void> parsed = objects.add(text);
  return parsed ? "" : parsed.error().message();
}

std::string data_of(std::string_view text) {
  Objects objects;
  if (!objects.add(text)) return "?";
  const std::string* const data = objects.secret("s0");
  return data ? *data : "none";
}

TEST(Secrets, ComeAsTextBase64OrFromAFile) {
  EXPECT_EQ(data_of("secret,id=s0,data=abc"), "abc");
  EXPECT_EQ(data_of("qom-type=secret,id=s0,data=a,,b"), "a,b");
  EXPECT_EQ(data_of("secret,id=s0,format=base64,data=YWJj"), "abc");
  EXPECT_EQ(data_of("secret,id=s0,format=base64,data=YWI="), "ab");
  EXPECT_EQ(data_of("secret,id=s0,format=base64,data=YQ=="), "a");
  const std::string path = testing::TempDir() + "byre-secret";
  std::ofstream(path) << "in a file\n";
  EXPECT_EQ(data_of("secret,id=s0,file=" + path), "in a file\n");
}

TEST(Secrets, WhatIsWrongWithOneIsToldAsQemuTellsIt) {
  EXPECT_EQ(problem_of(""), "Parameter 'qom-type' is missing");
  EXPECT_EQ(problem_of("id=x"), "Parameter 'qom-type' is missing");
  EXPECT_EQ(problem_of("secret"), "Parameter 'id' is missing");
  EXPECT_EQ(problem_of("secret,id=s0"), "Either 'file' or 'data' must be provided");
  EXPECT_EQ(problem_of("secret,id=s0,data=a,file=b"), "'file' and 'data' are mutually exclusive");
  EXPECT_EQ(problem_of("secret,id=s0,data=a,foo=1"), "Parameter 'foo' is unexpected");
  EXPECT_EQ(problem_of("secret,id=s0,data=!!,format=base64"),
            "Base64 data contains invalid characters");
  EXPECT_EQ(problem_of("nonsense,id=x"), "Parameter 'qom-type' does not accept value 'nonsense'");
  EXPECT_NE(problem_of("secret,id=1,data=a"), "");
  EXPECT_NE(problem_of("secret,id=s0,data=a,keyid=s1"), "");
  EXPECT_NE(problem_of("tls-creds-x509,id=t,dir=x"), "");
  EXPECT_NE(problem_of("secret,id=s0,file=/nowhere/at/all"), "");
}

TEST(Secrets, AnIdIsGivenOnce) {
  Objects objects;
  ASSERT_TRUE(objects.add("secret,id=s0,data=a"));
  EXPECT_FALSE(objects.add("secret,id=s0,data=b"));
  EXPECT_FALSE(objects.add("throttle-group,id=s0"));
  EXPECT_TRUE(objects.add("secret,id=s1,data=b"));
  EXPECT_EQ(*objects.secret("s0"), "a");
  EXPECT_FALSE(objects.secret("s2"));
}

}  // namespace
}  // namespace byre
