// SPDX-License-Identifier: Apache-2.0
#include "block/verify.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <functional>
#include <vector>

#include "base/units.h"
#include "block/borrowed_testing.h"
#include "block/filter_fault.h"
#include "block/memory.h"
#include "coro/scope.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

/// Each write waits for as long as the simulated world likes, first.
class Slow final : public Borrowed {
 public:
  using Borrowed::Borrowed;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    co_await reactor().sleep(static_cast<int64_t>(reactor().random() % 1000 + 1));
    co_await below().write(offset, data, options);
  }
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    co_await reactor().sleep(static_cast<int64_t>(reactor().random() % 1000 + 1));
    co_await below().read(offset, data, options);
  }
};

class VerifyTest : public testing::Test {
 protected:
  static constexpr uint64_t kSize = 64 * KiB;
  void make(std::unique_ptr<Device> test, std::unique_ptr<Device> reference) {
    Result<std::unique_ptr<Verify>> made = Verify::make(std::move(test), std::move(reference));
    ASSERT_TRUE(made) << made.error().message();
    disk_ = *std::move(made);
  }
  void make() { make(std::make_unique<Borrowed>(test_), std::make_unique<Borrowed>(reference_)); }
  Result<void> read(uint64_t offset, size_t length) {
    std::vector<std::byte> data(length);
    return reactor_.run(disk_->read(offset, data, IoTag::read_guest));
  }
  Result<void> write(uint64_t offset, size_t length, int value = 1) {
    const std::vector<std::byte> data(length, static_cast<std::byte>(value));
    return reactor_.run(disk_->write(offset, data, {}));
  }

  SimReactor reactor_{1};
  MemoryDevice test_{reactor_, kSize, "test.qcow2"};
  MemoryDevice reference_{reactor_, kSize, "reference.raw"};
  std::unique_ptr<Verify> disk_;
};

TEST_F(VerifyTest, EveryChangeGoesToBoth) {
  make();
  EXPECT_TRUE(write(100, 5000));
  EXPECT_TRUE(reactor_.run(disk_->zero(200, 50, {})));
  EXPECT_TRUE(reactor_.run(disk_->zero(300, 50, {.no_fallback = true})));
  EXPECT_TRUE(reactor_.run(disk_->discard(400, 1000, {.fua = true})));
  EXPECT_TRUE(reactor_.run(disk_->flush(IoTag::flush)));
  EXPECT_TRUE(reactor_.run(disk_->allocate(0, 4096)));
  EXPECT_TRUE(read(0, kSize));
  EXPECT_EQ(test_.bytes(), reference_.bytes());
  EXPECT_EQ(test_.bytes()[100], std::byte{1});
  EXPECT_EQ(test_.bytes()[220], std::byte{0});
  EXPECT_EQ(test_.bytes()[1399], std::byte{0});
  EXPECT_TRUE(reactor_.run(disk_->resize(100'000)));
  EXPECT_EQ(test_.size(), 100'000u);
  EXPECT_EQ(reference_.size(), 100'000u);
  EXPECT_TRUE(reactor_.run(disk_->close()));
}

TEST_F(VerifyTest, TheFirstByteThatDiffersIsNamedAndLaterRequestsGoOn) {
  make();
  EXPECT_TRUE(write(0, kSize));
  const std::byte wrong{0x41};
  test_.poke(0x1234, bytes_of(wrong));
  test_.poke(0x2000, bytes_of(wrong));
  const Result<void> found = read(0x1000, 0x2000);
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code(), Errc::corrupt);
  EXPECT_EQ(
      found.error().message(),
      "blkverify: 'test.qcow2' differs from its reference 'reference.raw' at byte 0x1234: 0x41, "
      "not 0x1");
  EXPECT_TRUE(read(0, 0x1234));
  EXPECT_TRUE(write(0x1000, 0x1001));
  EXPECT_TRUE(read(0, kSize));
}

TEST_F(VerifyTest, AFailureOfOneAloneNamesIt) {
  make(std::make_unique<FaultFilter>(
           std::make_unique<Borrowed>(test_),
           FaultRules{.inject_errors = {{.event = FaultEvent::write_aio, .once = true}}}),
       std::make_unique<Borrowed>(reference_));
  const Result<void> written = write(512, 100);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().sys_errno(), EIO);
  EXPECT_EQ(written.error().message(),
            "blkverify: write of 100 bytes at 0x200 failed on 'test.qcow2' and not on "
            "'reference.raw': blkdebug: injected at write_aio: Input/output error");
  EXPECT_FALSE(read(512, 1));  // Only the reference has it.
  EXPECT_TRUE(write(512, 100));
  EXPECT_TRUE(read(0, kSize));
}

TEST_F(VerifyTest, AFailureOfBothIsTheFailureOfTheTested) {
  const FaultRules rules{.inject_errors = {{.event = FaultEvent::read_aio, .error = ENOSPC}}};
  make(std::make_unique<FaultFilter>(std::make_unique<Borrowed>(test_), rules),
       std::make_unique<FaultFilter>(std::make_unique<Borrowed>(reference_), rules));
  const Result<void> failed = read(0, 1);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().message(), "blkdebug: injected at read_aio: No space left on device");
}

TEST_F(VerifyTest, WhatTheTestedCannotDoIsNotDoneToTheReference) {
  DiskScript script{.holes = false};
  make(std::make_unique<ScriptedDisk>(test_, script), std::make_unique<Borrowed>(reference_));
  EXPECT_TRUE(write(0, kSize));
  const Result<void> zeroed = reactor_.run(disk_->zero(0, 512, {.no_fallback = true}));
  ASSERT_FALSE(zeroed);
  EXPECT_EQ(zeroed.error().code(), Errc::unsupported);
  const std::vector<std::byte> data(512);
  const Result<void> compressed = reactor_.run(disk_->write(0, data, {.compressed = true}));
  ASSERT_FALSE(compressed);
  EXPECT_EQ(compressed.error().code(), Errc::unsupported);
  EXPECT_TRUE(read(0, kSize));
}

TEST_F(VerifyTest, NothingIsSaidOfHolesSoThatTheyAreComparedToo) {
  make();
  const Result<Extent> extent = reactor_.run(disk_->status(0, kSize));
  ASSERT_TRUE(extent);
  EXPECT_TRUE(extent->data && !extent->zero);
  EXPECT_EQ(extent->length, kSize);
}

TEST_F(VerifyTest, SizesThatDifferAreRefused) {
  const Result<std::unique_ptr<Verify>> made = Verify::make(
      std::make_unique<Borrowed>(test_), std::make_unique<MemoryDevice>(reactor_, 512, "short"));
  ASSERT_FALSE(made);
  EXPECT_EQ(
      made.error().message(),
      "blkverify: 'test.qcow2' has 65536 bytes and its reference 'short' has 512: resize one of "
      "them");
}

TEST_F(VerifyTest, TheSizeStaysTheSameOnBoth) {
  make();
  EXPECT_EQ(disk_->can_grow(), test_.can_grow() && reference_.can_grow());
  if (disk_->can_grow()) {
    EXPECT_TRUE(write(kSize - 1, 2));
    EXPECT_EQ(reference_.size(), kSize + 1);
  }
  const uint64_t size = reference_.size();
  EXPECT_EQ(test_.size(), size);
  test_.fixed = true;
  EXPECT_FALSE(reactor_.run(disk_->resize(512)));
  EXPECT_EQ(reference_.size(), size);
}

// Whatever the order in which each of the two gets to its requests, they never differ.
TEST_F(VerifyTest, OverlappingRequestsTakeEffectInOneOrder) {
  make(std::make_unique<Slow>(test_), std::make_unique<Slow>(reference_));
  const auto client = [&](int value) -> Task<void> {
    for (int i = 0; i < 50; ++i) {
      const std::vector<std::byte> data(reactor_.random() % 2000 + 1,
                                        static_cast<std::byte>(value));
      co_await disk_->write(reactor_.random() % 4000, data, {});
      std::vector<std::byte> seen(3000);
      co_await disk_->read(reactor_.random() % 4000, seen, IoTag::read_guest);
    }
  };
  Scope scope(reactor_.ready());
  for (int value = 1; value <= 4; ++value) scope.spawn(client(value));
  const Result<void> joined = reactor_.run(scope.join());
  EXPECT_TRUE(joined) << joined.error().message();
  EXPECT_EQ(test_.bytes(), reference_.bytes());
}

}  // namespace
}  // namespace byre
