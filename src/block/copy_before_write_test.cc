// SPDX-License-Identifier: Apache-2.0
#include "block/copy_before_write.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "base/units.h"
#include "block/drain.h"
#include "block/entrance.h"
#include "block/memory.h"
#include "block/snapshot_access.h"
#include "coro/event.h"
#include "coro/scope.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

constexpr uint64_t kCluster = 64 * KiB;

/// A disk in memory that takes its time, holds requests, or fails them.
class TestDisk final : public Filter {
 public:
  TestDisk(Reactor& reactor, Bytes bytes)
      : Filter(std::make_unique<MemoryDevice>(reactor, bytes)), gate_(reactor.ready()) {
    memory().fixed = true;
    gate_.set();
  }
  MemoryDevice& memory() const { return static_cast<MemoryDevice&>(below()); }
  bool writable() const override { return writable_; }
  uint32_t preferred_size() const override { return preferred_; }
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    ++reads_;
    co_await wait();
    if (hold_reads_) co_await gate_.wait();
    co_await below().read(offset, data, options);
    co_await wait();
  }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    ++writes_;
    co_await wait();
    if (hold_writes_) co_await gate_.wait();
    if (failures_ > 0) {
      --failures_;
      co_await fail(Error(Errc::no_space, "no space is left"));
    }
    // Half of it, and after a while the rest: a reader that is not kept out sees both.
    const size_t half = data.size() / 2;
    co_await below().write(offset, data.first(half), options);
    co_await wait();
    co_await below().write(offset + half, data.subspan(half), options);
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override {
    ++zeros_;
    co_await wait();
    co_await below().zero(offset, length, options);
  }
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions) override {
    co_await wait();
    co_await below().zero(offset, length, {});  // Gone at once.
  }
  Task<void> close() override {
    ++closed_;
    co_await Filter::close();
  }
  void hold() { gate_.reset(); }
  void let_go() { gate_.set(); }

  bool slow_ = false;
  bool writable_ = true;
  bool hold_reads_ = false;
  bool hold_writes_ = false;
  int failures_ = 0;
  uint32_t preferred_ = 4096;
  int reads_ = 0;
  int writes_ = 0;
  int zeros_ = 0;
  int closed_ = 0;

 private:
  Task<void> wait() {
    if (slow_) co_await reactor().sleep(static_cast<int64_t>(reactor().random() % 1000 + 1));
  }
  Event gate_;
};

class CopyBeforeWriteTest : public testing::Test {
 protected:
  static constexpr uint64_t kSize = 20 * kCluster + 512;

  void make(CopyBeforeWriteOptions options = {}) {
    snapshot_.reset();
    disk_.reset();
    old_.resize(kSize);
    for (size_t i = 0; i < old_.size(); ++i) old_[i] = static_cast<std::byte>(i % 251 + 1);
    auto file = std::make_unique<TestDisk>(reactor_, old_);
    auto target = std::make_unique<TestDisk>(reactor_, std::vector<std::byte>(kSize + 100));
    ASSERT_TRUE(CopyBeforeWrite::fits(*file, *target, options));
    file_ = file.get();
    target_ = target.get();
    filter_ = new CopyBeforeWrite(std::move(file), std::move(target), options);
    disk_ = std::unique_ptr<Device>(filter_);
    ASSERT_TRUE(filter_->claim());
    ASSERT_TRUE(SnapshotAccess::fits(*disk_));
    snapshot_ = std::make_unique<SnapshotAccess>(disk_.another());
  }
  void TearDown() override {
    if (snapshot_) EXPECT_TRUE(reactor_.run(snapshot_.close()));
    if (disk_) EXPECT_TRUE(reactor_.run(disk_.close()));
  }

  Result<void> write(uint64_t offset, uint64_t length, uint8_t value = 0xaa) {
    const std::vector<std::byte> data(length, std::byte{value});
    return reactor_.run(disk_->write(offset, data, {}));
  }
  Result<std::vector<std::byte>> read_snapshot(uint64_t offset, uint64_t length) {
    std::vector<std::byte> data(length, std::byte{0xee});
    Result<void> done = reactor_.run(snapshot_->read(offset, data, IoTag::read_guest));
    if (!done) return std::move(done).error();
    return data;
  }
  void expect_snapshot_is_whole() {
    const auto all = read_snapshot(0, kSize);
    ASSERT_TRUE(all) << all.error().message();
    EXPECT_TRUE(*all == old_);
  }
  bool in_target(uint64_t cluster) const {
    const uint64_t at = cluster * kCluster;
    const uint64_t length = std::min(kCluster, kSize - at);
    std::vector<std::byte> data(length);
    target_->memory().peek(at, data);
    return equal(data, Bytes(old_).subspan(at, length));
  }
  std::vector<uint64_t> clusters_in_target() const {
    std::vector<uint64_t> found;
    for (uint64_t n = 0; n * kCluster < kSize; ++n) {
      if (in_target(n)) found.push_back(n);
    }
    return found;
  }
  /// Runs what can run until nothing changes any more.
  void settle() {
    for (int i = 0; i < 100; ++i) reactor_.turn(Reactor::Wait::no);
  }

  SimReactor reactor_{1};
  std::vector<std::byte> old_;
  TestDisk* file_ = nullptr;
  TestDisk* target_ = nullptr;
  CopyBeforeWrite* filter_ = nullptr;
  Child disk_;
  Child snapshot_;
};

using Numbers = std::vector<uint64_t>;

TEST_F(CopyBeforeWriteTest, OldContentsAreCopiedInWholeClustersAndOnlyOnce) {
  make();
  EXPECT_EQ(filter_->cluster_size(), kCluster);
  ASSERT_TRUE(write(2 * kCluster - 10, 20));
  EXPECT_EQ(clusters_in_target(), (Numbers{1, 2}));
  EXPECT_EQ(filter_->bytes_copied(), 2 * kCluster);
  ASSERT_TRUE(write(kCluster, 2 * kCluster, 0xbb));
  EXPECT_EQ(filter_->bytes_copied(), 2 * kCluster);
  EXPECT_EQ(clusters_in_target(), (Numbers{1, 2}));
  expect_snapshot_is_whole();
  std::vector<std::byte> now(20);
  ASSERT_TRUE(reactor_.run(disk_->read(2 * kCluster - 10, now, IoTag::none)));
  EXPECT_TRUE(std::ranges::all_of(now, [](std::byte b) { return b == std::byte{0xbb}; }));
}

TEST_F(CopyBeforeWriteTest, ZerosDiscardsAndASmallerSizeAreChangesAsWell) {
  make();
  ASSERT_TRUE(reactor_.run(disk_->zero(100, 10)));
  ASSERT_TRUE(reactor_.run(disk_->discard(4 * kCluster, kCluster)));
  EXPECT_EQ(clusters_in_target(), (Numbers{0, 4}));
  file_->memory().fixed = false;
  ASSERT_TRUE(reactor_.run(disk_->resize(18 * kCluster + 7)));
  EXPECT_EQ(clusters_in_target(), (Numbers{0, 4, 18, 19, 20}));
  expect_snapshot_is_whole();
  ASSERT_TRUE(reactor_.run(disk_->resize(30 * kCluster)));
  ASSERT_TRUE(write(19 * kCluster, 11 * kCluster));  // Beyond the snapshot nothing is kept.
  EXPECT_EQ(filter_->bytes_copied(), 4 * kCluster + 512);
  EXPECT_EQ(snapshot_->size(), kSize);
  expect_snapshot_is_whole();
}

TEST_F(CopyBeforeWriteTest, ZerosAreCopiedWithoutData) {
  make();
  ASSERT_TRUE(reactor_.run(file_->memory().zero(0, 16 * kCluster)));
  std::fill_n(old_.begin(), 16 * kCluster, std::byte{0});
  const std::vector<std::byte> garbage(16 * kCluster, std::byte{0x77});
  target_->memory().poke(0, garbage);
  ASSERT_TRUE(write(0, 16 * kCluster));
  EXPECT_EQ(target_->writes_, 0);
  EXPECT_GE(target_->zeros_, 1);
  expect_snapshot_is_whole();
}

TEST_F(CopyBeforeWriteTest, ASnapshotCannotBeChanged) {
  make();
  const std::vector<std::byte> data(512);
  EXPECT_FALSE(snapshot_->writable());
  for (const Result<void>& done :
       {reactor_.run(snapshot_->write(0, data)), reactor_.run(snapshot_->zero(0, 512))}) {
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code(), Errc::unsupported);
  }
  EXPECT_FALSE(read_snapshot(kSize - 1, 2));
}

TEST_F(CopyBeforeWriteTest, AReaderWhoIsOvertakenByAWriterReadsTheTarget) {
  make();
  file_->hold_reads_ = true;
  file_->hold();
  std::vector<std::byte> seen(3 * kCluster);
  Scope scope(reactor_.ready());
  scope.spawn(snapshot_->read(kCluster + 5, seen, IoTag::none));
  settle();
  EXPECT_EQ(file_->reads_, 1);
  // Nobody waits for the reader; what he has read of these clusters is not what he gets.
  file_->hold_reads_ = false;
  ASSERT_TRUE(write(2 * kCluster, 100));
  ASSERT_TRUE(write(4 * kCluster, 1));
  file_->let_go();
  ASSERT_TRUE(reactor_.run(scope.join()));
  EXPECT_TRUE(equal(seen, Bytes(old_).subspan(kCluster + 5, 3 * kCluster)));
  EXPECT_EQ(clusters_in_target(), (Numbers{2, 4}));
}

TEST_F(CopyBeforeWriteTest, AReadThatFailsWhileTheDiskIsCutOffIsDoneAgain) {
  make();
  file_->memory().fixed = false;
  file_->hold_reads_ = true;
  file_->hold();
  std::vector<std::byte> seen(2 * kCluster);
  std::optional<Result<void>> read;
  Scope scope(reactor_.ready());
  const auto reader = [&]() -> Task<void> {
    read = co_await snapshot_->read(17 * kCluster, seen, IoTag::none).result();
  };
  scope.spawn(reader());
  settle();
  file_->hold_reads_ = false;
  ASSERT_TRUE(reactor_.run(disk_->resize(18 * kCluster)));
  file_->let_go();
  ASSERT_TRUE(reactor_.run(scope.join()));
  ASSERT_TRUE(read && *read);
  EXPECT_TRUE(equal(seen, Bytes(old_).subspan(17 * kCluster, 2 * kCluster)));
}

TEST_F(CopyBeforeWriteTest, ACopyHoldsOtherWritersBackAndNoReader) {
  make();
  target_->hold_writes_ = true;
  target_->hold();
  std::vector<std::byte> seen(10);
  std::vector<std::byte> data(100, std::byte{0xaa});
  Scope scope(reactor_.ready());
  scope.spawn(disk_->write(0, data, {}));
  settle();
  scope.spawn(snapshot_->read(kCluster - 10, seen, IoTag::none));
  scope.spawn(disk_->write(200, data, {}));
  settle();
  EXPECT_EQ(scope.running(), 2u);  // The reader is done.
  EXPECT_EQ(file_->writes_, 0);
  target_->let_go();
  ASSERT_TRUE(reactor_.run(scope.join()));
  EXPECT_TRUE(equal(seen, Bytes(old_).subspan(kCluster - 10, 10)));
  EXPECT_EQ(filter_->bytes_copied(), kCluster);
}

TEST_F(CopyBeforeWriteTest, ACopyThatFailsFailsTheWriteAndLeavesTheSnapshotWhole) {
  make();
  target_->failures_ = 1;
  const Result<void> failed = write(3 * kCluster, 512);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().message(),
            "copy-before-write: write 65536 bytes at 0x30000 of the target: no space is left");
  EXPECT_EQ(file_->writes_, 0);
  expect_snapshot_is_whole();
  ASSERT_TRUE(write(3 * kCluster, 512));
  expect_snapshot_is_whole();
}

TEST_F(CopyBeforeWriteTest, OrTheSnapshotIsBrokenAndTheWriteGoesOn) {
  make({.on_error = CbwError::break_snapshot});
  ASSERT_TRUE(write(0, 512));
  target_->failures_ = 1;
  // A reader that is under way elsewhere must not see what later writes leave.
  file_->hold_reads_ = true;
  file_->hold();
  std::vector<std::byte> seen(kCluster);
  std::optional<Result<void>> read;
  Scope scope(reactor_.ready());
  const auto reader = [&]() -> Task<void> {
    read = co_await snapshot_->read(8 * kCluster, seen, IoTag::none).result();
  };
  scope.spawn(reader());
  settle();
  file_->hold_reads_ = false;
  ASSERT_TRUE(write(3 * kCluster, 512));
  ASSERT_TRUE(write(8 * kCluster, 512));  // Not held back, and not copied.
  EXPECT_EQ(clusters_in_target(), (Numbers{0}));
  file_->let_go();
  ASSERT_TRUE(reactor_.run(scope.join()));
  ASSERT_TRUE(read);
  EXPECT_FALSE(*read);
  const auto later = read_snapshot(0, 512);
  ASSERT_FALSE(later);
  EXPECT_EQ(later.error().message(),
            "the snapshot of 'memory' is broken: copy-before-write: write 65536 bytes at 0x30000 "
            "of the target: no space is left");
  EXPECT_FALSE(reactor_.run(snapshot_->status(0, 512)));
}

TEST_F(CopyBeforeWriteTest, ACopyThatTakesTooLongHasFailed) {
  for (const CbwError on_error : {CbwError::break_guest_write, CbwError::break_snapshot}) {
    make({.on_error = on_error, .timeout_ns = 3 * kSecond});
    ASSERT_TRUE(write(kCluster, 512));  // In time.
    target_->hold_writes_ = true;
    target_->hold();
    const Result<void> late = write(0, 512);
    EXPECT_EQ(late.has_value(), on_error == CbwError::break_snapshot);
    if (!late) {
      EXPECT_EQ(late.error().message(),
                "copy-before-write: not done within 3 seconds (cbw-timeout)");
    }
    // It goes on, and is waited for before a change of the graph and at the end.
    target_->let_go();
    ASSERT_TRUE(reactor_.run(filter_->settle()));
    EXPECT_TRUE(in_target(0));
    if (!late) {
      ASSERT_TRUE(write(0, 512));
      expect_snapshot_is_whole();
    }
    ASSERT_TRUE(reactor_.run(snapshot_.close()));
    ASSERT_TRUE(reactor_.run(disk_.close()));
    EXPECT_EQ(file_->closed_, 1);
    EXPECT_EQ(target_->closed_, 1);
    snapshot_.reset();
    disk_.reset();
  }
}

TEST_F(CopyBeforeWriteTest, WhatNobodyWantsIsNotKept) {
  using Part = CopyBeforeWriteOptions::Part;
  CopyBeforeWriteOptions options;
  options.wanted = [](uint64_t from) -> std::optional<Part> {
    if (from < kCluster + 1) return Part{kCluster - 1, kCluster + 1};  // In two clusters.
    if (from < 9 * kCluster) return Part{8 * kCluster, 9 * kCluster};
    return std::nullopt;
  };
  make(std::move(options));
  ASSERT_TRUE(write(0, 12 * kCluster));
  EXPECT_EQ(clusters_in_target(), (Numbers{0, 1, 8}));
  EXPECT_TRUE(read_snapshot(0, 2 * kCluster));
  const auto left_out = read_snapshot(kCluster, 2 * kCluster);
  ASSERT_FALSE(left_out);
  EXPECT_EQ(left_out.error().code(), Errc::denied);
  EXPECT_EQ(left_out.error().message(),
            "0x20000 is no part of the snapshot of 'memory': its bitmap left it out");
  const Result<Extent> part = reactor_.run(snapshot_->status(kCluster, 5 * kCluster));
  ASSERT_TRUE(part);
  EXPECT_EQ(part->length, kCluster);
  EXPECT_FALSE(reactor_.run(snapshot_->status(2 * kCluster, kCluster)));
}

TEST_F(CopyBeforeWriteTest, WhatIsLetGoIsInTheTargetNoMore) {
  make();
  ASSERT_TRUE(write(3 * kCluster, 2 * kCluster));
  EXPECT_EQ(clusters_in_target(), (Numbers{3, 4}));
  // Whole clusters only.
  ASSERT_TRUE(reactor_.run(snapshot_->discard(3 * kCluster + 512, kCluster)));
  EXPECT_EQ(clusters_in_target(), (Numbers{3, 4}));
  expect_snapshot_is_whole();
  ASSERT_TRUE(reactor_.run(snapshot_->discard(4 * kCluster, 4 * kCluster)));
  EXPECT_EQ(clusters_in_target(), (Numbers{3}));
  const auto gone = read_snapshot(5 * kCluster, 512);
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().message(),
            "0x50000 is no part of the snapshot of 'memory': it was let go");
  EXPECT_FALSE(read_snapshot(kCluster, 4 * kCluster));
  EXPECT_TRUE(read_snapshot(0, 4 * kCluster));
  EXPECT_TRUE(read_snapshot(8 * kCluster, 12 * kCluster + 512));
  // Guests change it without a copy, and the rest with one.
  ASSERT_TRUE(write(5 * kCluster, 4 * kCluster));
  EXPECT_EQ(clusters_in_target(), (Numbers{3, 8}));
  // To the end of the disk, inside its last cluster.
  ASSERT_TRUE(write(20 * kCluster, 512));
  EXPECT_EQ(clusters_in_target(), (Numbers{3, 8, 20}));
  ASSERT_TRUE(reactor_.run(snapshot_->discard(19 * kCluster, kCluster + 512)));
  EXPECT_EQ(clusters_in_target(), (Numbers{3, 8}));
  EXPECT_FALSE(reactor_.run(snapshot_->discard(20 * kCluster, kCluster)));
}

/// Who has begun to read it gets the moment's bytes, or an error.
TEST_F(CopyBeforeWriteTest, AReaderOfWhatIsLetGoGetsNothingElse) {
  make();
  ASSERT_TRUE(write(2 * kCluster, kCluster));
  std::vector<std::byte> data(kCluster);
  target_->hold_reads_ = true;
  target_->hold();
  std::optional<Result<void>> read;
  Scope readers(reactor_.ready());
  const auto reader = [&]() -> Task<void> {
    read.emplace(co_await snapshot_->read(2 * kCluster, data, IoTag::read_guest).result());
  };
  readers.spawn(reader());
  settle();
  ASSERT_FALSE(read);
  target_->hold_reads_ = false;
  ASSERT_TRUE(reactor_.run(snapshot_->discard(2 * kCluster, kCluster)));
  target_->let_go();
  ASSERT_TRUE(reactor_.run(readers.join()));
  ASSERT_TRUE(read);
  EXPECT_FALSE(*read);
}

TEST_F(CopyBeforeWriteTest, StatusIsThatOfTheSnapshot) {
  make();
  ASSERT_TRUE(reactor_.run(file_->memory().zero(0, 4 * kCluster)));
  ASSERT_TRUE(write(kCluster, kCluster));
  for (const auto& [at, length, zero] : {std::tuple{uint64_t{0}, kCluster, true},
                                         {kCluster, kCluster, true},
                                         {2 * kCluster, 2 * kCluster, true},
                                         {4 * kCluster, kSize - 4 * kCluster, false}}) {
    const Result<Extent> extent = reactor_.run(snapshot_->status(at, kSize - at));
    ASSERT_TRUE(extent);
    EXPECT_EQ(extent->zero, zero) << at;
    EXPECT_LE(extent->length, length) << at;
    EXPECT_TRUE(extent->allocated);
    EXPECT_FALSE(extent->host_offset);
  }
}

TEST_F(CopyBeforeWriteTest, TheClusterIsTheLargestThatAnybodyNeeds) {
  TestDisk file(reactor_, std::vector<std::byte>(MiB));
  const auto cluster = [&](uint32_t preferred, uint64_t least) {
    auto target = std::make_unique<TestDisk>(reactor_, std::vector<std::byte>(MiB));
    target->preferred_ = preferred;
    return CopyBeforeWrite(Child::to(file), std::move(target), {.cluster_size_min = least})
        .cluster_size();
  };
  EXPECT_EQ(cluster(512, 0), 64 * KiB);
  EXPECT_EQ(cluster(2 * MiB, 0), 2 * MiB);
  EXPECT_EQ(cluster(512, 4096), 64 * KiB);
  EXPECT_EQ(cluster(512, 256 * KiB), 256 * KiB);
}

TEST_F(CopyBeforeWriteTest, WhatDoesNotFitIsRefused) {
  TestDisk file(reactor_, std::vector<std::byte>(8192));
  TestDisk target(reactor_, std::vector<std::byte>(8192));
  TestDisk small(reactor_, std::vector<std::byte>(8191));
  EXPECT_TRUE(CopyBeforeWrite::fits(file, target, {}));
  EXPECT_EQ(CopyBeforeWrite::fits(file, target, {.cluster_size_min = 3}).error().message(),
            "min-cluster-size needs to be a power of 2");
  EXPECT_EQ(CopyBeforeWrite::fits(file, small, {}).error().message(),
            "copy-before-write: target 'memory' has 8191 bytes, and 'memory' has 8192: make the "
            "target as large");
  target.writable_ = false;
  EXPECT_EQ(CopyBeforeWrite::fits(file, target, {}).error().code(), Errc::read_only);
  file.writable_ = false;
  EXPECT_TRUE(CopyBeforeWrite::fits(file, target, {}));
  EXPECT_EQ(SnapshotAccess::fits(file).error().message(),
            "snapshot-access: 'memory' keeps no snapshot: put it directly over a "
            "copy-before-write node");
}

TEST_F(CopyBeforeWriteTest, NobodyElseMayWriteTheDiskOrTheTarget) {
  make();
  Child beside = Child::to(*file_);
  EXPECT_EQ(beside.set_permissions({.uses = {.write = true}}).error().code(), Errc::busy);
  Child other = Child::to(*target_);
  EXPECT_EQ(other.set_permissions({.uses = {.write = true}}).error().code(), Errc::busy);
  EXPECT_TRUE(other.set_permissions({.uses = {.read = true}}));
}

// Put above a disk in use, and another filter above it later: the snapshot stays where it is.
TEST_F(CopyBeforeWriteTest, FiltersComeAndGoBesideTheSnapshot) {
  std::vector<std::byte> bytes(4 * kCluster, std::byte{0x11});
  auto owned = std::make_unique<TestDisk>(reactor_, bytes);
  TestDisk& disk = *owned;
  Entrance guest{Child(std::move(owned))};
  Child cbw;
  Child snapshot;
  const auto enter = [&]() -> Task<void> {
    Drain drain(*disk.node());
    co_await drain.begin();
    cbw = std::make_unique<CopyBeforeWrite>(
        Child::to(disk), std::make_unique<TestDisk>(reactor_, std::vector<std::byte>(4 * kCluster)),
        CopyBeforeWriteOptions{});
    co_await insert_above(*disk.node(), cbw);
    co_await static_cast<CopyBeforeWrite&>(*cbw).claim();
    snapshot = std::make_unique<SnapshotAccess>(cbw.another());
  };
  ASSERT_TRUE(reactor_.run(enter()));
  const Device* const filter = cbw.get();
  Child plain = std::make_unique<Filter>(cbw.another());
  ASSERT_TRUE(reactor_.run(insert_above(cbw.node(), plain)));
  EXPECT_EQ(guest.edge().get(), plain.get());
  EXPECT_EQ(snapshot->children()[0]->get(), filter);

  const auto change = [&]() -> Task<void> {
    const Entrance::Pass pass = co_await guest.enter();
    const std::vector<std::byte> data(kCluster, std::byte{0x22});
    co_await pass->write(kCluster / 2, data);
  };
  ASSERT_TRUE(reactor_.run(change()));
  std::vector<std::byte> seen(4 * kCluster);
  ASSERT_TRUE(reactor_.run(snapshot->read(0, seen)));
  EXPECT_TRUE(seen == bytes);

  ASSERT_TRUE(reactor_.run(remove_filter(plain)));
  ASSERT_TRUE(reactor_.run(plain.close()));
  plain.reset();
  ASSERT_TRUE(reactor_.run(snapshot.close()));
  snapshot.reset();
  ASSERT_TRUE(reactor_.run(remove_filter(cbw)));
  ASSERT_TRUE(reactor_.run(cbw.close()));
  cbw.reset();
  EXPECT_EQ(guest.edge().get(), &disk);
  ASSERT_TRUE(reactor_.run(guest.edge().close()));
}

// Writers, and readers of the snapshot, everywhere at once.
TEST_F(CopyBeforeWriteTest, TheSnapshotIsReadAsItWasWhateverIsWritten) {
  for (int round = 0; round < 30; ++round) {
    make({.timeout_ns = round % 2 * 100 * kSecond});
    file_->slow_ = target_->slow_ = true;
    int wrong = 0;
    const auto writer = [&]() -> Task<void> {
      for (int i = 0; i < 20; ++i) {
        const uint64_t at = reactor_.random() % kSize;
        const uint64_t length = std::min<uint64_t>(kSize - at, reactor_.random() % (3 * kCluster));
        const std::vector<std::byte> data(length, std::byte{0xfe});
        switch (reactor_.random() % 4) {
          case 0:
            co_await disk_->zero(at, length);
            break;
          case 1:
            co_await disk_->discard(at, length);
            break;
          default:
            co_await disk_->write(at, data);
        }
      }
    };
    const auto reader = [&]() -> Task<void> {
      for (int i = 0; i < 30; ++i) {
        const uint64_t at = reactor_.random() % kSize;
        std::vector<std::byte> data(std::min(kSize - at, reactor_.random() % (5 * kCluster)));
        co_await snapshot_->read(at, data);
        wrong += !equal(data, Bytes(old_).subspan(at, data.size()));
      }
    };
    Scope scope(reactor_.ready());
    for (int i = 0; i < 4; ++i) scope.spawn(writer());
    for (int i = 0; i < 4; ++i) scope.spawn(reader());
    const Result<void> joined = reactor_.run(scope.join());
    ASSERT_TRUE(joined) << joined.error().message();
    ASSERT_EQ(wrong, 0) << "round " << round;
    expect_snapshot_is_whole();
    ASSERT_TRUE(reactor_.run(snapshot_.close()));
    ASSERT_TRUE(reactor_.run(disk_.close()));
    snapshot_.reset();
    disk_.reset();
  }
}

TEST(ClusterSet, KnowsItsMembersAcrossChunks) {
  ClusterSet set;
  EXPECT_EQ(set.next(true, 0, 1'000'000'000), 1'000'000'000u);
  EXPECT_EQ(set.next(false, 5, 9), 5u);
  set.insert(4000, 13000);
  EXPECT_EQ(set.next(true, 0, 20000), 4000u);
  EXPECT_EQ(set.next(false, 4000, 20000), 13000u);
  EXPECT_EQ(set.next(false, 4000, 6000), 6000u);
  EXPECT_TRUE(set.contains(12999));
  EXPECT_FALSE(set.contains(13000));
  set.insert(4000, 4001);
  EXPECT_EQ(set.next(false, 3999, 20000), 3999u);
}

}  // namespace
}  // namespace byre
