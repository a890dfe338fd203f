// SPDX-License-Identifier: Apache-2.0
#include "io/gate.h"

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
    ASSERT_EQ(mkfifo((folder_ / "images/fifo").c_str(), 0600), 0);
    top_ = folder_ / "images/top";
  }
  std::optional<Errc> refusal(OpenPolicy policy, const std::string& name) {
    SystemGate gate(*reactor_, policy);
    auto file = gate.open_named_by_image(top_, name, {});
    if (file) return std::nullopt;
    return file.error().code();
  }

  TemporaryFolder folder_;
  std::unique_ptr<Reactor> reactor_;
  std::string top_;
};

TEST_F(GateTest, WhatTheUserNamesIsOpened) {
  SystemGate gate(*reactor_, OpenPolicy::nothing);
  auto file = gate.open(top_, {});
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

  EXPECT_EQ(refused("../outside"), Errc::denied);
  EXPECT_EQ(refused("below/../../outside"), Errc::denied);
  EXPECT_EQ(refused(folder_ / "outside"), Errc::denied);
  EXPECT_EQ(refused(folder_ / "images/../outside"), Errc::denied);
  EXPECT_EQ(refused("link_outside"), Errc::denied);
  EXPECT_EQ(refused("link_absolute"), Errc::denied);
  EXPECT_EQ(refused("/etc/passwd"), Errc::denied);
  EXPECT_EQ(refused("/proc/self/exe"), Errc::denied);
  EXPECT_EQ(refused("fifo"), Errc::denied);
  EXPECT_EQ(refused("below"), Errc::denied);
  EXPECT_EQ(refused("missing"), Errc::not_found);
  EXPECT_EQ(refused(""), Errc::invalid);
  EXPECT_EQ(refused(std::string("base\0x", 6)), Errc::invalid);
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
  SystemGate gate(*reactor_, OpenPolicy::same_directory);
  EXPECT_TRUE(gate.open_named_by_image("top", "base", {}));
  EXPECT_FALSE(gate.open_named_by_image("top", "../outside", {}));
  std::filesystem::current_path(before);
}

}  // namespace
}  // namespace byre
