// SPDX-License-Identifier: Apache-2.0
#include "io/own_thread.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <thread>
#include <vector>

#include "io/descriptor.h"
#include "io/io_testing.h"

namespace byre {
namespace {

class OwnThreadTest : public ::testing::TestWithParam<ReactorKind> {
 public:
  void SetUp() override {
    auto made = make_reactor(GetParam());
    if (!made) GTEST_SKIP() << made.error().message();
    reactor = *std::move(made);
  }
  std::unique_ptr<Reactor> reactor;
};
INSTANTIATE_TEST_SUITE_P(Reactors, OwnThreadTest,
                         ::testing::Values(ReactorKind::uring, ReactorKind::posix));

/// More calls than the reactor has workers wait for what only its own work can bring about.
Task<void> play(Reactor& reactor) {
  const size_t count = std::thread::hardware_concurrency() + 1;
  const Descriptor go(eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE));
  std::vector<OwnThread> waiting;
  for (size_t i = 0; i < count; ++i) {
    waiting.push_back(co_await OwnThread::start(reactor, [&go] {
      eventfd_t value;
      EXPECT_EQ(eventfd_read(go.get(), &value), 0);
    }));
  }
  co_await reactor.offload([] {});
  for (const OwnThread& thread : waiting) EXPECT_FALSE(thread.has_ended());
  co_await reactor.offload([&] { EXPECT_EQ(eventfd_write(go.get(), count), 0); });
  for (const OwnThread& thread : waiting) {
    co_await thread.wait();
    EXPECT_TRUE(thread.has_ended());
    co_await thread.wait();
  }
}

TEST_P(OwnThreadTest, CallsThatBlockKeepNoWorkers) {
  const Result<void> played = reactor->run(play(*reactor));
  EXPECT_TRUE(played) << played.error().message();
}

Task<bool> blocks_signals(Reactor& reactor) {
  bool blocked = false;
  const OwnThread thread = co_await OwnThread::start(reactor, [&blocked] {
    sigset_t now;
    pthread_sigmask(SIG_SETMASK, nullptr, &now);
    blocked = sigismember(&now, SIGTERM) == 1 && sigismember(&now, SIGUSR1) == 1;
  });
  co_await thread.wait();
  co_return blocked;
}

TEST_P(OwnThreadTest, TakesNoSignals) {
  const Result<bool> blocked = reactor->run(blocks_signals(*reactor));
  ASSERT_TRUE(blocked);
  EXPECT_TRUE(*blocked);
}

}  // namespace
}  // namespace byre
