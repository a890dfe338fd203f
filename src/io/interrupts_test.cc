// SPDX-License-Identifier: Apache-2.0
#include "io/interrupts.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "coro/scope.h"
#include "io/signal.h"

namespace byre {
namespace {

class InterruptsTest : public testing::TestWithParam<ReactorKind> {
 protected:
  void SetUp() override {
    Result<std::unique_ptr<Reactor>> made = make_reactor(GetParam());
    if (!made) GTEST_SKIP() << made.error().message();
    reactor_ = *std::move(made);
  }
  std::unique_ptr<Interrupts> make(Interrupts::Options options = {}) {
    Result<std::unique_ptr<Interrupts>> made = Interrupts::make(*reactor_, std::move(options));
    EXPECT_TRUE(made);
    return *std::move(made);
  }
  static void raise_signal(int number) { kill(getpid(), number); }
  /// What a thread does that hangs in the kernel: nothing.
  static void hang() { std::this_thread::sleep_for(std::chrono::seconds(60)); }

  std::unique_ptr<Reactor> reactor_;
};
INSTANTIATE_TEST_SUITE_P(Reactors, InterruptsTest,
                         testing::Values(ReactorKind::uring, ReactorKind::posix));
using InterruptsDeathTest = InterruptsTest;
INSTANTIATE_TEST_SUITE_P(Reactors, InterruptsDeathTest,
                         testing::Values(ReactorKind::uring, ReactorKind::posix));

TEST_P(InterruptsTest, TheFirstSignalEndsTheWait) {
  for (int number : {SIGINT, SIGTERM, SIGHUP}) {
    const auto interrupts = make();
    EXPECT_EQ(interrupts->seen(), 0);
    raise_signal(number);
    Result<int> seen = reactor_->run(interrupts->wait());
    ASSERT_TRUE(seen);
    EXPECT_EQ(*seen, number);
    EXPECT_EQ(interrupts->seen(), number);
  }
}

TEST_P(InterruptsTest, CancelEndsTheWait) {
  const auto interrupts = make();
  Scope scope(reactor_->ready());
  Result<int> seen = 0;
  const auto wait = [](Interrupts& from, Result<int>& to) -> Task<void> {
    to = co_await from.wait().result();
  };
  scope.spawn(wait(*interrupts, seen));
  interrupts->cancel();
  EXPECT_TRUE(reactor_->run(scope.join()));
  ASSERT_FALSE(seen);
  EXPECT_EQ(seen.error().code(), Errc::cancelled);
}

TEST_P(InterruptsTest, IgnoredSignalsStayIgnored) {
  signal(SIGHUP, SIG_IGN);
  {
    const auto interrupts = make();
    raise_signal(SIGHUP);
    raise_signal(SIGHUP);
    raise_signal(SIGTERM);
    EXPECT_EQ(*reactor_->run(interrupts->wait()), SIGTERM);
  }
  signal(SIGHUP, SIG_DFL);
}

TEST_P(InterruptsTest, AServerHearsSigtermAlthoughItIsIgnored) {
  signal(SIGTERM, SIG_IGN);
  signal(SIGHUP, SIG_IGN);
  {
    const auto interrupts = make({.always_term = true});
    raise_signal(SIGHUP);
    raise_signal(SIGTERM);
    EXPECT_EQ(*reactor_->run(interrupts->wait()), SIGTERM);
  }
  signal(SIGTERM, SIG_DFL);
  signal(SIGHUP, SIG_DFL);
}

TEST_P(InterruptsTest, AProgramStartsWithItsSignalsInOrder) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // As a parent may leave it.
  signal(SIGCHLD, SIG_IGN);
  const uint64_t asked = progress_questions();
  raise_signal(SIGUSR1);
  raise_signal(SIGUSR2);
  set_up_signals();
  EXPECT_EQ(progress_questions(), asked + 1);
  sigset_t now;
  pthread_sigmask(SIG_SETMASK, nullptr, &now);
  for (int number : {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGCHLD}) {
    EXPECT_EQ(sigismember(&now, number), 0) << number;
  }
  struct sigaction action;
  sigaction(SIGCHLD, nullptr, &action);
  EXPECT_EQ(action.sa_handler, SIG_DFL);
  for (int number : {SIGUSR1, SIGUSR2, SIGPIPE, SIGXFSZ}) raise_signal(number);
  EXPECT_EQ(progress_questions(), asked + 2);

  // Who watches it takes it, and nobody else hears of it.
  {
    Result<SignalWatch> watch = SignalWatch::make(*reactor_, {SIGUSR1});
    ASSERT_TRUE(watch);
    raise_signal(SIGUSR1);
    EXPECT_EQ(*reactor_->run(watch->wait()), SIGUSR1);
  }
  EXPECT_EQ(progress_questions(), asked + 2);
  for (int number : {SIGUSR1, SIGUSR2, SIGPIPE, SIGXFSZ}) signal(number, SIG_DFL);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

TEST_P(InterruptsDeathTest, TheSecondSignalEndsAProcessThatHangs) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto die = [&] {
    const auto interrupts = make({.grace = 0});
    raise_signal(SIGINT);
    while (interrupts->seen() == 0) std::this_thread::yield();
    raise_signal(SIGTERM);
    hang();
  };
  EXPECT_EXIT(die(), testing::ExitedWithCode(128 + SIGTERM), "");
}

TEST_P(InterruptsTest, AnEchoOfTheFirstSignalIsNoSecondOne) {
  const auto interrupts = make({.grace = 1000 * kSecond});
  raise_signal(SIGTERM);
  while (interrupts->seen() == 0) std::this_thread::yield();
  raise_signal(SIGTERM);
  EXPECT_EQ(*reactor_->run(interrupts->wait()), SIGTERM);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // Had it counted, this were the end.
}

TEST_P(InterruptsDeathTest, AHangingThreadIsTalkedFor) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto die = [&] {
    const auto interrupts = make({.patience = 10 * kMillisecond, .grace = 0, .hung = "it hangs\n"});
    raise_signal(SIGINT);
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    raise_signal(SIGINT);
    hang();
  };
  EXPECT_EXIT(die(), testing::ExitedWithCode(128 + SIGINT), "it hangs");
}

TEST_P(InterruptsDeathTest, DisarmedTheFirstSignalEndsIt) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto die = [&] {
    const auto interrupts = make();
    interrupts->disarm();
    raise_signal(SIGTERM);
    hang();
  };
  EXPECT_EXIT(die(), testing::ExitedWithCode(128 + SIGTERM), "");
}

}  // namespace
}  // namespace byre
