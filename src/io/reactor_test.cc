// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <set>
#include <thread>
#include <vector>

#include "io/descriptor.h"
#include "io/io_testing.h"

namespace byre {
namespace {

class ReactorTest : public IoTest {};
ON_EVERY_REACTOR(ReactorTest);

TEST(MakeReactor, AutomaticGivesOneThatSaysWhatItIs) {
  Result<std::unique_ptr<Reactor>> reactor = make_reactor();
  ASSERT_TRUE(reactor);
  EXPECT_TRUE((*reactor)->name() == "io_uring" || (*reactor)->name() == "threads");
}

TEST(MakeReactor, WhereIoUringIsForbiddenThreadsDoTheWork) {
  EXPECT_EXIT(
      {
        forbid_system_call(SYS_io_uring_setup, EPERM);
        Result<std::unique_ptr<Reactor>> uring = make_reactor(ReactorKind::uring);
        Result<std::unique_ptr<Reactor>> reactor = make_reactor();
        const auto body = [](Reactor& r) -> Task<void> { co_await r.sleep(1); };
        const bool good = !uring && uring.error().code() == Errc::denied && reactor &&
                          (*reactor)->name() == "threads" && (*reactor)->run(body(**reactor));
        _exit(good ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
}

TEST_P(ReactorTest, TheClockDoesNotGoBackAndNumbersDiffer) {
  Instant last = reactor().now();
  std::set<uint64_t> numbers;
  for (int i = 0; i < 1000; ++i) {
    const Instant now = reactor().now();
    EXPECT_GE(now, last);
    last = now;
    numbers.insert(reactor().random());
  }
  EXPECT_EQ(numbers.size(), 1000u);
}

TEST_P(ReactorTest, TimersCompleteInTheOrderOfTheirDeadlines) {
  std::vector<int> log;
  const auto body = [](Reactor& reactor, int ms, std::vector<int>& out) -> Task<void> {
    const Instant start = reactor.now();
    co_await reactor.sleep(ms * kMillisecond);
    EXPECT_GE(reactor.now() - start, ms * kMillisecond);
    out.push_back(ms);
  };
  const auto all = [&](Reactor& reactor) -> Task<void> {
    Scope scope(reactor.ready());
    for (int ms : {30, 0, 20, 10}) scope.spawn(body(reactor, ms, log));
    co_await scope.join();
  };
  run(all(reactor()));
  EXPECT_EQ(log, (std::vector<int>{0, 10, 20, 30}));
}

// Against a sorted list: any mixture of timers and cancellations.
TEST_P(ReactorTest, AnyTimerCanBeCancelled) {
  Prng prng(7);
  struct Timer {
    Op op;
    bool done = false;
  };
  std::vector<Timer> timers(500);
  const auto wait = [](Reactor& reactor, Timer& timer) -> Task<void> {
    co_await reactor.perform(timer.op);
    timer.done = true;
  };
  const auto all = [&](Reactor& reactor) -> Task<void> {
    Scope scope(reactor.ready());
    for (Timer& timer : timers) {
      const bool far = prng.one_in(2);
      timer.op = {.kind = Op::Kind::timer,
                  .deadline = reactor.now() + (far ? 1000 * kSecond : 0) +
                              static_cast<int64_t>(prng.below(5 * kMillisecond))};
      scope.spawn(wait(reactor, timer));
    }
    co_await reactor.sleep(5 * kMillisecond);
    std::vector<size_t> order(timers.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[prng.below(i)]);
    for (size_t index : order) reactor.cancel(timers[index].op);
    co_await scope.join();
  };
  run(all(reactor()));
  for (const Timer& timer : timers) {
    EXPECT_TRUE(timer.done);
    EXPECT_TRUE(timer.op.result == 0 || timer.op.result == -ECANCELED) << timer.op.result;
  }
}

TEST_P(ReactorTest, AnOpThatWaitsOnASocketCanBeCancelled) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const Descriptor a(pair[0]);
  const Descriptor b(pair[1]);
  char byte = 0;
  Op receive{.kind = Op::Kind::receive, .fd = a.get(), .length = 1, .buffer = &byte};
  Op poll{.kind = Op::Kind::poll, .fd = a.get()};
  const auto wait = [](Reactor& reactor, Op& op) -> Task<void> { co_await reactor.perform(op); };
  const auto all = [&](Reactor& reactor) -> Task<void> {
    Scope scope(reactor.ready());
    scope.spawn(wait(reactor, receive));
    scope.spawn(wait(reactor, poll));
    co_await reactor.sleep(kMillisecond);
    reactor.cancel(receive);
    reactor.cancel(poll);
    co_await scope.join();
  };
  run(all(reactor()));
  EXPECT_EQ(receive.result, -ECANCELED);
  EXPECT_EQ(poll.result, -ECANCELED);
  reactor().cancel(receive);  // Of what is complete: nothing happens.
}

TEST_P(ReactorTest, PollSeesThatADescriptorIsReadable) {
  const Descriptor event(eventfd(0, EFD_CLOEXEC));
  Op poll{.kind = Op::Kind::poll, .fd = event.get()};
  const auto wait = [](Reactor& reactor, Op& op) -> Task<void> { co_await reactor.perform(op); };
  const auto all = [&](Reactor& reactor) -> Task<void> {
    Scope scope(reactor.ready());
    scope.spawn(wait(reactor, poll));
    co_await reactor.sleep(kMillisecond);
    eventfd_write(event.get(), 1);
    co_await scope.join();
  };
  run(all(reactor()));
  EXPECT_GT(poll.result, 0);
}

TEST_P(ReactorTest, TenThousandOpsCanBeInFlight) {
  const std::vector<std::byte> data = noise(1 << 20);
  const std::string path = folder_ / "f";
  const Descriptor fd(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  ASSERT_EQ(write(fd.get(), data.data(), data.size()), static_cast<ssize_t>(data.size()));
  struct Read {
    Op op;
    uint32_t value = 0;
  };
  std::vector<Read> reads(10000);
  const auto one = [](Reactor& reactor, Read& read) -> Task<void> {
    co_await reactor.perform(read.op);
  };
  const auto all = [&](Reactor& reactor) -> Task<void> {
    Scope scope(reactor.ready());
    for (size_t i = 0; i < reads.size(); ++i) {
      reads[i].op = {.kind = Op::Kind::read,
                     .fd = fd.get(),
                     .offset = 100 * i,
                     .length = 4,
                     .buffer = &reads[i].value};
      scope.spawn(one(reactor, reads[i]));
    }
    EXPECT_EQ(scope.running(), reads.size());
    co_await scope.join();
  };
  run(all(reactor()));
  for (size_t i = 0; i < reads.size(); ++i) {
    ASSERT_EQ(reads[i].op.result, 4);
    ASSERT_EQ(memcmp(&reads[i].value, data.data() + 100 * i, 4), 0) << i;
  }
}

// More than any ring holds; those that never ran end, too.
TEST_P(ReactorTest, TenThousandWaitingReceivesCanBeCancelled) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const Descriptor a(pair[0]);
  const Descriptor b(pair[1]);
  char byte = 0;
  std::vector<Op> ops(10000);
  const auto wait = [](Reactor& reactor, Op& op) -> Task<void> { co_await reactor.perform(op); };
  const auto all = [&](Reactor& reactor) -> Task<void> {
    Scope scope(reactor.ready());
    for (Op& op : ops) {
      op = {.kind = Op::Kind::receive, .fd = a.get(), .length = 1, .buffer = &byte};
      scope.spawn(wait(reactor, op));
    }
    for (size_t i = 0; i < 10; ++i) reactor.cancel(ops[i * 1000]);
    co_await reactor.sleep(kMillisecond);
    for (Op& op : ops) reactor.cancel(op);
    co_await scope.join();
  };
  run(all(reactor()));
  for (const Op& op : ops) ASSERT_EQ(op.result, -ECANCELED);
}

TEST_P(ReactorTest, OffloadedWorkRunsOnAnotherThread) {
  std::thread::id here = std::this_thread::get_id();
  std::thread::id there = here;
  const auto body = [&](Reactor& reactor) -> Task<void> {
    const auto work = [&there] { there = std::this_thread::get_id(); };
    co_await reactor.offload(work);
  };
  run(body(reactor()));
  EXPECT_NE(here, there);
}

TEST_P(ReactorTest, OffloadsByTheThousandAllCompleteBesideTimers) {
  std::vector<uint64_t> results(5000);
  const auto one = [](Reactor& reactor, uint64_t& out, uint64_t in) -> Task<void> {
    if (in % 100 == 0) co_await reactor.sleep(static_cast<int64_t>(in) * kMicrosecond);
    const auto work = [&out, in] { out = in * in + 1; };
    co_await reactor.offload(work);
  };
  const auto all = [&](Reactor& reactor) -> Task<void> {
    Scope scope(reactor.ready());
    for (size_t i = 0; i < results.size(); ++i) scope.spawn(one(reactor, results[i], i));
    co_await scope.join();
  };
  run(all(reactor()));
  for (size_t i = 0; i < results.size(); ++i) ASSERT_EQ(results[i], i * i + 1);
}

TEST_P(ReactorTest, AnOpOnAClosedDescriptorFails) {
  char byte = 0;
  Op ops[] = {{.kind = Op::Kind::read, .fd = 1 << 20, .length = 1, .buffer = &byte},
              {.kind = Op::Kind::sync, .fd = 1 << 20},
              {.kind = Op::Kind::truncate, .fd = 1 << 20},
              {.kind = Op::Kind::receive, .fd = 1 << 20, .length = 1, .buffer = &byte},
              {.kind = Op::Kind::accept, .fd = 1 << 20},
              {.kind = Op::Kind::poll, .fd = 1 << 20}};
  const auto body = [](Reactor& reactor, Op& op) -> Task<void> { co_await reactor.perform(op); };
  for (Op& op : ops) {
    run(body(reactor(), op));
    EXPECT_EQ(op.result, -EBADF) << static_cast<int>(op.kind);
  }
}

// The frames of what is abandoned may be gone: the reactor must not touch them.
TEST_P(ReactorTest, AReactorMayDieWithOpsThatWait) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const Descriptor a(pair[0]);
  const Descriptor b(pair[1]);
  auto op = std::make_unique<Op>(Op{.kind = Op::Kind::receive, .fd = a.get(), .length = 1});
  char byte = 0;
  op->buffer = &byte;
  Result<std::unique_ptr<Reactor>> doomed = make_reactor(GetParam());
  ASSERT_TRUE(doomed);
  (*doomed)->submit(*op);
  (*doomed)->turn(Reactor::Wait::no);
  op.reset();
  *doomed = nullptr;
  ASSERT_EQ(write(b.get(), "x", 1), 1);
}

}  // namespace
}  // namespace byre
