// SPDX-License-Identifier: Apache-2.0
#include "cli/environment.h"

#include <gtest/gtest.h>

#include <map>

namespace byre {
namespace {

Result<Environment> read(const std::map<std::string, std::string>& set) {
  return read_environment([&](const char* name) -> const char* {
    const auto it = set.find(name);
    return it == set.end() ? nullptr : it->second.c_str();
  });
}

TEST(Environment, NothingSetIsTheDefault) {
  for (const auto& set :
       {std::map<std::string, std::string>{}, {{"BYRE_FOLLOW", ""}, {"BYRE_CHAIN_MAX", ""}}}) {
    const Result<Environment> environment = read(set);
    ASSERT_TRUE(environment);
    EXPECT_FALSE(environment->follow);
    EXPECT_EQ(environment->chain_max, 1024u);
  }
}

TEST(Environment, ValuesAreRead) {
  const Result<Environment> environment = read({{"BYRE_FOLLOW", "any"}, {"BYRE_CHAIN_MAX", "3"}});
  ASSERT_TRUE(environment);
  EXPECT_EQ(environment->follow, OpenPolicy::any_file);
  EXPECT_EQ(environment->chain_max, 3u);
}

TEST(Environment, WhatMakesNoSenseIsAnError) {
  for (const auto& [name, value] :
       std::initializer_list<std::pair<std::string, std::string>>{{"BYRE_FOLLOW", "all"},
                                                                  {"BYRE_FOLLOW", "Any"},
                                                                  {"BYRE_CHAIN_MAX", "0"},
                                                                  {"BYRE_CHAIN_MAX", "x"},
                                                                  {"BYRE_CHAIN_MAX", "9999999"}}) {
    const Result<Environment> environment = read({{name, value}});
    ASSERT_FALSE(environment) << name << value;
    EXPECT_NE(environment.error().message().find(name), std::string::npos);
  }
}

}  // namespace
}  // namespace byre
