// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/prng.h"
#include "coro/event.h"
#include "coro/fast_path.h"
#include "coro/range_lock.h"
#include "coro/ready_queue.h"
#include "coro/scope.h"
#include "coro/semaphore.h"
#include "coro/task.h"

namespace byre {
namespace {

void drain(ReadyQueue& ready) {
  while (!ready.empty()) ready.pop().resume();
}

Task<int> give(int value) { co_return value; }
Task<int> broken() { co_return corrupt("broken"); }
Task<void> broken_void() { co_await fail(corrupt("broken")); }

struct Trace {
  std::vector<std::string>& out;
  std::string name;
  Trace(std::vector<std::string>& o, std::string n) : out(o), name(std::move(n)) {}
  ~Trace() { out.push_back(name); }
};

TEST(Task, GivesItsValueToTheAwaiter) {
  ReadyQueue ready;
  Scope scope(ready);
  int got = 0;
  const auto body = [](int& out) -> Task<void> { out = co_await give(3) + co_await give(4); };
  scope.spawn(body(got));
  EXPECT_EQ(got, 7);
  EXPECT_EQ(scope.running(), 0u);
}

Task<void> middle(std::vector<std::string>& log) {
  Trace outer(log, "outer");
  Trace inner(log, "inner");
  const int value = co_await broken();
  log.push_back("not reached " + std::to_string(value));
}

TEST(Task, AnErrorUnwindsInnermostFirstToTheFrameThatCatches) {
  ReadyQueue ready;
  Scope scope(ready);
  std::vector<std::string> log;
  const auto body = [](std::vector<std::string>& out) -> Task<void> {
    Result<void> result = co_await middle(out).result();
    out.push_back(result ? "fine" : result.error().message());
  };
  scope.spawn(body(log));
  EXPECT_EQ(log, (std::vector<std::string>{"inner", "outer", "broken"}));
}

TEST(Task, DoingNamesTheErrorFromTheOutsideIn) {
  ReadyQueue ready;
  Scope scope(ready);
  std::string message;
  const auto body = [](std::string& out) -> Task<void> {
    Result<void> result = co_await broken_void().doing("table at ", 5).doing("open").result();
    out = result.error().message();
  };
  scope.spawn(body(message));
  EXPECT_EQ(message, "open: table at 5: broken");
}

TEST(Task, APlainResultIsAwaitedAlike) {
  ReadyQueue ready;
  Scope scope(ready);
  std::string log;
  const auto parse = [](int v) -> Result<int> {
    if (v < 0) return corrupt("negative");
    return v;
  };
  const auto inner = [parse](std::string& out) -> Task<void> {
    out += std::to_string(co_await parse(5));
    out += std::to_string(co_await parse(-1));
    out += "not reached";
  };
  const auto body = [&](std::string& out) -> Task<void> {
    Result<void> r = co_await inner(out).result();
    out += r.error().message();
  };
  scope.spawn(body(log));
  EXPECT_EQ(log, "5negative");
}

TEST(Task, AnErrorReachesTheScope) {
  ReadyQueue ready;
  Scope scope(ready);
  Scope top(ready);
  std::string message;
  scope.spawn(broken_void());
  const auto body = [](Scope& s, std::string& out) -> Task<void> {
    Result<void> r = co_await s.join().result();
    out = r.error().message();
  };
  top.spawn(body(scope, message));
  drain(ready);
  EXPECT_EQ(message, "broken");
}

TEST(Task, DeepChainsDoNotUseTheStack) {
  ReadyQueue ready;
  Scope scope(ready);
  uint64_t sum = 0;
  const auto body = [](uint64_t& out) -> Task<void> {
    for (int i = 0; i < 1000000; ++i) out += static_cast<uint64_t>(co_await give(1));
  };
  scope.spawn(body(sum));
  EXPECT_EQ(sum, 1000000u);
}

TEST(Event, WakesAllWhoWait) {
  ReadyQueue ready;
  Scope scope(ready);
  Event event(ready);
  int woken = 0;
  const auto body = [](Event& e, int& count) -> Task<void> {
    co_await e.wait();
    ++count;
  };
  scope.spawn(body(event, woken));
  scope.spawn(body(event, woken));
  drain(ready);
  EXPECT_EQ(woken, 0);
  event.set();
  scope.spawn(body(event, woken));
  drain(ready);
  EXPECT_EQ(woken, 3);
}

TEST(Semaphore, ServesInOrderAndALargeRequestIsNotStarved) {
  ReadyQueue ready;
  Scope scope(ready);
  Semaphore semaphore(ready, 3);
  Event go(ready);
  std::string log;
  const auto body = [](Semaphore& s, Event& e, uint64_t units, char name,
                       std::string& out) -> Task<void> {
    const auto hold = co_await s.acquire(units);
    out += name;
    co_await e.wait();
  };
  scope.spawn(body(semaphore, go, 2, 'a', log));
  scope.spawn(body(semaphore, go, 3, 'b', log));
  scope.spawn(body(semaphore, go, 1, 'c', log));
  drain(ready);
  EXPECT_EQ(log, "a");
  go.notify();
  drain(ready);
  EXPECT_EQ(log, "ab");
  go.set();
  drain(ready);
  EXPECT_EQ(log, "abc");
}

// Against a plain list: whoever holds never conflicts, nobody overtakes a conflicting elder, and
// all are served in the end.
TEST(RangeLock, AgreesWithABruteForceModel) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Prng prng(seed);
    ReadyQueue ready;
    Scope scope(ready);
    RangeLock locks(ready);
    struct Job {
      uint64_t first, end;
      bool exclusive;
      int state = 0;  // 0 waits, 1 holds, 2 is done
    };
    std::vector<Job> jobs(12);
    std::vector<std::unique_ptr<Event>> finish;
    const auto body = [](RangeLock& l, Job& job, Event& end) -> Task<void> {
      RangeLock::Request lock(l, job.first, job.end,
                              job.exclusive ? RangeLock::Mode::exclusive : RangeLock::Mode::shared);
      co_await lock;
      job.state = 1;
      co_await end.wait();
      job.state = 2;
    };
    const auto conflict = [](const Job& a, const Job& b) {
      return a.first < b.end && b.first < a.end && (a.exclusive || b.exclusive);
    };
    const auto check = [&](size_t started) {
      for (size_t i = 0; i < started; ++i) {
        bool blocked = false;
        for (size_t j = 0; j < i; ++j) blocked |= jobs[j].state < 2 && conflict(jobs[i], jobs[j]);
        if (jobs[i].state < 2) ASSERT_EQ(jobs[i].state, blocked ? 0 : 1) << "seed " << seed;
      }
    };
    for (size_t i = 0; i < jobs.size(); ++i) {
      jobs[i].first = prng.below(8);
      jobs[i].end = jobs[i].first + 1 + prng.below(4);
      jobs[i].exclusive = prng.one_in(2);
      finish.push_back(std::make_unique<Event>(ready));
    }
    for (size_t i = 0; i < jobs.size(); ++i) {
      scope.spawn(body(locks, jobs[i], *finish[i]));
      if (prng.one_in(2)) finish[prng.below(i + 1)]->set();
      drain(ready);
      check(i + 1);
    }
    for (auto& event : finish) event->set();
    drain(ready);
    EXPECT_EQ(scope.running(), 0u);
    EXPECT_TRUE(locks.empty());
  }
}

TEST(RangeLock, ADowngradeLetsSharersIn) {
  ReadyQueue ready;
  Scope scope(ready);
  RangeLock locks(ready);
  bool in = false;
  RangeLock::Request mine(locks, 0, 4, RangeLock::Mode::exclusive);
  const auto hold = [](RangeLock::Request& r) -> Task<void> { co_await r; };
  scope.spawn(hold(mine));
  const auto body = [](RangeLock& l, bool& got) -> Task<void> {
    RangeLock::Request lock(l, 1, 2, RangeLock::Mode::shared);
    co_await lock;
    got = true;
  };
  scope.spawn(body(locks, in));
  drain(ready);
  EXPECT_FALSE(in);
  mine.downgrade();
  drain(ready);
  EXPECT_TRUE(in);
}

TEST(RangeLock, TryLockTakesARangeOrAsksForNothing) {
  ReadyQueue ready;
  RangeLock locks(ready);
  RangeLock::Request mine(locks, 0, 4, RangeLock::Mode::exclusive);
  RangeLock::Request beside(locks, 4, 5, RangeLock::Mode::exclusive);
  RangeLock::Request inside(locks, 1, 2, RangeLock::Mode::shared);
  EXPECT_TRUE(mine.try_lock());
  EXPECT_TRUE(beside.try_lock());
  EXPECT_FALSE(inside.try_lock());
  EXPECT_FALSE(inside.held());
  mine.release();
  EXPECT_FALSE(inside.held());  // It was not in the queue.
  EXPECT_TRUE(inside.try_lock());
}

/// Done at once, or after an event, or with an error.
struct Step {
  bool at_once;
  Event& event;
  Result<void> end = {};
  bool try_now() const { return at_once; }
  Task<void> wait() {
    co_await event.wait();
    co_await std::move(end);
  }
};

TEST(FastPath, GoesOnAtOnceOrWhenItsRestHasEnded) {
  ReadyQueue ready;
  Scope scope(ready);
  Event event(ready);
  int steps = 0;
  const auto body = [](Event& e, int& count) -> Task<void> {
    co_await FastPath(Step{true, e});
    ++count;
    co_await FastPath(Step{false, e});
    ++count;
  };
  scope.spawn(body(event, steps));
  drain(ready);
  EXPECT_EQ(steps, 1);
  event.notify();
  drain(ready);
  EXPECT_EQ(steps, 2);
}

TEST(FastPath, TheErrorOfTheRestEndsTheCaller) {
  ReadyQueue ready;
  Event event(ready);
  std::string text;
  bool went_on = false;
  Scope scope(ready);
  const auto inner = [](Event& e, bool& on) -> Task<void> {
    co_await FastPath(Step{false, e, corrupt("broken")});
    on = true;
  };
  const auto body = [&](Event& e) -> Task<void> {
    Result<void> result = co_await inner(e, went_on).result();
    if (!result) text = result.error().message();
  };
  scope.spawn(body(event));
  drain(ready);
  event.notify();
  drain(ready);
  EXPECT_EQ(text, "broken");
  EXPECT_FALSE(went_on);
}

}  // namespace
}  // namespace byre
