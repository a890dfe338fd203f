// SPDX-License-Identifier: Apache-2.0
/// What jobs refuse before they touch anything; what they do is simulated
/// (tests/sim/live_scenario.cc).
#include <gtest/gtest.h>

#include "block/entrance.h"
#include "block/filter.h"
#include "block/memory.h"
#include "job/live/backup.h"
#include "job/live/commit_below.h"
#include "job/live/job_list.h"
#include "job/live/mirror.h"
#include "job/live/stream.h"
#include "qcow2/image_testing.h"
#include "qcow2/memory_image_testing.h"
#include "qcow2/ops/create.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

class Works : public testing::Test {
 protected:
  Child memory(uint64_t size) { return std::make_unique<MemoryDevice>(reactor_, size); }
  template <class Work>
  static std::string refusal(const Result<std::unique_ptr<Work>>& made) {
    return made ? "" : made.error().message();
  }
  SimReactor reactor_{1};
};

TEST_F(Works, ACopyNeedsRoom) {
  const std::string why = refusal(Mirror::make(memory(2 * MiB), memory(1 * MiB), {}));
  EXPECT_NE(why.find("make the target as large"), std::string::npos) << why;
  const std::string backup = refusal(Backup::make(memory(2 * MiB), memory(1 * MiB), {}));
  EXPECT_NE(backup.find("make the target as large"), std::string::npos) << backup;
  EXPECT_EQ(refusal(Mirror::make(memory(1 * MiB), memory(2 * MiB), {})), "");
}

TEST_F(Works, ADiskIsNotItsOwnCopy) {
  const Child disk = memory(1 * MiB);
  EXPECT_NE(refusal(Mirror::make(disk.another(), disk.another(), {})), "");
  EXPECT_NE(refusal(Backup::make(disk.another(), disk.another(), {})), "");
}

TEST_F(Works, PiecesArePowersOfTwo) {
  MirrorOptions options;
  options.filter.granularity = 1000;
  EXPECT_NE(refusal(Mirror::make(memory(1 * MiB), memory(1 * MiB), options)), "");
}

TEST_F(Works, OnlyImagesAreStreamedInto) {
  EXPECT_NE(refusal(Stream::make(memory(1 * MiB), {})), "");
  EXPECT_NE(refusal(CommitBelow::make(memory(1 * MiB), {.base_name = {}, .filter = {}})), "");
}

TEST_F(Works, ThereIsNothingBelowToCommitInto) {
  EXPECT_NE(refusal(Mirror::commit_into(memory(1 * MiB), 1, {})), "");
}

TEST_F(Works, NotEveryTargetCompresses) {
  EXPECT_NE(refusal(Backup::make(memory(1 * MiB), memory(1 * MiB), {.compressed = true})), "");
}

/// A piece is clean again only when the target has it.
TEST_F(Works, WhatGuestsChangeIsDirty) {
  MirrorFilter filter(memory(1 * MiB), memory(1 * MiB), {.granularity = 64 * KiB});
  filter.forget_dirty();
  const std::vector<std::byte> data(512, std::byte{7});
  ASSERT_TRUE(reactor_.finish(filter.write(100 * KiB, data, {})));
  EXPECT_EQ(filter.dirty_bytes(), 64 * KiB);
  ASSERT_TRUE(reactor_.finish(filter.discard(192 * KiB, 128 * KiB, {})));
  EXPECT_EQ(filter.dirty_bytes(), 192 * KiB);
  const auto taken = reactor_.finish(filter.take(0));
  ASSERT_TRUE(taken && *taken);
  EXPECT_EQ((*taken)->first, 1u);
  const auto copied = reactor_.finish(filter.copy(**taken));
  ASSERT_TRUE(copied && !copied->error);
  EXPECT_EQ(filter.dirty_bytes(), 128 * KiB);
  std::vector<std::byte> found(512);
  ASSERT_TRUE(reactor_.finish(filter.target().read(100 * KiB, found)));
  EXPECT_EQ(found, data);

  filter.set_mode(MirrorMode::write_blocking);
  filter.forget_dirty();
  ASSERT_TRUE(reactor_.finish(filter.write(0, data, {})));
  EXPECT_EQ(filter.dirty_bytes(), 0u);
  ASSERT_TRUE(reactor_.finish(filter.target().read(0, found)));
  EXPECT_EQ(found, data);
  EXPECT_EQ(reactor_.finish(filter.resize(2 * MiB)).error().code(), Errc::busy);
  ASSERT_TRUE(reactor_.finish(filter.close()));
}

/// Each change takes a millisecond.
class SlowToChange final : public Filter {
 public:
  using Filter::Filter;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    co_await reactor().sleep(1 * kMillisecond);
    co_await below().write(offset, data, options);
  }
};

/// Guests use a disk above those that are committed: whoever makes the job counts their requests.
TEST_F(Works, ACommitBelowGivesWayToGuests) {
  constexpr uint64_t kSize = 16 * MiB;
  ClosedGate opener;
  const auto image = [&](Child backing, bool slow) {
    CreateOptions options{.size = kSize};
    if (backing) {
      options.backing_file = "below";
      options.backing_format = "qcow2";
    }
    auto memory = std::make_unique<MemoryDevice>(reactor_);
    EXPECT_TRUE(reactor_.finish(create_image(*memory, options)));
    std::unique_ptr<Device> file = std::move(memory);
    if (slow) file = std::make_unique<SlowToChange>(std::move(file));
    return Child(*reactor_.finish(
        Image::open_over(std::move(file), opener, {.writable = true}, std::move(backing))));
  };
  const auto time_of = [&](bool guests, bool gives_way) {
    JobList jobs(reactor_);
    Child top = image(image(image({}, true), false), false);
    const std::vector<std::byte> data(kSize, std::byte{7});
    EXPECT_TRUE(reactor_.finish(static_cast<Image&>(*top).backing()->write(0, data)));
    CommitBelowOptions options;
    options.guest_requests = [guests, n = uint64_t{0}]() mutable { return guests ? ++n : 0; };
    Result<std::unique_ptr<CommitBelow>> work = CommitBelow::make(Child::to(*top), options);
    EXPECT_TRUE(work) << refusal(work);
    const Instant began = reactor_.now();
    const auto transaction = jobs.begin_transaction();
    EXPECT_TRUE(jobs.add(*std::move(work), {.id = "j", .gives_way = gives_way}, transaction));
    jobs.start(*transaction);
    const auto ended = [&]() -> Task<void> { co_await jobs.wait_for("j", JobStatus::null); };
    EXPECT_TRUE(reactor_.finish(ended()));
    const int64_t took = reactor_.now() - began;
    EXPECT_EQ(static_cast<Image&>(*top).backing()->size(), kSize);
    EXPECT_TRUE(reactor_.finish(jobs.close()));
    EXPECT_TRUE(reactor_.finish(top.close()));
    return took;
  };
  // Sixteen pieces of a millisecond at least, five of rest behind each.
  EXPECT_GE(time_of(true, true), 80 * kMillisecond);
  EXPECT_LT(time_of(false, true), 60 * kMillisecond);
  EXPECT_LT(time_of(true, false), 60 * kMillisecond);
}

/// Guests change more in each millisecond than a mirror copies that rests for them; one that goes
/// as fast as it can overtakes them easily.
TEST_F(Works, AMirrorThatGuestsOvertakeGetsReady) {
  constexpr uint64_t kSize = 64 * MiB;
  JobList jobs(reactor_);
  Child source = memory(kSize);
  const std::vector<std::byte> before(kSize, std::byte{1});
  ASSERT_TRUE(reactor_.finish(source->write(0, before)));
  Entrance guest(source.another());
  ASSERT_TRUE(guest.edge().set_permissions({.uses = {.read = true, .write = true}}));
  Child target = std::make_unique<SlowToChange>(memory(kSize));
  MirrorOptions options{.requests_max = 4};
  options.filter.granularity = 64 * KiB;
  Result<std::unique_ptr<Mirror>> work =
      Mirror::make(source.another(), std::move(target), std::move(options));
  ASSERT_TRUE(work) << refusal(work);
  const Mirror& mirror = **work;
  const auto transaction = jobs.begin_transaction();
  const Result<Job*> job = jobs.add(*std::move(work), {.id = "j", .gives_way = true}, transaction);
  ASSERT_TRUE(job);
  jobs.start(*transaction);

  bool stop = false;
  const std::vector<std::byte> data(64 * KiB, std::byte{7});
  const auto write = [&]() -> Task<void> {
    uint64_t at = 0;
    while (!stop) {
      {
        const Entrance::Pass pass = co_await guest.enter();
        co_await pass->write(at, data);
      }
      at = (at + 64 * KiB) % kSize;
      co_await reactor_.sleep(100'000);
    }
  };
  bool was_overtaken = false;
  int64_t ready_after = 0;
  const auto watch = [&]() -> Task<void> {
    Scope guests(reactor_.ready());
    guests.spawn(write());
    const Instant began = reactor_.now();
    while (!(*job)->is_ready() && reactor_.now() - began < 20 * kSecond) {
      was_overtaken |= mirror.is_overtaken();
      co_await reactor_.sleep(1 * kMillisecond);
    }
    ready_after = reactor_.now() - began;
    stop = true;
    co_await guests.join();
  };
  ASSERT_TRUE(reactor_.finish(watch()));
  EXPECT_TRUE(was_overtaken);
  EXPECT_LT(ready_after, 5 * kSecond)
      << name_of((*job)->status()) << ", " << mirror.filter_in_use()->dirty_bytes() << " dirty, "
      << mirror.filter_in_use()->guest_requests() << " requests, done "
      << (*job)->progress().done();
  ASSERT_TRUE((*job)->cancel(true));
  const auto ended = [&]() -> Task<void> { co_await jobs.wait_for("j", JobStatus::null); };
  ASSERT_TRUE(reactor_.finish(ended()));
  EXPECT_TRUE(reactor_.finish(jobs.close()));
  EXPECT_TRUE(reactor_.finish(guest.edge().close()));
  EXPECT_TRUE(reactor_.finish(source.close()));
}

}  // namespace
}  // namespace byre
