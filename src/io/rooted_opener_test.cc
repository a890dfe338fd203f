// SPDX-License-Identifier: Apache-2.0
#include "io/rooted_opener.h"

#include <unistd.h>

#include <filesystem>

#include "io/io_testing.h"

namespace byre {
namespace {

class RootedTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<std::unique_ptr<Reactor>> made = make_reactor();
    ASSERT_TRUE(made);
    reactor_ = *std::move(made);
    for (const char* name : {"root/deep", "rooted", "outside"}) {
      std::filesystem::create_directories(folder_ / name);
    }
    for (const char* name : {"root/a", "root/deep/b", "rooted/x", "outside/x"}) {
      ASSERT_TRUE(File::open(*reactor_, folder_ / name, {.writable = true, .create = true}));
    }
    auto opener = RootedOpener::make(*reactor_, folder_ / "root", OpenPolicy::any_file);
    ASSERT_TRUE(opener) << opener.error().message();
    opener_ = *std::move(opener);
  }
  void link(const std::string& to, const char* name) {
    std::filesystem::create_symlink(to, folder_ / name);
  }
  /// nullopt: it was opened.
  std::optional<Errc> refusal(const char* name, FileOptions options = {}) {
    auto file = opener_->open(std::string(folder_ / name), options);
    if (file) return std::nullopt;
    return file.error().code();
  }
  bool is_there(const char* name) { return access((folder_ / name).c_str(), F_OK) == 0; }

  TemporaryFolder folder_;
  std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<RootedOpener> opener_;
};

constexpr FileOptions kNew{.writable = true, .create = true};
constexpr FileOptions kReplace{.writable = true, .create = true, .replace = true};

TEST_F(RootedTest, WhatCountsIsWhereItLies) {
  link("deep/b", "root/inside");
  link("../outside/x", "root/out");
  link("../outside", "root/folder");
  EXPECT_EQ(refusal("root/a"), std::nullopt);
  EXPECT_EQ(refusal("root/deep/../a"), std::nullopt);
  EXPECT_EQ(refusal("outside/../root/inside"), std::nullopt);
  for (const char* name : {"root", "rooted/x", "outside/x", "root/../outside/x", "root/out",
                           "root/folder/x", "outside/nosuch", "nosuch/nosuch"}) {
    EXPECT_EQ(refusal(name), Errc::denied) << name;
  }
  EXPECT_EQ(refusal("root/nosuch"), Errc::not_found);
  EXPECT_EQ(refusal("root/nosuch/nosuch"), Errc::not_found);
  EXPECT_EQ(refusal("root/deep"), Errc::invalid);
}

TEST_F(RootedTest, FilesAreMadeBeneathItOnly) {
  EXPECT_EQ(refusal("root/new", kNew), std::nullopt);
  EXPECT_EQ(refusal("root/deep/new", kReplace), std::nullopt);
  EXPECT_EQ(refusal("root/a", kNew), Errc::exists);
  EXPECT_EQ(refusal("root/a", kReplace), std::nullopt);
  for (const FileOptions& options : {kNew, kReplace}) {
    EXPECT_EQ(refusal("outside/new", options), Errc::denied);
    EXPECT_EQ(refusal("root/../outside/new", options), Errc::denied);
    EXPECT_EQ(refusal("root/nosuch/new", options), Errc::not_found);
  }
  EXPECT_FALSE(is_there("outside/new"));
}

// Creation follows a link to what is not there, if it may.
TEST_F(RootedTest, ALinkToWhatIsNotThereMakesNothingOutside) {
  link("../outside/new", "root/dangling");
  link(folder_ / "outside/new", "root/absolute");
  for (const char* name : {"root/dangling", "root/absolute"}) {
    EXPECT_NE(refusal(name, kNew), std::nullopt) << name;
    EXPECT_EQ(refusal(name, kReplace), Errc::denied) << name;
  }
  EXPECT_FALSE(is_there("outside/new"));
}

TEST_F(RootedTest, AnImageNamesFilesBeneathItThatItsPolicyAllows) {
  const std::string image = folder_ / "root/deep/b";
  const auto named = [&](RootedOpener& opener, const char* name) -> std::optional<Errc> {
    auto file = opener.open_named_by_image(image, name, {});
    if (file) return std::nullopt;
    return file.error().code();
  };
  EXPECT_EQ(named(*opener_, "b"), std::nullopt);
  EXPECT_EQ(named(*opener_, "../a"), std::nullopt);
  EXPECT_EQ(named(*opener_, "../../outside/x"), Errc::denied);
  auto strict = RootedOpener::make(*reactor_, folder_ / "root", OpenPolicy::same_directory);
  ASSERT_TRUE(strict);
  EXPECT_EQ(named(**strict, "b"), std::nullopt);
  EXPECT_EQ(named(**strict, "../a"), Errc::denied);
  EXPECT_FALSE((*strict)->allows_devices(image, "json:{}"));
}

TEST_F(RootedTest, NamesForOthersAreReal) {
  link("deep/b", "root/inside");
  const auto real = opener_->real_name(std::string(folder_ / "root/inside"));
  ASSERT_TRUE(real);
  EXPECT_EQ(*real, std::filesystem::canonical(folder_ / "root/deep/b").string());
  EXPECT_TRUE(opener_->real_name(std::string(folder_ / "root/new")));
  EXPECT_FALSE(opener_->real_name(std::string(folder_ / "outside/x")));
}

TEST_F(RootedTest, TheRootIsTheFolderThatItWas) {
  std::filesystem::rename(folder_ / "root", folder_ / "moved");
  std::filesystem::rename(folder_ / "outside", folder_ / "root");
  EXPECT_NE(refusal("root/x"), std::nullopt);
}

TEST_F(RootedTest, ARootMustBeAFolder) {
  EXPECT_FALSE(RootedOpener::make(*reactor_, folder_ / "root/a", OpenPolicy::any_file));
  EXPECT_FALSE(RootedOpener::make(*reactor_, folder_ / "nosuch", OpenPolicy::any_file));
}

}  // namespace
}  // namespace byre
