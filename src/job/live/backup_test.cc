// SPDX-License-Identifier: Apache-2.0
/// Backups into an image over the disk itself, whose readers see the moment (docs/engine.md, G7);
/// with races, errors and power losses they are simulated (tests/sim/live_scenario.cc).
#include "job/live/backup.h"

#include <gtest/gtest.h>

#include "block/entrance.h"
#include "block/filter.h"
#include "block/memory.h"
#include "block/snapshot_access.h"
#include "block/snapshot_below.h"
#include "job/live/job_list.h"
#include "qcow2/image_testing.h"
#include "qcow2/ops/create.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

using Contents = std::vector<std::byte>;

class PullBackup : public testing::Test {
 protected:
  static constexpr uint64_t kSize = 2 * MiB + 512;

  Child image(uint64_t size, Child backing = {}, uint32_t version = 3) {
    CreateOptions options{.size = size};
    options.version = version;
    if (backing) {
      options.backing_file = "below";
      options.backing_format = "qcow2";
    }
    auto file = std::make_unique<MemoryDevice>(reactor_);
    EXPECT_TRUE(reactor_.finish(create_image(*file, options)));
    Result<std::unique_ptr<Image>> opened = reactor_.finish(
        Image::open_over(std::move(file), opener_, {.writable = true}, std::move(backing)));
    EXPECT_TRUE(opened) << opened.error().message();
    return Child(*std::move(opened));
  }
  /// A disk that a guest writes.
  void make_disk() {
    disk_ = image(kSize);
    device_ = disk_.get();
    guest_ = std::make_unique<Entrance>(Child::to(*device_));
    ASSERT_TRUE(guest_->edge().set_permissions({.uses = {.read = true, .write = true}}));
    write(0, 700 * KiB, 1);
    write(2 * MiB, 512, 2);
  }
  static Device* below(const Child& scratch) { return static_cast<Image&>(*scratch).backing(); }

  void write(uint64_t at, uint64_t length, int value) {
    const Contents data(length, static_cast<std::byte>(value));
    const auto request = [&]() -> Task<void> {
      const Entrance::Pass pass = co_await guest_->enter();
      co_await pass->write(at, data);
    };
    const Result<void> done = reactor_.finish(request());
    ASSERT_TRUE(done) << done.error().message();
  }
  void zero(uint64_t at, uint64_t length) {
    const auto request = [&]() -> Task<void> {
      const Entrance::Pass pass = co_await guest_->enter();
      co_await pass->zero(at, length, {.may_unmap = true});
    };
    ASSERT_TRUE(reactor_.finish(request()));
  }
  Contents read(Device& device) {
    Contents bytes(device.size());
    const Result<void> done = reactor_.finish(device.read(0, bytes));
    EXPECT_TRUE(done) << done.error().message();
    return bytes;
  }
  std::string why_unreadable(Device& device) {
    Contents bytes(512);
    const Result<void> done = reactor_.finish(device.read(0, bytes));
    return done ? "" : done.error().message();
  }

  Result<void> begin(const Child& scratch, BackupOptions options = {.only_on_change = true}) {
    Result<std::unique_ptr<Backup>> work =
        Backup::make(Child::to(*device_), Child::to(*scratch), std::move(options));
    if (!work) return std::move(work).error();
    Backup* const backup = work->get();
    transaction_ = jobs_.begin_transaction();
    Result<Job*> job = jobs_.add(*std::move(work), {.id = "job"}, transaction_);
    if (!job) return std::move(job).error();
    Result<void> taken = reactor_.finish(backup->take_moment(**job, nullptr));
    if (!taken) give_up();
    return taken;
  }
  void give_up() { EXPECT_TRUE(reactor_.finish(jobs_.drop(*transaction_))); }
  void end() {
    jobs_.start(*transaction_);
    ASSERT_TRUE(jobs_.find("job")->cancel(true));
    const auto ended = [&]() -> Task<void> { co_await jobs_.wait_for("job", JobStatus::null); };
    ASSERT_TRUE(reactor_.finish(ended()));
  }
  void close(Child& edge) {
    const Result<void> closed = reactor_.finish(edge.close());
    EXPECT_TRUE(closed) << closed.error().message();
    edge.reset();
  }
  void TearDown() override {
    EXPECT_TRUE(reactor_.finish(jobs_.close()));
    if (guest_) close(guest_->edge());
    if (disk_) close(disk_);
  }

  SimReactor reactor_{1};
  ClosedGate opener_;
  JobList jobs_{reactor_};
  std::shared_ptr<JobTransaction> transaction_;
  Child disk_;  ///< A user like others: it may lead to a filter.
  Device* device_ = nullptr;
  std::unique_ptr<Entrance> guest_;
};

TEST_F(PullBackup, ReadersOfTheTargetSeeTheMoment) {
  for (const uint32_t version : {2u, 3u}) {
    for (const uint64_t more : {uint64_t{0}, uint64_t{100 * KiB}}) {
      make_disk();
      Contents moment = read(*device_);
      Child scratch = image(kSize + more, Child::to(*device_), version).hold();
      ASSERT_TRUE(begin(scratch));
      Entrance reader(scratch.another());
      ASSERT_TRUE(reader.edge().set_permissions({.uses = Access::reading()}));
      write(100, 5000, 7);
      write(699 * KiB, 2 * KiB, 7);
      write(2 * MiB + 100, 412, 7);
      write(1 * MiB, 512, 7);
      zero(64 * KiB, 64 * KiB);
      moment.resize(kSize + more);
      EXPECT_TRUE(read(*scratch) == moment);
      EXPECT_EQ(scratch->size(), kSize + more);
      close(reader.edge());
      end();
      EXPECT_EQ(below(scratch), device_);
      close(scratch);
      close(guest_->edge());
      close(disk_);
    }
  }
}

TEST_F(PullBackup, WhatIsAllocatedIsTold) {
  make_disk();
  Child scratch = image(kSize, Child::to(*device_));
  ASSERT_TRUE(begin(scratch));
  write(64 * KiB, 512, 7);
  for (const auto& [at, depth] : {std::pair{uint64_t{0}, 1u}, {64 * KiB, 0u}, {128 * KiB, 1u}}) {
    const Result<Extent> extent = reactor_.finish(scratch->status(at, 64 * KiB));
    ASSERT_TRUE(extent);
    EXPECT_EQ(extent->depth, depth) << at;
    EXPECT_EQ(extent->allocated, depth == 0) << at;
    EXPECT_EQ(extent->length, 64 * KiB);
  }
  end();
  close(scratch);
}

/// Takes nothing from `end` on.
class TakesUpTo final : public Filter {
 public:
  TakesUpTo(Child below, uint64_t end) : Filter(std::move(below)), end_(end) {}
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    if (offset + data.size() > end_) co_await fail(Error(Errc::io, "it takes no more"));
    co_await below().write(offset, data, options);
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override {
    if (offset + length > end_) co_await fail(Error(Errc::io, "it takes no more"));
    co_await below().zero(offset, length, options);
  }

 private:
  const uint64_t end_;
};

TEST_F(PullBackup, WhatATargetThatFailsHasNotGotIsNotLetGo) {
  make_disk();
  write(1 * MiB, 600 * KiB, 3);
  const Contents moment = read(*device_);
  Child keeper = std::make_unique<CopyBeforeWrite>(
      Child::to(*device_), Child(std::make_unique<MemoryDevice>(reactor_, kSize)),
      CopyBeforeWriteOptions{});
  ASSERT_TRUE(reactor_.finish(insert_above(*device_->node(), keeper)));
  Child snapshot = std::make_unique<SnapshotAccess>(keeper.another());
  // What guests change meanwhile is in the image that keeps the moment.
  write(512 * KiB, 1 * MiB, 4);
  constexpr uint64_t kTaken = 1 * MiB;
  Child target =
      std::make_unique<TakesUpTo>(Child(std::make_unique<MemoryDevice>(reactor_, kSize)), kTaken);
  Result<std::unique_ptr<Backup>> work =
      Backup::make(Child::to(*snapshot), target.another(),
                   {.discard_source = true, .requests_max = 2, .request_size = 256 * KiB});
  ASSERT_TRUE(work) << work.error().message();
  transaction_ = jobs_.begin_transaction();
  Result<Job*> job =
      jobs_.add(*std::move(work), {.id = "job", .auto_dismiss = false}, transaction_);
  ASSERT_TRUE(job) << job.error().message();
  jobs_.start(*transaction_);
  const auto ended = [&]() -> Task<void> { co_await jobs_.wait_for("job", JobStatus::concluded); };
  ASSERT_TRUE(reactor_.finish(ended()));
  EXPECT_TRUE((*job)->error());
  const Contents copied = read(*target);
  uint64_t let_go = 0;
  for (uint64_t at = 0; at < kSize; at += 64 * KiB) {
    Contents bytes(std::min<uint64_t>(64 * KiB, kSize - at));
    const Result<void> kept = reactor_.finish(snapshot->read(at, bytes));
    if (!kept) {
      ++let_go;
      EXPECT_LT(at, kTaken);
      std::copy_n(copied.begin() + static_cast<ptrdiff_t>(at), bytes.size(), bytes.begin());
    }
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), moment.begin() + static_cast<ptrdiff_t>(at)))
        << at;
  }
  EXPECT_EQ(let_go, kTaken / (64 * KiB));
  EXPECT_TRUE((*job)->dismiss());
  close(target);
  close(snapshot);
  ASSERT_TRUE(reactor_.finish(remove_filter(keeper)));
  close(keeper);
}

TEST_F(PullBackup, WithoutOneNobodyReadsOverADiskThatIsWritten) {
  make_disk();
  Child scratch = image(kSize, Child::to(*device_)).hold();
  Child reader = scratch.another();
  EXPECT_EQ(reader.set_permissions({.uses = Access::reading()}).error().code(), Errc::busy);
  ASSERT_TRUE(begin(scratch));
  EXPECT_TRUE(reader.set_permissions({.uses = Access::reading()}));
  close(reader);
  end();
  reader = scratch.another();
  EXPECT_EQ(reader.set_permissions({.uses = Access::reading()}).error().code(), Errc::busy);
  close(reader);
  close(scratch);
}

TEST_F(PullBackup, AReaderWhoStaysGetsErrors) {
  make_disk();
  Child scratch = image(kSize, Child::to(*device_)).hold();
  ASSERT_TRUE(begin(scratch));
  Child reader = scratch.another();
  ASSERT_TRUE(reader.set_permissions({.uses = Access::reading()}));
  const Contents moment = read(*scratch);
  end();
  write(0, 512, 9);
  EXPECT_NE(why_unreadable(*scratch).find("the backup of 'memory' has ended"), std::string::npos)
      << why_unreadable(*scratch);
  EXPECT_FALSE(reactor_.finish(scratch->status(0, 512)));
  // Also for a later one, until it is opened anew; a new backup takes its place.
  close(reader);
  EXPECT_NE(why_unreadable(*scratch), "");
  ASSERT_TRUE(begin(scratch));
  write(0, 512, 10);
  EXPECT_EQ(read(*scratch)[0], std::byte{9});
  end();
  EXPECT_EQ(below(scratch), device_);
  close(scratch);
}

TEST_F(PullBackup, ATransactionThatFailsLeavesNothingBehind) {
  make_disk();
  Child scratch = image(kSize, Child::to(*device_)).hold();
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(begin(scratch));
    EXPECT_NE(guest_->edge().get(), device_);
    EXPECT_NE(below(scratch), device_);
    give_up();
    EXPECT_EQ(guest_->edge().get(), device_);
    EXPECT_EQ(below(scratch), device_);
  }
  // One that is refused as well.
  Child writer = Child::to(*device_);
  writer.belong_to(*scratch, Role::other);  // It would lead in a circle.
  ASSERT_TRUE(writer.set_permissions({.uses = {.write = true}}));
  EXPECT_FALSE(begin(scratch));
  EXPECT_EQ(guest_->edge().get(), device_);
  EXPECT_EQ(below(scratch), device_);
  close(writer);
  close(scratch);
}

TEST_F(PullBackup, FiltersLieInBetween) {
  for (const bool is_shared : {false, true}) {
    make_disk();
    Child shared = std::make_unique<Filter>(Child::to(*device_));  // As a throttle would.
    const auto lead = [&]() -> Task<void> { co_await insert_above(*device_->node(), shared); };
    ASSERT_TRUE(reactor_.finish(lead()));
    Child other = std::make_unique<Filter>(Child::to(*shared));
    Device* const shown = is_shared ? shared.get() : other.get();
    Child scratch = image(kSize, Child::to(*shown)).hold();
    Child target = Child(std::make_unique<Filter>(scratch.another())).hold();
    const Contents moment = read(*device_);
    ASSERT_TRUE(begin(target));
    write(0, 512, 9);
    EXPECT_TRUE(read(*target) == moment);
    EXPECT_TRUE(read(*scratch) == moment);
    end();
    EXPECT_EQ(below(scratch), shown);
    close(target);
    close(scratch);
    close(other);
    const auto leave = [&]() -> Task<void> { co_await remove_filter(shared); };
    ASSERT_TRUE(reactor_.finish(leave()));
    close(shared);
    close(guest_->edge());
    close(disk_);
  }
}

// The filter of the backup may be put over one that lies over what the target shows.
TEST_F(PullBackup, TheTargetShowsWhatLiesBelowTheSource) {
  make_disk();
  Child source = std::make_unique<Filter>(Child::to(*device_));
  const auto lead = [&]() -> Task<void> { co_await insert_above(*device_->node(), source); };
  Child scratch = image(kSize, Child::to(*device_)).hold();
  ASSERT_TRUE(reactor_.finish(lead()));
  Child again = Child::to(*device_);
  ASSERT_TRUE(reactor_.finish(
      static_cast<Image&>(*scratch).replace_backing(again, BackingName{"below", "qcow2"})));
  ASSERT_EQ(below(scratch), device_);
  close(again);
  Device* const disk = std::exchange(device_, source.get());
  const Contents moment = read(*disk);
  ASSERT_TRUE(begin(scratch));
  write(0, 512, 9);
  EXPECT_TRUE(read(*scratch) == moment);
  end();
  EXPECT_EQ(below(scratch), disk);
  close(scratch);
  const auto leave = [&]() -> Task<void> { co_await remove_filter(source); };
  ASSERT_TRUE(reactor_.finish(leave()));
  close(source);
}

TEST_F(PullBackup, ALayerInBetweenIsNobodyElses) {
  make_disk();
  Child middle = image(kSize, Child::to(*device_)).hold();
  Child scratch = image(kSize, middle.another()).hold();
  const Contents moment = read(*device_);
  ASSERT_TRUE(begin(scratch));
  write(0, 512, 9);
  EXPECT_TRUE(read(*scratch) == moment);
  end();
  EXPECT_EQ(below(middle), device_);
  Child other = middle.another();
  const Result<void> refused = begin(scratch);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message().find("would create a cycle"), std::string::npos)
      << refused.error().message();
  EXPECT_EQ(guest_->edge().get(), device_);
  close(other);
  close(scratch);
  close(middle);
}

TEST_F(PullBackup, WhatABitmapLeavesOutCannotBeRead) {
  make_disk();
  ASSERT_TRUE(reactor_.finish(static_cast<Image&>(*device_).add_bitmap({.name = "b"})));
  write(0, 512, 9);
  Child scratch = image(kSize, Child::to(*device_)).hold();
  BackupOptions options{.only_on_change = true, .bitmap_sync = BitmapSync::never};
  options.bitmap = *ImageBitmap::make(static_cast<Image&>(*device_), "b", BitmapSync::never);
  ASSERT_TRUE(begin(scratch, std::move(options)));
  EXPECT_EQ(why_unreadable(*scratch), "");
  Contents bytes(512);
  const Result<void> left_out = reactor_.finish(scratch->read(1 * MiB, bytes));
  ASSERT_FALSE(left_out);
  EXPECT_NE(left_out.error().message().find("is no part of the snapshot"), std::string::npos);
  end();
  close(scratch);
}

}  // namespace
}  // namespace byre
