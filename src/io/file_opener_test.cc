// SPDX-License-Identifier: Apache-2.0
#include "io/file_opener.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "io/io_testing.h"

namespace byre {
namespace {

TEST(ResolveName, RelativeNamesAreRelativeToTheImage) {
  EXPECT_EQ(resolve_name("a.qcow2", "base"), "base");
  EXPECT_EQ(resolve_name("dir/a.qcow2", "base"), "dir/base");
  EXPECT_EQ(resolve_name("/x/y/a.qcow2", "../base"), "/x/y/../base");
  EXPECT_EQ(resolve_name("/a.qcow2", "base"), "/base");
  EXPECT_EQ(resolve_name("dir/a.qcow2", "/abs/base"), "/abs/base");
}

class GateTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<std::unique_ptr<Reactor>> made = make_reactor();
    ASSERT_TRUE(made);
    reactor_ = *std::move(made);
    std::filesystem::create_directories(folder_ / "images/below");
    for (const char* name : {"images/top", "images/base", "images/below/base", "outside"}) {
      auto file = File::open(*reactor_, folder_ / name, {.writable = true, .create = true});
      ASSERT_TRUE(file);
    }
    std::filesystem::create_symlink("base", folder_ / "images/link_inside");
    std::filesystem::create_symlink("../outside", folder_ / "images/link_outside");
    std::filesystem::create_symlink(folder_ / "images/base", folder_ / "images/link_absolute");
    std::filesystem::create_symlink(folder_ / "images", folder_ / "also");
    std::filesystem::create_directories(folder_ / "links");
    std::filesystem::create_symlink(folder_ / "images/top", folder_ / "links/top");
    std::filesystem::create_directories(folder_ / "images-of-others");
    ASSERT_TRUE(File::open(*reactor_, folder_ / "images-of-others/base",
                           {.writable = true, .create = true}));
    ASSERT_EQ(mkfifo((folder_ / "images/fifo").c_str(), 0600), 0);
    top_ = folder_ / "images/top";
  }
  std::optional<Errc> refusal(OpenPolicy policy, const std::string& name) {
    SystemGate opener(*reactor_, policy);
    auto file = opener.open_named_by_image(top_, name, {});
    if (file) return std::nullopt;
    return file.error().code();
  }

  TemporaryFolder folder_;
  std::unique_ptr<Reactor> reactor_;
  std::string top_;
};

TEST_F(GateTest, WhatTheUserNamesIsOpened) {
  SystemGate opener(*reactor_, OpenPolicy::nothing);
  auto file = opener.open(top_, {});
  ASSERT_TRUE(file);
  EXPECT_EQ((*file)->properties().name, top_);
}

TEST_F(GateTest, NothingMeansNothing) {
  EXPECT_EQ(refusal(OpenPolicy::nothing, "base"), Errc::denied);
  EXPECT_EQ(refusal(OpenPolicy::nothing, folder_ / "images/base"), Errc::denied);
}

TEST_F(GateTest, SameDirectoryHoldsWhateverTheName) {
  const auto refused = [&](const std::string& name) {
    return refusal(OpenPolicy::same_directory, name);
  };
  EXPECT_EQ(refused("base"), std::nullopt);
  EXPECT_EQ(refused("./base"), std::nullopt);
  EXPECT_EQ(refused("below/base"), std::nullopt);
  EXPECT_EQ(refused("below/../base"), std::nullopt);
  EXPECT_EQ(refused("link_inside"), std::nullopt);
  EXPECT_EQ(refused(folder_ / "images/base"), std::nullopt);
  // Where a file lies counts, not how it is named.
  EXPECT_EQ(refused("../images/base"), std::nullopt);
  EXPECT_EQ(refused("../also/below/base"), std::nullopt);
  EXPECT_EQ(refused(folder_ / "also/base"), std::nullopt);
  EXPECT_EQ(refused(folder_ / "images/../images/./base"), std::nullopt);
  EXPECT_EQ(refused("link_absolute"), std::nullopt);
  EXPECT_EQ(refused("../images/missing"), Errc::not_found);
  EXPECT_EQ(refused(folder_ / "images/missing"), Errc::not_found);

  EXPECT_EQ(refused("../images-of-others/base"), Errc::denied);
  EXPECT_EQ(refused(folder_ / "images"), Errc::denied);
  EXPECT_EQ(refused("../also/link_outside"), Errc::denied);
  EXPECT_EQ(refused("../missing/base"), Errc::denied);
  EXPECT_EQ(refused("../outside"), Errc::denied);
  EXPECT_EQ(refused("below/../../outside"), Errc::denied);
  EXPECT_EQ(refused(folder_ / "outside"), Errc::denied);
  EXPECT_EQ(refused(folder_ / "images/../outside"), Errc::denied);
  EXPECT_EQ(refused("link_outside"), Errc::denied);
  EXPECT_EQ(refused("/etc/passwd"), Errc::denied);
  EXPECT_EQ(refused("/proc/self/exe"), Errc::denied);
  EXPECT_EQ(refused("fifo"), Errc::denied);
  EXPECT_EQ(refused("below"), Errc::denied);
  EXPECT_EQ(refused("missing"), Errc::not_found);
  EXPECT_EQ(refused(""), Errc::invalid);
  EXPECT_EQ(refused(std::string("base\0x", 6)), Errc::invalid);
}

// An image that was reached through a link has a folder that the link's name does not show.
TEST_F(GateTest, BesideALinkAndBesideTheImageAreBothBeside) {
  top_ = folder_ / "links/top";
  ASSERT_TRUE(File::open(*reactor_, folder_ / "links/near", {.writable = true, .create = true}));
  EXPECT_EQ(refusal(OpenPolicy::same_directory, folder_ / "images/base"), std::nullopt);
  EXPECT_EQ(refusal(OpenPolicy::same_directory, "../images/base"), std::nullopt);
  EXPECT_EQ(refusal(OpenPolicy::same_directory, "near"), std::nullopt);
  EXPECT_EQ(refusal(OpenPolicy::same_directory, "base"), Errc::not_found);
  EXPECT_EQ(refusal(OpenPolicy::same_directory, "../outside"), Errc::denied);
  EXPECT_EQ(refusal(OpenPolicy::same_directory, folder_ / "outside"), Errc::denied);
}

TEST_F(GateTest, ARefusalNamesTheFileTheFolderAndThePolicy) {
  SystemGate opener(*reactor_, OpenPolicy::same_directory);
  const Result<void> allowed = opener.allows(top_, "../outside");
  ASSERT_FALSE(allowed);
  const std::string folder = std::filesystem::canonical(folder_ / "images");
  EXPECT_EQ(allowed.error().message(),
            cat("image '", top_, "' names '../outside', which the policy same-directory does not ",
                "allow: it is not in or below the folder of the image, '", folder, "'"));
  // What is not there is told in the same words: an image cannot ask which files exist.
  const Result<void> missing = opener.allows(top_, "../nowhere");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code(), Errc::denied);
  EXPECT_EQ(missing.error().message(),
            cat("image '", top_, "' names '../nowhere', which the policy same-directory does not ",
                "allow: it is not in or below the folder of the image, '", folder, "'"));
  EXPECT_TRUE(opener.allows(top_, "base"));
  EXPECT_TRUE(opener.allows(top_, folder_ / "also/base"));
}

TEST_F(GateTest, AnyFileStillMeansAFile) {
  const auto refused = [&](const std::string& name) { return refusal(OpenPolicy::any_file, name); };
  EXPECT_EQ(refused("../outside"), std::nullopt);
  EXPECT_EQ(refused("link_outside"), std::nullopt);
  EXPECT_EQ(refused("fifo"), Errc::invalid);
  EXPECT_EQ(refused("/dev/zero"), Errc::invalid);
  EXPECT_EQ(refused("below"), Errc::invalid);
}

TEST_F(GateTest, AnImageInTheFolderOfTheProcessWorksToo) {
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder_ / "images");
  SystemGate opener(*reactor_, OpenPolicy::same_directory);
  EXPECT_TRUE(opener.open_named_by_image("top", "base", {}));
  EXPECT_FALSE(opener.open_named_by_image("top", "../outside", {}));
  std::filesystem::current_path(before);
}

}  // namespace
}  // namespace byre
