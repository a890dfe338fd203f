// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "base/units.h"
#include "job/live/job_list.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

/// Ten pieces of a mebibyte, and what the test wants of it.
class Counting final : public JobWork {
 public:
  struct Script {
    int pieces = 10;
    int fails_at = -1;  ///< This piece, `failures` times.
    int failures = 1;
    Errc failure = Errc::io;
    bool gets_ready = false;
    bool fails_to_prepare = false;
    bool ends_softly = false;
    bool guests = false;  ///< They are at work all the time.
  };
  struct Seen {
    int pieces = 0;
    int under_way = 0;
    std::string calls;
  };
  Counting(Script script, Seen& seen) : script_(script), seen_(seen) {}

  JobKind kind() const override { return JobKind::mirror; }
  std::vector<Node*> nodes() const override { return {}; }
  bool ends_without_switch() override { return script_.ends_softly; }
  Task<void> run(Job& job) override {
    job.progress().set_total(static_cast<uint64_t>(script_.pieces) * MiB);
    while (seen_.pieces < script_.pieces) {
      co_await job.limit(1 * MiB);
      const Instant began = job.reactor().now();
      Result<void> done = co_await piece(job).result();
      if (done) {
        if (script_.guests) ++guest_requests_;
        co_await job.give_way(began, guest_requests_);
        continue;
      }
      if (done.error().code() == Errc::cancelled) co_await std::move(done);
      if (!co_await job.retries(JobSide::target, done.error())) co_await std::move(done);
    }
    if (!script_.gets_ready) co_return;
    job.set_ready();
    while (!job.shall_complete() && !job.is_cancelled()) co_await job.changed().wait();
  }
  Task<void> prepare(Job& job) override {
    seen_.calls += "prepare " + job.id() + " ";
    if (script_.fails_to_prepare) co_await fail(Error(Errc::io, "it broke"));
  }
  Task<void> commit(Job& job) override {
    seen_.calls += "commit " + job.id() + " ";
    co_return;
  }
  Task<void> abort(Job& job) override {
    seen_.calls += "abort " + job.id() + " ";
    co_return;
  }
  Task<void> clean(Job& job) override {
    seen_.calls += "clean " + job.id() + " ";
    co_return;
  }

 private:
  Task<void> piece(Job& job) {
    const Gate::Pass pass = co_await job.enter();
    ++seen_.under_way;
    Op wait{.kind = Op::Kind::timer, .deadline = job.reactor().now() + kMillisecond};
    co_await job.reactor().perform(wait);
    --seen_.under_way;
    if (seen_.pieces == script_.fails_at && script_.failures-- > 0) {
      co_await fail(Error(script_.failure, "a write failed"));
    }
    ++seen_.pieces;
    job.progress().advance(1 * MiB);
  }

  Script script_;
  Seen& seen_;
  uint64_t guest_requests_ = 0;
};

class JobTest : public testing::Test {
 protected:
  JobTest() : reactor_(1), jobs_(reactor_) {
    jobs_.set_listener([this](const Job& job, const JobEvent& event) {
      using enum JobEvent::Kind;
      switch (event.kind) {
        case status:
          events_ += std::string(name_of(job.status()));
          break;
        case ready:
          events_ += "READY";
          break;
        case pending:
          events_ += "PENDING";
          break;
        case completed:
          events_ += job.error() ? "FAILED" : "COMPLETED";
          break;
        case cancelled:
          events_ += "CANCELLED";
          break;
        case error:
          events_ += event.action == OnError::stop     ? "ERROR(stop)"
                     : event.action == OnError::ignore ? "ERROR(ignore)"
                                                       : "ERROR(report)";
          break;
      }
      events_ += " ";
    });
  }
  ~JobTest() override { EXPECT_TRUE(reactor_.finish(jobs_.close())); }

  Job* run(Counting::Script script, JobOptions options = {}) {
    if (options.id.empty()) options.id = "j";
    Result<Job*> job = jobs_.run(std::make_unique<Counting>(script, seen_), std::move(options));
    EXPECT_TRUE(job) << job.error().message();
    return job ? *job : nullptr;
  }
  void wait_for(JobStatus status, std::string id = "j") {
    EXPECT_TRUE(reactor_.finish(jobs_.wait_for(std::move(id), status)));
  }
  Task<void> sleep(int64_t ns) {
    Op wait{.kind = Op::Kind::timer, .deadline = reactor_.now() + ns};
    co_await reactor_.perform(wait);
  }
  void pass_time(int64_t ns) { EXPECT_TRUE(reactor_.finish(sleep(ns))); }
  static std::string message(const Result<void>& result) {
    return result ? "" : result.error().message();
  }

  SimReactor reactor_;
  JobList jobs_;
  Counting::Seen seen_;
  std::string events_;
};

TEST_F(JobTest, RunsToItsEndAndIsGone) {
  run({});
  wait_for(JobStatus::null);
  EXPECT_EQ(events_, "created running waiting pending COMPLETED concluded null ");
  EXPECT_EQ(seen_.calls, "prepare j commit j clean j ");
  EXPECT_EQ(jobs_.find("j"), nullptr);
}

TEST_F(JobTest, WaitsForWhoFinalizesAndDismissesIt) {
  const JobOptions options{.id = "j", .auto_finalize = false, .auto_dismiss = false};
  Job* job = run({}, options);
  EXPECT_EQ(message(job->finalize()),
            "Job 'j' in state 'running' cannot accept command verb 'finalize'");
  wait_for(JobStatus::pending);
  EXPECT_EQ(seen_.calls, "");
  EXPECT_EQ(message(job->dismiss()),
            "Job 'j' in state 'pending' cannot accept command verb 'dismiss'");
  EXPECT_TRUE(job->finalize());
  wait_for(JobStatus::concluded);
  EXPECT_EQ(job->progress().done(), 10 * MiB);
  EXPECT_TRUE(job->dismiss());
  EXPECT_EQ(events_, "created running waiting pending PENDING COMPLETED concluded null ");
}

TEST_F(JobTest, FinalizingMayFail) {
  Job* job = run({.fails_to_prepare = true}, {.id = "j", .auto_dismiss = false});
  wait_for(JobStatus::concluded);
  EXPECT_EQ(job->error().message(), "it broke");
  EXPECT_EQ(events_, "created running waiting pending aborting FAILED concluded ");
  EXPECT_EQ(seen_.calls, "prepare j abort j clean j ");
}

TEST_F(JobTest, NothingIsUnderWayInAPausedJob) {
  Job* job = run({});
  pass_time(3 * kMillisecond);
  EXPECT_EQ(seen_.under_way, 1);
  EXPECT_TRUE(job->pause());
  EXPECT_EQ(job->status(), JobStatus::running);  // Until the piece has ended.
  EXPECT_EQ(message(job->pause()), "Job is already paused");
  wait_for(JobStatus::paused);
  EXPECT_EQ(seen_.under_way, 0);
  const int pieces = seen_.pieces;
  pass_time(kSecond);
  EXPECT_EQ(seen_.pieces, pieces);
  EXPECT_TRUE(job->resume());
  EXPECT_EQ(job->status(), JobStatus::running);
  EXPECT_EQ(message(job->resume()), "Can't resume a job that was not paused");
  wait_for(JobStatus::null);
  EXPECT_EQ(seen_.pieces, 10);
}

TEST_F(JobTest, ACancelEndsItAlsoWhenItIsPaused) {
  Job* job = run({}, {.id = "j", .auto_dismiss = false});
  pass_time(2 * kMillisecond);
  EXPECT_TRUE(job->pause());
  wait_for(JobStatus::paused);
  EXPECT_TRUE(job->cancel(false));
  wait_for(JobStatus::concluded);
  EXPECT_EQ(job->error().code(), Errc::cancelled);
  EXPECT_EQ(events_, "created running paused running aborting CANCELLED concluded ");
  EXPECT_EQ(seen_.calls, "abort j clean j ");
  EXPECT_EQ(message(job->cancel(true)),
            "Job 'j' in state 'concluded' cannot accept command verb 'cancel'");
}

TEST_F(JobTest, ACancelBeforeItBeganDoesNothingOfIt) {
  Job* job = run({}, {.id = "j", .auto_dismiss = false});
  EXPECT_TRUE(job->cancel(true));
  wait_for(JobStatus::concluded);
  EXPECT_EQ(seen_.pieces, 0);
}

TEST_F(JobTest, IsReadyUntilItShallComplete) {
  Job* job = run({.gets_ready = true}, {.id = "j", .auto_dismiss = false});
  EXPECT_EQ(message(job->complete()),
            "Job 'j' in state 'running' cannot accept command verb 'complete'");
  wait_for(JobStatus::ready);
  EXPECT_TRUE(job->pause());
  wait_for(JobStatus::standby);
  EXPECT_TRUE(job->complete());  // When it goes on.
  EXPECT_TRUE(job->complete());
  EXPECT_TRUE(job->resume());
  wait_for(JobStatus::concluded);
  EXPECT_FALSE(job->error());
  EXPECT_EQ(events_,
            "created running ready READY standby ready waiting pending COMPLETED concluded ");
}

TEST_F(JobTest, ACancelWithoutForceMayLeaveACompleteCopy) {
  Job* job = run({.gets_ready = true, .ends_softly = true}, {.id = "j", .auto_dismiss = false});
  wait_for(JobStatus::ready);
  EXPECT_TRUE(job->cancel(false));
  wait_for(JobStatus::concluded);
  EXPECT_FALSE(job->error());
  EXPECT_FALSE(job->shall_switch());
  Job* other = run({.gets_ready = true, .ends_softly = true}, {.id = "k", .auto_dismiss = false});
  wait_for(JobStatus::ready, "k");
  EXPECT_TRUE(other->cancel(true));
  wait_for(JobStatus::concluded, "k");
  EXPECT_EQ(other->error().code(), Errc::cancelled);
}

TEST_F(JobTest, AnErrorIsReportedRetriedOrStopsIt) {
  Job* job = run({.fails_at = 3}, {.id = "j", .auto_dismiss = false});
  wait_for(JobStatus::concluded);
  EXPECT_EQ(job->error().message(), "a write failed");
  EXPECT_EQ(events_, "created running ERROR(report) aborting FAILED concluded ");

  events_.clear();
  seen_ = {};
  run({.fails_at = 3, .failures = 2}, {.id = "k", .on_target_error = OnError::ignore});
  wait_for(JobStatus::null, "k");
  EXPECT_EQ(
      events_,
      "created running ERROR(ignore) ERROR(ignore) waiting pending COMPLETED concluded null ");

  events_.clear();
  seen_ = {};
  Job* stopped = run({.fails_at = 3, .failure = Errc::no_space},
                     {.id = "l", .on_target_error = OnError::enospc});
  wait_for(JobStatus::paused, "l");
  EXPECT_EQ(stopped->io_status(), JobIoStatus::no_space);
  EXPECT_TRUE(stopped->resume());
  EXPECT_EQ(stopped->io_status(), JobIoStatus::ok);
  wait_for(JobStatus::null, "l");
  EXPECT_EQ(events_,
            "created running ERROR(stop) paused running waiting pending COMPLETED concluded null ");
}

TEST_F(JobTest, ACancelEndsAnEndlessLoopOfErrors) {
  Job* job = run({.fails_at = 3, .failures = 1 << 30},
                 {.id = "j", .auto_dismiss = false, .on_target_error = OnError::ignore});
  pass_time(10 * kSecond);
  EXPECT_EQ(job->status(), JobStatus::running);
  const Instant before = reactor_.now();
  EXPECT_TRUE(job->cancel(false));
  wait_for(JobStatus::concluded);
  EXPECT_LT(reactor_.now() - before, 10 * kMillisecond);
}

TEST_F(JobTest, KeepsItsSpeedAndWakesForAnother) {
  Job* job = run({}, {.id = "j", .speed = 1 * MiB});
  const Instant begin = reactor_.now();
  pass_time(3500 * kMillisecond);
  EXPECT_EQ(seen_.pieces, 4);
  EXPECT_TRUE(job->set_speed(1 * KiB));
  pass_time(5 * kSecond);
  EXPECT_LE(seen_.pieces, 6);
  EXPECT_TRUE(job->set_speed(0));
  wait_for(JobStatus::null);
  EXPECT_LT(reactor_.now() - begin, 10 * kSecond);
}

TEST_F(JobTest, RestsWhileGuestsAreAtWork) {
  const auto time_of = [&](bool guests, JobOptions options) {
    seen_ = {};
    const Instant begin = reactor_.now();
    run({.guests = guests}, std::move(options));
    wait_for(JobStatus::null);
    EXPECT_EQ(seen_.pieces, 10);
    return reactor_.now() - begin;
  };
  const int64_t alone = time_of(false, {.id = "j", .gives_way = true});
  // Ten pieces of a millisecond, five of rest behind each.
  EXPECT_GE(time_of(true, {.id = "j", .gives_way = true}), 55 * kMillisecond);
  EXPECT_LT(alone, 40 * kMillisecond);
  EXPECT_LT(time_of(true, {.id = "j"}), 2 * alone);
  // Who gives a speed says how much may be taken from guests.
  EXPECT_LT(time_of(true, {.id = "j", .speed = 1 * GiB, .gives_way = true}), 2 * alone);
}

TEST_F(JobTest, ARestEndsWithTheJob) {
  Job* job = run({.pieces = 1000, .guests = true}, {.id = "j", .gives_way = true});
  pass_time(100 * kMillisecond);
  EXPECT_TRUE(job->cancel(false));
  const Instant before = reactor_.now();
  wait_for(JobStatus::null);
  EXPECT_LT(reactor_.now() - before, 5 * kMillisecond);
}

TEST_F(JobTest, JobsOfATransactionEndAlike) {
  const auto both = jobs_.begin_transaction();
  const auto make = [&](Counting::Script script, std::string id) {
    return *jobs_.add(std::make_unique<Counting>(script, seen_),
                      {.id = std::move(id), .auto_dismiss = false}, both);
  };
  Job* a = make({.pieces = 2}, "a");
  Job* b = make({.pieces = 1000}, "b");
  jobs_.start(*both);
  wait_for(JobStatus::waiting, "a");
  EXPECT_EQ(b->status(), JobStatus::running);
  EXPECT_EQ(seen_.calls, "");
  wait_for(JobStatus::concluded, "a");
  wait_for(JobStatus::concluded, "b");
  EXPECT_FALSE(a->error() || b->error());
  EXPECT_TRUE(seen_.calls.starts_with("prepare a prepare b commit a commit b clean "));
}

TEST_F(JobTest, OneThatFailsCancelsTheOthers) {
  const auto both = jobs_.begin_transaction();
  Job* a = *jobs_.add(std::make_unique<Counting>(Counting::Script{.pieces = 2}, seen_),
                      {.id = "a", .auto_dismiss = false}, both);
  Job* b = *jobs_.add(std::make_unique<Counting>(Counting::Script{.fails_to_prepare = true}, seen_),
                      {.id = "b", .auto_dismiss = false}, both);
  jobs_.start(*both);
  wait_for(JobStatus::concluded, "a");
  wait_for(JobStatus::concluded, "b");
  EXPECT_EQ(a->error().code(), Errc::cancelled);
  EXPECT_EQ(b->error().code(), Errc::io);
  EXPECT_EQ(seen_.calls.find("commit"), std::string::npos);
}

TEST_F(JobTest, AnIdIsTakenOnce) {
  run({});
  const Result<Job*> again =
      jobs_.run(std::make_unique<Counting>(Counting::Script{}, seen_), {.id = "j"});
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code(), Errc::exists);
}

}  // namespace
}  // namespace byre
