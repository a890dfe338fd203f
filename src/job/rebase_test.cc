// SPDX-License-Identifier: Apache-2.0
/// Overlays on real files get other backing disks: contents stay, and what both chains have from
/// the same file is not read.
#include "job/rebase.h"

#include <gtest/gtest.h>

#include "block/filter.h"
#include "block/raw.h"
#include "io/io_testing.h"
#include "qcow2/ops/create.h"

namespace byre {
namespace {

/// Counts what is read through it.
class Counted final : public Filter {
 public:
  using Filter::Filter;
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    bytes += data.size();
    co_await below().read(offset, data, options);
  }
  uint64_t bytes = 0;
};

class RebaseJob : public testing::Test {
 protected:
  std::string path(const std::string& name) const { return folder_ / name; }
  void make(const std::string& name, uint64_t size, const std::string& below = "",
            CreateOptions options = {}) {
    auto file = opener_.open(path(name), {.writable = true, .create = true});
    ASSERT_TRUE(file) << file.error().message();
    RawDevice device(*std::move(file), {.growable = true});
    options.size = size;
    options.backing_file = below;
    if (!below.empty()) options.backing_format = "qcow2";
    ASSERT_TRUE(reactor_->run(create_image(device, options)));
    ASSERT_TRUE(reactor_->run(device.close()));
  }
  Child open(const std::string& name, bool writable) {
    auto image = reactor_->run(Image::open(*reactor_, opener_, path(name), {.writable = writable}));
    EXPECT_TRUE(image) << image.error().message();
    return image ? Child(*std::move(image)) : Child();
  }
  void write(const std::string& name, uint64_t at, uint64_t length, int value) {
    Child disk = open(name, true);
    const std::vector<std::byte> data(length, static_cast<std::byte>(value));
    ASSERT_TRUE(reactor_->run(disk->write(at, data)));
    ASSERT_TRUE(reactor_->run(disk.close()));
  }
  std::vector<std::byte> contents(Device& disk) {
    std::vector<std::byte> data(disk.size());
    const Result<void> read = reactor_->run(disk.read(0, data));
    EXPECT_TRUE(read) << read.error().message();
    return data;
  }
  /// Gives how many bytes of the top are its own afterwards; contents must stay.
  uint64_t rebase(const std::string& to, RebaseOptions options = {}) {
    Child top = open("top", true);
    const std::vector<std::byte> before = contents(*top);
    Child next = to.empty() ? Child() : open(to, false);
    std::optional<BackingName> name;
    if (!to.empty()) name = BackingName{to, "qcow2"};
    Progress progress;
    Rebase job(static_cast<Image&>(*top), next, progress, options);
    const Result<void> done = reactor_->run(job.run(name));
    EXPECT_TRUE(done) << done.error().message();
    EXPECT_TRUE(reactor_->run(next.close()));
    next.reset();
    EXPECT_TRUE(reactor_->run(top.close()));
    top.reset();
    top = open("top", false);
    EXPECT_TRUE(contents(*top) == before);
    EXPECT_EQ(static_cast<Image&>(*top).head().backing_file.value_or(""), to);
    uint64_t own = 0;
    for (uint64_t at = 0; at < top->size();) {
      const Result<Extent> extent = reactor_->run(top->status(at, top->size() - at));
      EXPECT_TRUE(extent);
      if (!extent) break;
      if (extent->allocated) own += extent->length;
      at += extent->length;
    }
    EXPECT_TRUE(reactor_->run(top.close()));
    return own;
  }

  TemporaryFolder folder_;
  std::unique_ptr<Reactor> reactor_ = *make_reactor(ReactorKind::posix);
  SystemGate opener_{*reactor_, OpenPolicy::same_directory};
};

TEST_F(RebaseJob, OnlyWhatDiffersIsCopied) {
  make("old", 1 * MiB);
  make("new", 1 * MiB);
  make("top", 2 * MiB, "old");
  write("old", 0, 512 * KiB, 1);
  write("new", 0, 448 * KiB, 1);
  write("new", 768 * KiB, 64 * KiB, 2);
  write("top", 128 * KiB, 64 * KiB, 3);
  // The top's own 64 KiB, what the new one lacks, and what only the new one has.
  EXPECT_EQ(rebase("new"), (64 + 64 + 64) * KiB);
  EXPECT_EQ(rebase(""), (512 + 64) * KiB);
}

TEST_F(RebaseJob, ALongerNewDiskDoesNotShowBehindAShorterOldOne) {
  make("old", 512 * KiB);
  make("new", 2 * MiB);
  make("top", 1 * MiB, "old");
  write("new", 0, 2 * MiB, 4);
  EXPECT_EQ(rebase("new"), 1 * MiB);
}

// Version 2 has no zero clusters, and leaves zeros out where its backing disk has ended.
TEST_F(RebaseJob, AVersion2OverlayKeepsItsZerosOverALongerDisk) {
  make("old", 512 * KiB);
  make("new", 2 * MiB);
  make("top", 1 * MiB - 512, "old", {.version = 2});
  write("new", 0, 2 * MiB, 4);
  EXPECT_EQ(rebase("new"), 1 * MiB - 512);
}

// Pieces do not end inside a cluster: a part of one that reads as zeros already would be left out.
TEST_F(RebaseJob, ZerosOfAPartOfAClusterAreKept) {
  make("old", 512 * KiB);
  make("new", 514 * KiB);
  make("top", 1 * MiB, "old");
  write("new", 512 * KiB, 2 * KiB, 4);
  EXPECT_EQ(rebase("new"), 64 * KiB);
}

// A cluster that a snapshot shares takes no zero bits.
TEST_F(RebaseJob, ZerosOfSubclustersThatASnapshotSharesAreKept) {
  make("new", 64 * KiB);
  make("top", 64 * KiB, "", {.extended_l2 = true});
  write("new", 0, 64 * KiB, 4);
  write("top", 0, 2 * KiB, 5);
  Child top = open("top", true);
  ASSERT_TRUE(reactor_->run(static_cast<Image&>(*top).create_snapshot({.name = "s"})));
  ASSERT_TRUE(reactor_->run(top.close()));
  top.reset();
  EXPECT_EQ(rebase("new"), 64 * KiB);
}

TEST_F(RebaseJob, WritesStreamsWhereTheyAreWanted) {
  make("old", 1 * MiB);
  make("top", 1 * MiB, "old");
  write("old", 0, 256 * KiB, 6);
  EXPECT_EQ(rebase("", {.compressed = true}), 256 * KiB);
  EXPECT_LT(std::filesystem::file_size(path("top")), 600 * KiB);
}

TEST_F(RebaseJob, WhatBothHaveFromTheSameFileIsNotRead) {
  make("root", 4 * MiB);
  make("old", 4 * MiB, "root");
  make("new", 4 * MiB, "root");
  make("top", 4 * MiB, "old");
  write("root", 0, 4 * MiB, 1);
  write("old", 0, 64 * KiB, 2);
  write("new", 1 * MiB, 64 * KiB, 3);
  Child top = open("top", true);
  Child next = std::make_unique<Counted>(open("new", false));
  auto& counted = static_cast<Counted&>(*next);
  Progress progress;
  Rebase job(static_cast<Image&>(*top), next, progress, {});
  ASSERT_TRUE(reactor_->run(job.run(BackingName{"new", "qcow2"})));
  EXPECT_EQ(counted.bytes, 128 * KiB);
  ASSERT_TRUE(reactor_->run(next.close()));
  next.reset();
  ASSERT_TRUE(reactor_->run(top.close()));
}

TEST_F(RebaseJob, ANameWithoutRoomIsFoundBeforeAnythingIsCopied) {
  make("old", 1 * MiB);
  make("top", 1 * MiB, "old");
  Child top = open("top", true);
  Child next = open("old", false);
  Progress progress;
  Rebase job(static_cast<Image&>(*top), next, progress, {});
  EXPECT_FALSE(reactor_->run(job.check_room(BackingName{std::string(70'000, 'x'), "qcow2"})));
  EXPECT_TRUE(reactor_->run(job.check_room(BackingName{"new", "qcow2"})));
  EXPECT_TRUE(reactor_->run(next.close()));
  EXPECT_TRUE(reactor_->run(top.close()));
}

TEST_F(RebaseJob, AStopLeavesTheOldDiskBelow) {
  make("old", 4 * MiB);
  make("top", 4 * MiB, "old");
  write("old", 0, 4 * MiB, 1);
  Child top = open("top", true);
  const std::vector<std::byte> before = contents(*top);
  Child next;
  Progress progress;
  progress.on_change([](const Progress& now) {
    if (now.done() > 0) const_cast<Progress&>(now).stop();
  });
  Rebase job(static_cast<Image&>(*top), next, progress,
             {.requests_max = 1, .request_size = 64 * KiB});
  const Result<void> done = reactor_->run(job.run(std::nullopt));
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code(), Errc::cancelled);
  EXPECT_EQ(static_cast<Image&>(*top).head().backing_file, "old");
  EXPECT_TRUE(contents(*top) == before);
  EXPECT_TRUE(reactor_->run(top.close()));
}

}  // namespace
}  // namespace byre
