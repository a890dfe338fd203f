// SPDX-License-Identifier: Apache-2.0
#include "job/commit.h"

#include <gtest/gtest.h>

#include "base/prng.h"
#include "block/filter.h"
#include "qcow2/memory_image_testing.h"

namespace byre {
namespace {

/// Notes the order of what matters: flushes of the base, writes of the overlay's header.
class Noted final : public Filter {
 public:
  Noted(Child below, std::string name, std::vector<std::string>& log)
      : Filter(std::move(below)), name_(std::move(name)), log_(log) {}
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    log_.push_back(cat(name_, offset == 0 ? " header" : " write"));
    co_await below().write(offset, data, options);
  }
  Task<void> flush(IoTag tag) override {
    co_await below().flush(tag);
    log_.push_back(name_ + " flush");
  }

 private:
  const std::string name_;
  std::vector<std::string>& log_;
};

class CommitJob : public testing::Test {
 protected:
  struct Disk {
    std::unique_ptr<MemoryDevice> memory;
    Image* image = nullptr;
  };

  Child open(MemoryDevice& memory, Child below, std::string name, bool writable = true) {
    Child file = std::make_unique<Noted>(Child::to(memory), std::move(name), log_);
    auto image = reactor_->run(
        Image::open_over(std::move(file), opener_, {.writable = writable}, std::move(below)));
    EXPECT_TRUE(image) << image.error().message();
    return image ? Child(*std::move(image)) : Child();
  }
  std::unique_ptr<MemoryDevice> make(CreateOptions options) {
    auto memory = std::make_unique<MemoryDevice>(*reactor_);
    EXPECT_TRUE(reactor_->run(create_image(*memory, options)));
    return memory;
  }
  void write(Device& disk, uint64_t at, uint64_t length, int value) {
    const std::vector<std::byte> data(length, static_cast<std::byte>(value));
    const Result<void> done = reactor_->run(disk.write(at, data));
    ASSERT_TRUE(done) << done.error().message();
  }
  int value_at(Device& disk, uint64_t at, uint64_t length) {
    std::vector<std::byte> data(length);
    if (!reactor_->run(disk.read(at, data))) return -2;
    for (const std::byte b : data) {
      if (b != data[0]) return -1;
    }
    return std::to_integer<int>(data[0]);
  }
  static Image& image(const Child& child) { return static_cast<Image&>(*child); }

  std::vector<std::string> log_;
  std::unique_ptr<Reactor> reactor_ = *make_reactor(ReactorKind::posix);
  ClosedGate opener_;
};

// O9.
TEST_F(CommitJob, TheBaseIsFlushedBeforeTheOverlayIsEmptied) {
  auto base_file = make({.size = 1 * MiB});
  auto top_file = make({.size = 2 * MiB});
  Child top = open(*top_file, open(*base_file, {}, "base"), "top");
  Device& base = *image(top).backing();
  write(base, 0, 128 * KiB, 1);
  write(*top, 64 * KiB, 128 * KiB, 2);
  ASSERT_TRUE(reactor_->run(top->zero(0, 64 * KiB, {.may_unmap = true})));
  write(*top, 1536 * KiB, 4096, 3);
  ASSERT_TRUE(reactor_->run(top->flush()));
  log_.clear();
  Progress progress;
  auto job = Commit::make(image(top), progress, {});
  ASSERT_TRUE(job);
  ASSERT_TRUE(reactor_->run((*job)->run()));
  EXPECT_EQ(progress.done(), 2 * MiB);
  // The last write to the base, its flush, and only then anything of the overlay's.
  const auto first_of_top = std::ranges::find_if(
      log_, [](const std::string& line) { return line.starts_with("top") && line != "top flush"; });
  ASSERT_NE(first_of_top, log_.end());
  ASSERT_NE(first_of_top, log_.begin());
  const std::vector<std::string> before(log_.begin(), first_of_top);
  const auto last_write = std::find(before.rbegin(), before.rend(), "base write");
  const auto last_flush = std::find(before.rbegin(), before.rend(), "base flush");
  EXPECT_LT(last_flush - before.rbegin(), last_write - before.rbegin());
  EXPECT_EQ(std::count(first_of_top, log_.end(), "base write"), 0);
  EXPECT_GE(std::count(first_of_top, log_.end(), "top header"), 1);

  EXPECT_EQ(base.size(), 2 * MiB);
  for (Device* disk : {&base, static_cast<Device*>(top.get())}) {
    EXPECT_EQ(value_at(*disk, 0, 64 * KiB), 0);
    EXPECT_EQ(value_at(*disk, 64 * KiB, 128 * KiB), 2);
    EXPECT_EQ(value_at(*disk, 192 * KiB, 1344 * KiB), 0);
    EXPECT_EQ(value_at(*disk, 1536 * KiB, 4096), 3);
  }
  const Result<Extent> left = reactor_->run(top->status(0, 2 * MiB));
  EXPECT_TRUE(left && !left->allocated);
  ASSERT_TRUE(reactor_->run(top.close()));
  for (MemoryDevice* file : {base_file.get(), top_file.get()}) {
    const Result<void> sound = reactor_->run(expect_sound(*file));
    EXPECT_TRUE(sound) << sound.error().message();
  }
}

TEST_F(CommitJob, WhatAShorterImageBetweenHidesBecomesZeros) {
  auto base_file = make({.size = 1 * MiB});
  auto middle_file = make({.size = 512 * KiB});
  auto top_file = make({.size = 1 * MiB});
  Child bottom = open(*base_file, {}, "base");
  Device& base = *bottom;
  write(base, 0, 1 * MiB, 1);
  Child top = open(*top_file, open(*middle_file, std::move(bottom), "middle"), "top");
  write(*image(top).backing(), 0, 64 * KiB, 2);
  write(*top, 768 * KiB, 64 * KiB, 3);
  Progress progress;
  // The middle would show.
  EXPECT_EQ(Commit::make(image(top), progress, {.depth = 2}).error().code(), Errc::invalid);
  auto job = Commit::make(image(top), progress, {.depth = 2, .empty = false});
  ASSERT_TRUE(job);
  EXPECT_EQ((*job)->between().size(), 1u);
  ASSERT_TRUE(reactor_->run((*job)->run()));
  EXPECT_EQ(value_at(base, 0, 64 * KiB), 2);
  EXPECT_EQ(value_at(base, 64 * KiB, 448 * KiB), 1);
  EXPECT_EQ(value_at(base, 512 * KiB, 256 * KiB), 0);
  EXPECT_EQ(value_at(base, 768 * KiB, 64 * KiB), 3);
  EXPECT_EQ(value_at(*top, 768 * KiB, 64 * KiB), 3);
  ASSERT_TRUE(reactor_->run(top.close()));
}

TEST_F(CommitJob, IsRefusedWithoutABaseThatCanBeWritten) {
  auto base_file = make({.size = 1 * MiB});
  auto top_file = make({.size = 1 * MiB});
  Child top = open(*top_file, open(*base_file, {}, "base", false), "top");
  Progress progress;
  EXPECT_EQ(Commit::make(image(top), progress, {}).error().code(), Errc::read_only);
  EXPECT_EQ(Commit::make(image(top), progress, {.depth = 2, .empty = false}).error().code(),
            Errc::invalid);
  ASSERT_TRUE(reactor_->run(top.close()));
}

TEST_F(CommitJob, AStopLeavesTheOverlayAsItWas) {
  auto base_file = make({.size = 4 * MiB});
  auto top_file = make({.size = 4 * MiB});
  Child top = open(*top_file, open(*base_file, {}, "base"), "top");
  write(*top, 0, 4 * MiB, 5);
  Progress progress;
  progress.on_change([](const Progress& now) {
    if (now.done() > 0) const_cast<Progress&>(now).stop();
  });
  auto job = Commit::make(image(top), progress, {.requests_max = 1, .request_size = 64 * KiB});
  ASSERT_TRUE(job);
  const Result<void> done = reactor_->run((*job)->run());
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code(), Errc::cancelled);
  EXPECT_EQ(value_at(*top, 0, 4 * MiB), 5);
  const Result<Extent> left = reactor_->run(top->status(0, 4 * MiB));
  EXPECT_TRUE(left && left->allocated);
  ASSERT_TRUE(reactor_->run(top.close()));
}

TEST_F(CommitJob, KeepsItsRate) {
  auto base_file = make({.size = 4 * MiB});
  auto top_file = make({.size = 4 * MiB});
  Child top = open(*top_file, open(*base_file, {}, "base"), "top");
  write(*top, 0, 1 * MiB, 5);
  Progress progress;
  auto job = Commit::make(image(top), progress, {.rate = 4 * MiB, .request_size = 64 * KiB});
  ASSERT_TRUE(job);
  const Instant begun = reactor_->now();
  ASSERT_TRUE(reactor_->run((*job)->run()));
  // What is skipped costs nothing; the last piece does not wait for its own time.
  EXPECT_GE(reactor_->now() - begun, 200 * kMillisecond);
  ASSERT_TRUE(reactor_->run(top.close()));
}

}  // namespace
}  // namespace byre
