// SPDX-License-Identifier: Apache-2.0
#include "block/preallocate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "block/borrowed_testing.h"
#include "block/entrance.h"
#include "block/memory.h"
#include "block/raw.h"
#include "coro/scope.h"
#include "io/io_testing.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

class PreallocateTest : public testing::Test {
 protected:
  static constexpr PreallocateOptions kSmall{.prealloc_align = 4096, .prealloc_size = 10'000};
  void make(PreallocateOptions options = kSmall) {
    disk_ = std::make_unique<Preallocate>(std::make_unique<Borrowed>(file_), options);
  }
  void ok(Task<void> task) {
    const Result<void> done = reactor_.run(std::move(task));
    ASSERT_TRUE(done) << done.error().message();
  }
  void write(uint64_t offset, size_t length, int value = 1) {
    const std::vector<std::byte> data(length, static_cast<std::byte>(value));
    ok(disk_->write(offset, data, {}));
  }

  SimReactor reactor_{1};
  MemoryDevice file_{reactor_, 0, "file"};
  std::unique_ptr<Preallocate> disk_;
};

TEST_F(PreallocateTest, AWriteBehindTheEndExtendsTheFileAheadAndCloseCutsItOff) {
  make();
  write(0, 1000);
  EXPECT_EQ(file_.size(), 12'288u);  // 11000, rounded up.
  EXPECT_EQ(disk_->size(), 1000u);
  write(5000, 2000);
  EXPECT_EQ(file_.size(), 12'288u);
  EXPECT_EQ(disk_->size(), 7000u);
  ok(disk_->zero(12'000, 1000, {}));
  EXPECT_EQ(file_.size(), 24'576u);
  EXPECT_EQ(disk_->size(), 13'000u);
  ok(disk_->close());
  EXPECT_EQ(file_.size(), 13'000u);
}

TEST_F(PreallocateTest, WhatOthersWriteAfterItHasLeftIsNotCutOff) {
  Child below = std::make_unique<Borrowed>(file_);
  Entrance disk(below.another());
  Child filter = std::make_unique<Preallocate>(below.another(), kSmall);
  const auto write = [&](uint64_t offset) -> Task<void> {
    const std::vector<std::byte> data(1000, std::byte{1});
    const Entrance::Pass pass = co_await disk.enter();
    co_await pass->write(offset, data);
  };
  const Child stays = below.hold();
  below.reset();
  ok(insert_above(stays.node(), filter));
  ok(write(0));
  EXPECT_EQ(file_.size(), 12'288u);
  ok(remove_filter(filter));
  EXPECT_EQ(file_.size(), 1000u);
  ok(write(1000));
  ok(filter.close());
  EXPECT_EQ(file_.size(), 2000u);
}

TEST_F(PreallocateTest, WhatWasNotWrittenIsNotThere) {
  make();
  write(0, 1000);
  std::vector<std::byte> data(1001);
  EXPECT_FALSE(reactor_.run(disk_->read(0, data, IoTag::none)));
  EXPECT_FALSE(reactor_.run(disk_->status(1000, 1)));
  EXPECT_FALSE(reactor_.run(disk_->discard(0, 1001, {})));
  EXPECT_TRUE(reactor_.run(disk_->status(0, 1000)));
}

TEST_F(PreallocateTest, ASmallerSizeCutsAndALargerOneReadsAsZeros) {
  make();
  write(0, 5000, 7);
  ok(disk_->resize(100));
  EXPECT_EQ(file_.size(), 100u);
  ok(disk_->resize(8000));
  EXPECT_EQ(disk_->size(), 8000u);
  write(8000, 1, 7);
  ok(disk_->resize(9000));  // Inside what is there.
  EXPECT_EQ(file_.size(), 20'480u);
  std::vector<std::byte> want(9000);
  std::fill_n(want.begin(), 100, std::byte{7});
  want[8000] = std::byte{7};
  std::vector<std::byte> data(9000);
  ok(disk_->read(0, data, IoTag::none));
  EXPECT_EQ(data, want);
  ok(disk_->close());
  EXPECT_EQ(file_.size(), 9000u);
}

TEST_F(PreallocateTest, AFileThatIsThereKeepsItsSizeUntilItGrows) {
  file_.poke(0, std::vector<std::byte>(3000, std::byte{3}));
  make();
  EXPECT_EQ(disk_->size(), 3000u);
  write(0, 3000);
  EXPECT_EQ(file_.size(), 3000u);
  ok(disk_->close());
  EXPECT_EQ(file_.size(), 3000u);
}

TEST_F(PreallocateTest, ADiskThatCannotGrowIsLeftAlone) {
  file_.poke(0, std::vector<std::byte>(3000));
  file_.fixed = true;
  make();
  EXPECT_FALSE(disk_->can_grow());
  const std::vector<std::byte> data(100);
  EXPECT_FALSE(reactor_.run(disk_->write(2950, data, {})));
  write(2900, 100);
  ok(disk_->close());
}

/// Refuses space beyond a limit, as a full disk does.
class Full final : public Borrowed {
 public:
  using Borrowed::Borrowed;
  BYRE_CORO_WRAPPER Task<void> allocate(uint64_t offset, uint64_t length) override {
    return refuse(offset + length);
  }
  Task<void> resize(uint64_t size) override {
    co_await refuse(size);
    co_await below().resize(size);
  }

 private:
  Task<void> refuse(uint64_t end) {
    if (end > 5000) co_await fail(Error(Errc::no_space, "full"));
  }
};

TEST_F(PreallocateTest, WhereThereIsNoSpaceAheadTheWriteGoesDownAsItIs) {
  disk_ = std::make_unique<Preallocate>(std::make_unique<Full>(file_), kSmall);
  write(0, 1000);
  EXPECT_EQ(file_.size(), 1000u);
  EXPECT_EQ(disk_->size(), 1000u);
  ok(disk_->close());
}

/// Writes half of it and fails.
class Torn final : public Borrowed {
 public:
  using Borrowed::Borrowed;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    co_await below().write(offset, data.first(data.size() / 2), options);
    co_await fail(Error(Errc::io, "torn"));
  }
};

TEST_F(PreallocateTest, WhatAFailedWriteHasLeftIsGoneWhenTheDiskGrows) {
  disk_ = std::make_unique<Preallocate>(std::make_unique<Torn>(file_), kSmall);
  const std::vector<std::byte> data(1000, std::byte{1});
  EXPECT_FALSE(reactor_.run(disk_->write(0, data, {})));
  EXPECT_EQ(disk_->size(), 0u);
  ok(disk_->resize(2000));
  std::vector<std::byte> seen(2000);
  ok(disk_->read(0, seen, IoTag::none));
  EXPECT_TRUE(is_zero(seen));
}

TEST_F(PreallocateTest, OptionsThatCannotBeAreRefused) {
  EXPECT_TRUE(check_preallocate({}));
  EXPECT_TRUE(check_preallocate({.prealloc_align = 512, .prealloc_size = 0}));
  EXPECT_EQ(check_preallocate({.prealloc_align = 1000}).error().message(),
            "preallocate: prealloc-align=1000: it is a multiple of 512, and at least that");
  EXPECT_FALSE(check_preallocate({.prealloc_align = 0}));
  EXPECT_FALSE(check_preallocate({.prealloc_size = UINT64_MAX}));
}

class PreallocateFileTest : public IoTest {};
ON_EVERY_REACTOR(PreallocateFileTest);

TEST_P(PreallocateFileTest, RequestsSideBySideLeaveAFileOfWhatWasWritten) {
  Preallocate disk(std::make_unique<RawDevice>(open("disk", {.writable = true, .create = true}),
                                               RawOptions{.growable = true}),
                   {.prealloc_align = 64 * KiB, .prealloc_size = 256 * KiB});
  const std::vector<std::byte> model = noise(1 * MiB);
  const auto writer = [&](size_t first) -> Task<void> {
    for (size_t at = first * 1000; at < model.size(); at += 8000) {
      const size_t length = std::min<size_t>(1000, model.size() - at);
      co_await disk.write(at, Bytes(model).subspan(at, length), {});
    }
  };
  Scope scope(reactor().ready());
  for (size_t i = 0; i < 8; ++i) scope.spawn(writer(i));
  run(scope.join());
  EXPECT_EQ(disk.size(), model.size());
  EXPECT_GT(std::filesystem::file_size(folder_ / "disk"), model.size());
  std::vector<std::byte> data(model.size());
  run(disk.read(0, data, IoTag::none));
  EXPECT_TRUE(data == model);
  run(disk.close());
  EXPECT_EQ(std::filesystem::file_size(folder_ / "disk"), model.size());
}

}  // namespace
}  // namespace byre
