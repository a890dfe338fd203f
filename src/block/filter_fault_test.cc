// SPDX-License-Identifier: Apache-2.0
#include "block/filter_fault.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <string>
#include <vector>

#include "block/borrowed_testing.h"
#include "block/memory.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

constexpr std::byte kOne{1};

class FaultFilterTest : public testing::Test {
 protected:
  void make(FaultRules rules = {}) {
    auto memory = std::make_unique<MemoryDevice>(reactor_, 64 * KiB);
    memory_ = memory.get();
    filter_ = std::make_unique<FaultFilter>(std::move(memory), std::move(rules));
  }
  Result<void> write(uint64_t offset, IoTag tag = IoTag::write_guest) {
    return reactor_.run(filter_->write(offset, bytes_of(kOne), {.tag = tag}));
  }
  Result<void> read(uint64_t offset, IoTag tag = IoTag::read_guest) {
    std::byte byte;
    return reactor_.run(filter_->read(offset, {&byte, 1}, tag));
  }
  Result<void> flush() { return reactor_.run(filter_->flush(IoTag::flush)); }
  /// Has a write to `offset` reached the device below?
  bool written(uint64_t offset) const {
    std::byte byte;
    memory_->peek(offset, {&byte, 1});
    return byte == kOne;
  }
  int error_of(const Result<void>& result) { return result ? 0 : result.error().sys_errno(); }
  /// Starts a write in the background.
  void start_write(uint64_t offset, IoTag tag = IoTag::write_guest) {
    background_.spawn(filter_->write(offset, bytes_of(kOne), {.tag = tag}));
  }
  void wait_for(std::string tag) {
    const Result<void> waited = reactor_.run(filter_->wait_break(std::move(tag)));
    ASSERT_TRUE(waited) << waited.error().message();
  }
  void join() {
    const Result<void> joined = reactor_.run(background_.join());
    ASSERT_TRUE(joined) << joined.error().message();
  }

  SimReactor reactor_{1};
  Scope background_{reactor_.ready()};
  MemoryDevice* memory_ = nullptr;
  std::unique_ptr<FaultFilter> filter_;
};

TEST(FaultEvents, EachNameIsFoundAndUnique) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < kFaultEvents; ++i) {
    const auto event = static_cast<FaultEvent>(i);
    EXPECT_TRUE(names.insert(name_of(event)).second) << name_of(event);
    EXPECT_EQ(find_fault_event(name_of(event)), event);
  }
  EXPECT_EQ(find_fault_event("l1_grow.write_table"), FaultEvent::l1_grow_write_table);
  EXPECT_EQ(find_fault_event("l1_grow"), std::nullopt);
  EXPECT_EQ(find_fault_event(""), std::nullopt);
}

TEST(FaultEvents, MarksRaiseWhatRequestsDo) {
  using Events = std::vector<FaultEvent>;
  const auto raised = [](IoTag tag) {
    const std::span<const FaultEvent> events = raised_by(tag);
    return Events(events.begin(), events.end());
  };
  EXPECT_EQ(raised(IoTag::none), Events());
  EXPECT_EQ(raised(IoTag::write_guest), Events{FaultEvent::write_aio});
  // A write that copies up holds the guest's bytes, too.
  EXPECT_EQ(raised(IoTag::copy_up_write), (Events{FaultEvent::write_aio, FaultEvent::cow_write}));
  EXPECT_EQ(raised(IoTag::flush), (Events{FaultEvent::flush_to_os, FaultEvent::flush_to_disk}));
  EXPECT_EQ(raised(IoTag::commit_sync), Events{FaultEvent::flush_to_disk});
  EXPECT_EQ(raised(IoTag::refcount_allocate).size(), 3u);
}

TEST_F(FaultFilterTest, WithoutRulesEverythingPasses) {
  make();
  EXPECT_EQ(filter_->size(), 64 * KiB);
  EXPECT_TRUE(write(5));
  EXPECT_TRUE(written(5));
  EXPECT_TRUE(read(5));
  EXPECT_TRUE(flush());
  EXPECT_TRUE(reactor_.run(filter_->discard(0, 512, {})));
  EXPECT_TRUE(reactor_.run(filter_->zero(0, 512, {})));
  EXPECT_FALSE(written(5));
  EXPECT_TRUE(reactor_.run(filter_->status(0, 512)));
  EXPECT_TRUE(reactor_.run(filter_->allocate(0, 512)));
  EXPECT_TRUE(reactor_.run(filter_->resize(4096)));
  EXPECT_EQ(filter_->size(), 4096u);
}

TEST_F(FaultFilterTest, AnErrorComesWithItsErrnoAndStopsTheRequest) {
  make({.inject_errors = {{.event = FaultEvent::write_aio, .error = ENOSPC}}});
  const Result<void> result = write(0);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code(), Errc::no_space);
  EXPECT_EQ(result.error().message(), "blkdebug: injected at write_aio: No space left on device");
  EXPECT_FALSE(written(0));
}

TEST_F(FaultFilterTest, ARuleWaitsForItsEvent) {
  make({.inject_errors = {{.event = FaultEvent::l2_update}}});
  EXPECT_TRUE(write(0, IoTag::write_guest));
  EXPECT_EQ(error_of(write(0, IoTag::l2_update)), EIO);
}

TEST_F(FaultFilterTest, AnArmedRuleFailsLaterRequestsToo) {
  make({.inject_errors = {{.event = FaultEvent::l1_update, .io = FaultIo::flush}}});
  EXPECT_TRUE(flush());
  EXPECT_TRUE(write(0, IoTag::l1_update));  // Arms it, but is no flush.
  EXPECT_EQ(error_of(flush()), EIO);
  EXPECT_EQ(error_of(flush()), EIO);
  EXPECT_TRUE(write(0));
}

TEST_F(FaultFilterTest, AOnceRuleFailsOneRequest) {
  make({.inject_errors = {{.event = FaultEvent::write_aio, .once = true}}});
  EXPECT_EQ(error_of(write(0)), EIO);
  EXPECT_TRUE(write(0));
}

TEST_F(FaultFilterTest, ArmingDisarmsWhatEarlierEventsArmed) {
  make({.inject_errors = {{.event = FaultEvent::write_aio, .error = ENOSPC},
                          {.event = FaultEvent::read_aio, .error = EPERM}}});
  EXPECT_EQ(error_of(write(0)), ENOSPC);
  EXPECT_EQ(error_of(write(0, IoTag::l2_update)), ENOSPC);
  EXPECT_EQ(error_of(read(0)), EPERM);
  EXPECT_EQ(error_of(write(0, IoTag::l2_update)), EPERM);
}

TEST_F(FaultFilterTest, ASectorIsHitByWhatTouchesIt) {
  make({.inject_errors = {{.event = FaultEvent::write_aio, .sector = 2}}});
  const std::vector<std::byte> data(1024);
  const auto at = [&](uint64_t offset, size_t length) {
    return error_of(reactor_.run(filter_->write(offset, Bytes(data).first(length), {})));
  };
  EXPECT_EQ(at(0, 1024), 0);
  EXPECT_EQ(at(1023, 1), 0);
  EXPECT_EQ(at(1023, 2), EIO);
  EXPECT_EQ(at(1535, 1), EIO);
  EXPECT_EQ(at(1536, 1), 0);
  EXPECT_TRUE(flush());
}

TEST_F(FaultFilterTest, ADurableWriteIsAFlushToo) {
  make({.inject_errors = {{.event = FaultEvent::flush_to_disk, .io = FaultIo::flush}}});
  EXPECT_TRUE(write(0));
  EXPECT_EQ(error_of(reactor_.run(filter_->write(512, bytes_of(kOne), {.fua = true}))), EIO);
  EXPECT_TRUE(written(512));
  EXPECT_EQ(error_of(reactor_.run(filter_->zero(0, 512, {.fua = true}))), EIO);
}

// Every kind of request against every kind of rule.
TEST_F(FaultFilterTest, ARuleFailsItsKindOfRequestOnly) {
  for (int rule = -1; rule <= static_cast<int>(FaultIo::block_status); ++rule) {
    InjectError inject{.event = FaultEvent::none};
    if (rule >= 0) inject.io = static_cast<FaultIo>(rule);
    make({.inject_errors = {inject}});

    std::vector<int> errors;
    errors.push_back(error_of(read(0)));
    errors.push_back(error_of(write(0)));
    errors.push_back(error_of(reactor_.run(filter_->zero(0, 512, {}))));
    errors.push_back(error_of(reactor_.run(filter_->discard(0, 512, {}))));
    errors.push_back(error_of(flush()));
    const Result<Extent> status = reactor_.run(filter_->status(0, 512));
    errors.push_back(status ? 0 : status.error().sys_errno());
    for (int io = 0; io < static_cast<int>(errors.size()); ++io) {
      const bool hit = rule < 0 ? io != static_cast<int>(FaultIo::block_status) : io == rule;
      EXPECT_EQ(errors[static_cast<size_t>(io)], hit ? EIO : 0) << "rule " << rule << " io " << io;
    }
  }
}

TEST_F(FaultFilterTest, StatesLeadFromRuleToRule) {
  make({.inject_errors = {{.event = FaultEvent::read_aio, .state = 2}},
        .set_states = {{.event = FaultEvent::write_aio, .state = 1, .new_state = 2},
                       {.event = FaultEvent::write_aio, .state = 2, .new_state = 3}}});
  EXPECT_TRUE(read(0));
  EXPECT_TRUE(write(0));
  EXPECT_EQ(filter_->state(), 2u);  // One step an event.
  EXPECT_EQ(error_of(read(0)), EIO);
}

TEST_F(FaultFilterTest, ABreakpointHoldsOneRequest) {
  make();
  filter_->set_break(FaultEvent::write_aio, "A");
  EXPECT_FALSE(filter_->resume("A"));
  start_write(0);
  wait_for("A");
  EXPECT_TRUE(filter_->holds("A"));
  EXPECT_FALSE(written(0));
  EXPECT_TRUE(write(512));  // The next one passes.

  EXPECT_TRUE(filter_->resume("A"));
  EXPECT_FALSE(filter_->resume("A"));
  join();
  EXPECT_TRUE(written(0));
  EXPECT_FALSE(filter_->holds("A"));
}

TEST_F(FaultFilterTest, WaitingForABreakpointLetsTimersRun) {
  make();
  filter_->set_break(FaultEvent::l2_update, "A");
  const auto later = [&]() -> Task<void> {
    co_await reactor_.sleep(kSecond);
    co_await filter_->write(0, bytes_of(kOne), {.tag = IoTag::l2_update});
  };
  background_.spawn(later());
  wait_for("A");
  EXPECT_GE(reactor_.now().ns, kSecond);
  EXPECT_TRUE(filter_->resume("A"));
  join();
}

TEST_F(FaultFilterTest, WaitingForNoBreakpointIsAnError) {
  make();
  const Result<void> waited = reactor_.run(filter_->wait_break("A"));
  ASSERT_FALSE(waited);
  EXPECT_EQ(waited.error().code(), Errc::not_found);
}

TEST_F(FaultFilterTest, TwoBreakpointsOfOneEventBothHoldTheRequest) {
  make();
  filter_->set_break(FaultEvent::write_aio, "A");
  filter_->set_break(FaultEvent::write_aio, "B");
  start_write(0);
  wait_for("B");
  EXPECT_TRUE(filter_->resume("B"));
  EXPECT_TRUE(filter_->holds("A"));
  EXPECT_EQ(background_.running(), 1u);
  EXPECT_TRUE(filter_->resume("A"));
  join();
}

TEST_F(FaultFilterTest, ATagUsedTwiceResumesTheOldestFirst) {
  make();
  filter_->set_break(FaultEvent::write_aio, "A");
  start_write(0, IoTag::write_guest);
  filter_->set_break(FaultEvent::l2_update, "A");
  start_write(512, IoTag::l2_update);
  EXPECT_TRUE(filter_->resume("A"));
  while (!written(0) && !written(512)) reactor_.turn(Reactor::Wait::no);
  EXPECT_FALSE(written(512));
  EXPECT_TRUE(filter_->resume("A"));
  join();
}

TEST_F(FaultFilterTest, RemovingABreakpointLetsGoWhatItHolds) {
  make();
  filter_->set_break(FaultEvent::write_aio, "A");
  start_write(0);
  wait_for("A");
  EXPECT_TRUE(filter_->remove_break("A"));
  join();
  EXPECT_FALSE(filter_->remove_break("A"));

  filter_->set_break(FaultEvent::write_aio, "B");
  EXPECT_TRUE(filter_->remove_break("B"));
  EXPECT_TRUE(write(0));
}

TEST_F(FaultFilterTest, RemovingABreakpointEndsTheWaitForIt) {
  make();
  filter_->set_break(FaultEvent::write_aio, "A");
  const auto remove = [&]() -> Task<void> {
    co_await reactor_.sleep(kMillisecond);
    EXPECT_TRUE(filter_->remove_break("A"));
  };
  background_.spawn(remove());
  EXPECT_FALSE(reactor_.run(filter_->wait_break("A")));
  join();
}

TEST_F(FaultFilterTest, CloseLetsEverythingGo) {
  make();
  filter_->set_break(FaultEvent::write_aio, "A");
  filter_->set_break(FaultEvent::flush_to_disk, "B");
  start_write(0);
  EXPECT_TRUE(reactor_.run(filter_->close()));
  join();
  EXPECT_TRUE(flush());
}

TEST_F(FaultFilterTest, WatchersHearOfEachHold) {
  make();
  std::vector<std::pair<std::string, bool>> heard;
  filter_->on_hold = [&](const std::string& tag, bool held) { heard.emplace_back(tag, held); };
  filter_->set_break(FaultEvent::pwritev_done, "A");
  start_write(0);
  wait_for("A");
  EXPECT_TRUE(written(0));  // Done below, not answered above.
  EXPECT_TRUE(filter_->resume("A"));
  join();
  EXPECT_EQ(heard, (std::vector<std::pair<std::string, bool>>{{"A", true}, {"A", false}}));
}

TEST_F(FaultFilterTest, AHeldRequestIsFailedWhenItGoesOn) {
  make({.inject_errors = {{.event = FaultEvent::write_aio}}});
  filter_->set_break(FaultEvent::write_aio, "A");
  start_write(0);
  wait_for("A");
  EXPECT_TRUE(filter_->resume("A"));
  EXPECT_EQ(error_of(reactor_.run(background_.join())), EIO);
}

// Limits.

class FaultLimitsTest : public testing::Test {
 protected:
  void make(FaultLimits limits, FaultRules rules = {}, uint64_t size = 64 * KiB) {
    filter_.reset();  // Before what it lies over.
    memory_ = std::make_unique<MemoryDevice>(reactor_, size);
    std::vector<std::byte> old(size);
    for (size_t i = 0; i < old.size(); ++i) old[i] = static_cast<std::byte>(i % 251 + 1);
    memory_->poke(0, old);
    model_ = old;
    auto heard = std::make_unique<Heard>(*memory_, heard_);
    filter_ = std::make_unique<FaultFilter>(std::move(heard), std::move(rules), limits);
    heard_.clear();
  }
  void ok(Task<void> task) {
    const Result<void> done = reactor_.run(std::move(task));
    ASSERT_TRUE(done) << done.error().message();
  }
  void write(uint64_t offset, size_t length, int value) {
    const std::vector<std::byte> data(length, static_cast<std::byte>(value));
    ok(filter_->write(offset, data, {}));
    if (model_.size() < offset + length) model_.resize(offset + length);
    std::fill_n(model_.begin() + static_cast<ptrdiff_t>(offset), length, data[0]);
    EXPECT_EQ(memory_->bytes(), model_);
  }
  void zero(uint64_t offset, size_t length) {
    ok(filter_->zero(offset, length, {}));
    if (model_.size() < offset + length) model_.resize(offset + length);
    std::fill_n(model_.begin() + static_cast<ptrdiff_t>(offset), length, std::byte{0});
    EXPECT_EQ(memory_->bytes(), model_);
  }
  using Lines = std::vector<std::string>;

  class Heard final : public Borrowed {
   public:
    Heard(Device& below, Lines& heard) : Borrowed(below), heard_(heard) {}
    Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
      heard_.push_back(cat("read ", offset, " ", data.size()));
      co_await below().read(offset, data, options);
    }
    Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
      heard_.push_back(cat("write ", offset, " ", data.size(), options.fua ? " fua" : ""));
      co_await below().write(offset, data, options);
    }
    Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override {
      heard_.push_back(cat("zero ", offset, " ", length));
      co_await below().zero(offset, length, options);
    }
    Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override {
      heard_.push_back(cat("discard ", offset, " ", length));
      co_await below().discard(offset, length, options);
    }

   private:
    Lines& heard_;
  };

  SimReactor reactor_{1};
  Lines heard_;
  std::unique_ptr<MemoryDevice> memory_;
  std::unique_ptr<FaultFilter> filter_;
  std::vector<std::byte> model_;
};

TEST_F(FaultLimitsTest, LargeTransfersAreSplit) {
  make({.max_transfer = 1024});
  write(100, 2500, 1);
  EXPECT_EQ(heard_, (Lines{"write 100 1024", "write 1124 1024", "write 2148 452"}));
  heard_.clear();
  std::vector<std::byte> data(2048);
  ok(filter_->read(0, data, IoTag::none));
  EXPECT_EQ(heard_, (Lines{"read 0 1024", "read 1024 1024"}));
  EXPECT_TRUE(equal(data, Bytes(model_).first(2048)));
}

TEST_F(FaultLimitsTest, EachPartRaisesItsEvents) {
  make({.max_transfer = 1024},
       {.inject_errors = {{.event = FaultEvent::write_aio, .sector = 4, .once = true}}});
  const std::vector<std::byte> data(4096);
  EXPECT_FALSE(reactor_.run(filter_->write(0, data, {.fua = true})));
  // The third part has failed, and the fourth was not tried.
  EXPECT_EQ(heard_, (Lines{"write 0 1024 fua", "write 1024 1024 fua"}));
}

TEST_F(FaultLimitsTest, ZeroesAndDiscardsKeepToTheirGrids) {
  make({.opt_write_zero = 4096, .max_write_zero = 8192, .opt_discard = 2048, .max_discard = 2048});
  zero(1000, 30'000);
  EXPECT_EQ(heard_, (Lines{"zero 1000 3096", "zero 4096 8192", "zero 12288 8192", "zero 20480 8192",
                           "zero 28672 2328"}));
  heard_.clear();
  zero(5000, 10);
  ok(filter_->discard(2000, 4200, {}));
  EXPECT_EQ(heard_, (Lines{"zero 5000 10", "discard 2000 48", "discard 2048 2048",
                           "discard 4096 2048", "discard 6144 56"}));
}

TEST_F(FaultLimitsTest, WhatDoesNotFitABlockIsReadChangedAndWritten) {
  make({.align = 4096});
  EXPECT_EQ(filter_->alignment(), 4096u);
  write(4096, 8192, 1);
  EXPECT_EQ(heard_, Lines{"write 4096 8192"});
  heard_.clear();
  write(5000, 10, 2);  // In the middle of one.
  EXPECT_EQ(heard_, (Lines{"read 4096 4096", "write 4096 4096"}));
  heard_.clear();
  write(100, 12'000, 3);  // Both ends.
  EXPECT_EQ(heard_, (Lines{"read 0 4096", "read 8192 4096", "write 0 12288"}));
  heard_.clear();
  zero(4000, 8300);
  EXPECT_EQ(heard_, (Lines{"read 0 4096", "write 0 4096", "zero 4096 8192", "read 12288 4096",
                           "write 12288 4096"}));
  heard_.clear();
  ok(filter_->discard(4000, 8300, {}));
  ok(filter_->discard(100, 4200, {}));
  EXPECT_EQ(heard_, Lines{"discard 4096 8192"});
  heard_.clear();
  std::vector<std::byte> data(100);
  ok(filter_->read(16'380, data, IoTag::none));
  EXPECT_EQ(heard_, Lines{"read 12288 8192"});
  EXPECT_TRUE(equal(data, Bytes(model_).subspan(16'380, 100)));
  EXPECT_FALSE(reactor_.run(filter_->zero(1, 5, {.no_fallback = true})));
}

TEST_F(FaultLimitsTest, ABlockMayEndWithTheDevice) {
  make({.align = 4096}, {}, 10'000);
  write(8192, 1808, 1);
  EXPECT_EQ(heard_, Lines{"write 8192 1808"});
  heard_.clear();
  write(9000, 500, 2);
  EXPECT_EQ(heard_, (Lines{"read 8192 1808", "write 8192 1808"}));
  heard_.clear();
  write(12'000, 5000, 3);  // It grows, to the byte.
  EXPECT_EQ(heard_, (Lines{"read 8192 1808", "write 8192 8808"}));
  EXPECT_EQ(filter_->size(), 17'000u);
}

// All small ranges, against a model.
TEST_F(FaultLimitsTest, EveryRangeDoesWhatItSays) {
  for (const FaultLimits& limits :
       {FaultLimits{.align = 4}, FaultLimits{.align = 4, .max_transfer = 4},
        FaultLimits{.max_transfer = 3, .opt_write_zero = 3, .max_write_zero = 6},
        FaultLimits{.align = 2, .max_transfer = 6, .opt_write_zero = 4, .max_write_zero = 4}}) {
    make(limits, {}, 18);
    for (uint64_t offset = 0; offset < 18; ++offset) {
      for (uint64_t length = 0; offset + length <= 18; ++length) {
        if (length != 0) write(offset, length, static_cast<int>(offset * 18 + length) % 255 + 1);
        std::vector<std::byte> data(length);
        ok(filter_->read(offset, data, IoTag::none));
        EXPECT_TRUE(equal(data, Bytes(model_).subspan(offset, length)));
        if (length % 3 == 1) zero(offset, length);
        const Result<Extent> extent = reactor_.run(filter_->status(offset, length));
        ASSERT_TRUE(extent);
        EXPECT_LE(extent->length, length);
      }
    }
  }
}

TEST_F(FaultLimitsTest, AnUnalignedWriteRaisesItsOwnEvents) {
  make({.align = 4096},
       {.inject_errors = {
            {.event = FaultEvent::pwritev_rmw_after_head, .io = FaultIo::write},
            {.event = FaultEvent::pwritev_rmw_tail, .error = ENOSPC, .io = FaultIo::read}}});
  const std::vector<std::byte> data(100);
  EXPECT_EQ(reactor_.run(filter_->write(100, data, {})).error().sys_errno(), EIO);
  EXPECT_EQ(heard_, Lines{"read 0 4096"});
  EXPECT_EQ(reactor_.run(filter_->write(4096, data, {})).error().sys_errno(), ENOSPC);
}

TEST_F(FaultLimitsTest, AnUnalignedWriteLosesNoneThatRunsBesideIt) {
  make({.align = 4096});
  filter_->set_break(FaultEvent::pwritev_rmw_after_head, "read");
  Scope scope(reactor_.ready());
  const std::vector<std::byte> one(100, std::byte{1});
  const std::vector<std::byte> two(4096, std::byte{2});
  scope.spawn(filter_->write(100, one, {}));
  scope.spawn(filter_->write(0, two, {}));
  ASSERT_TRUE(filter_->holds("read"));
  ASSERT_TRUE(filter_->resume("read"));
  ok(scope.join());
  EXPECT_EQ(memory_->bytes()[100], std::byte{2});
}

TEST(FaultLimits, WhatCannotBeIsRefusedByName) {
  const auto message = [](FaultLimits limits, uint32_t below = 1) {
    const Result<void> checked = check_limits(limits, below);
    return checked ? std::string() : checked.error().message();
  };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({.align = 3}), "blkdebug: align=3: it is a power of two up to 1 GiB");
  EXPECT_EQ(message({.align = 512, .max_transfer = 100}),
            "blkdebug: max-transfer=100 is no multiple of align (512)");
  EXPECT_EQ(message({.max_transfer = 100}, 512),
            "blkdebug: max-transfer=100 is no multiple of align (512)");
  EXPECT_EQ(message({.align = 4096, .opt_write_zero = 512}),
            "blkdebug: opt-write-zero=512 is no multiple of align (4096)");
  EXPECT_EQ(message({.opt_write_zero = 4096, .max_write_zero = 5000}),
            "blkdebug: max-write-zero=5000 is no multiple of opt-write-zero (4096)");
  EXPECT_EQ(message({.opt_discard = 4096, .max_discard = 5000}),
            "blkdebug: max-discard=5000 is no multiple of opt-discard (4096)");
  EXPECT_NE(message({.align = 1u << 31}), "");
  EXPECT_NE(message({.max_transfer = UINT64_MAX}), "");
  EXPECT_EQ(message({.align = 512,
                     .max_transfer = 1024,
                     .opt_write_zero = 4096,
                     .max_write_zero = 8192,
                     .opt_discard = 512,
                     .max_discard = 512}),
            "");
}

// Configuration files.

TEST(FaultConfig, ASectionIsARule) {
  const Result<FaultRules> rules = parse_fault_config(
      "# a comment\n"
      "[inject-error]\n"
      "event = \"l1_grow.write_table\"\r\n"
      "  errno=\"28\"\n"
      "once = on\n"
      "immediately = \"on\"\n"
      "sector = \"7\"\n"
      "iotype = \"write-zeroes\"\n"
      "\n"
      "[set-state \"named\"]\n"
      "event = \"flush_to_disk\"\n"
      "state = \"2\"\n"
      "new_state = \"4\"");
  ASSERT_TRUE(rules) << rules.error().message();
  ASSERT_EQ(rules->inject_errors.size(), 1u);
  const InjectError& inject = rules->inject_errors[0];
  EXPECT_EQ(inject.event, FaultEvent::l1_grow_write_table);
  EXPECT_EQ(inject.error, ENOSPC);
  EXPECT_TRUE(inject.once);
  EXPECT_TRUE(inject.immediately);
  EXPECT_EQ(inject.sector, 7u);
  EXPECT_EQ(inject.io, FaultIo::write_zeroes);
  ASSERT_EQ(rules->set_states.size(), 1u);
  EXPECT_EQ(rules->set_states[0].event, FaultEvent::flush_to_disk);
  EXPECT_EQ(rules->set_states[0].state, 2u);
  EXPECT_EQ(rules->set_states[0].new_state, 4u);
}

TEST(FaultConfig, AnEmptyFileHasNoRules) {
  for (const char* text : {"", "\n\n", "# nothing\n", "   "}) {
    const Result<FaultRules> rules = parse_fault_config(text);
    ASSERT_TRUE(rules);
    EXPECT_TRUE(rules->inject_errors.empty() && rules->set_states.empty());
  }
}

TEST(FaultConfig, WhatIsNotUnderstoodIsRefused) {
  for (const char* text : {
           "event = \"none\"\n",
           "[inject-error]\n",
           "[inject-error\nevent = \"none\"\n",
           "[inject-error]\nevent\n",
           "[inject-error]\nevent = \"nonesuch\"\n",
           "[inject-error]\nevent = \"none\"\nnew_state = \"1\"\n",
           "[inject-error]\nevent = \"none\"\nerrno = \"0\"\n",
           "[inject-error]\nevent = \"none\"\nerrno = \"-5\"\n",
           "[inject-error]\nevent = \"none\"\nerrno = \"5x\"\n",
           "[inject-error]\nevent = \"none\"\nerrno = \"\"\n",
           "[inject-error]\nevent = \"none\"\nonce = \"maybe\"\n",
           "[inject-error]\nevent = \"none\"\niotype = \"sync\"\n",
           "[inject-error]\nevent = \"none\"\nsector = \"99999999999999999999\"\n",
           "[set-state]\nevent = \"none\"\nonce = \"on\"\n",
           "[no-such]\nevent = \"none\"\n",
           "[]\n",
           "[",
       }) {
    EXPECT_FALSE(parse_fault_config(text)) << text;
  }
}

}  // namespace
}  // namespace byre
