// SPDX-License-Identifier: Apache-2.0
/// The life of a server over real sockets, on each real reactor.
#include "export/nbd_server_run.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "block/borrowed_testing.h"
#include "export/test_sockets.h"

namespace byre::nbd {
namespace {

/// Writes down what happens to the disk.
class Noting final : public Borrowed {
 public:
  Noting(Device& below, std::vector<std::string>& log) : Borrowed(below), log_(log) {}
  ~Noting() override { log_.push_back("gone"); }
  Task<void> flush(IoTag tag) override {
    log_.push_back("flush");
    co_await below().flush(tag);
  }
  Task<void> close() override {
    log_.push_back("close");
    co_return;
  }

 private:
  std::vector<std::string>& log_;
};

class NbdServerRun : public SocketServerTest {
 public:
  void make() {
    options.report = [this](const Error& error) { log.push_back(error.message()); };
    run.emplace(*reactor, std::make_unique<Noting>(*disk, log), "'disk'", std::move(options));
  }
  Result<void> listen(ListenPlan plan) {
    return reactor->run(run->listen({.name = "disk", .writable = true}, std::move(plan)));
  }

  using Body = Task<void> (*)(NbdServerRun&);
  /// Serves the disk while `body` runs, and until somebody stops it.
  void serve_while(Body body) {
    make();
    const Result<void> listening = listen({.socket = path});
    ASSERT_TRUE(listening) << listening.error().message();
    const Result<void> result = reactor->run(both(*this, body));
    EXPECT_TRUE(result) << result.error().message();
  }
  static Task<void> both(NbdServerRun& t, Body body) {
    Scope scope(t.reactor->ready());
    scope.spawn(t.run->serve());
    const Result<void> result = co_await body(t).result();
    if (!result) t.run->stop();
    co_await scope.join();
    if (!result) co_await fail(result.error().copy());
  }
  static Task<std::unique_ptr<TestClient>> attach(NbdServerRun& t) {
    std::unique_ptr<TestClient> client = co_await connect(t);
    co_await client->attach();
    co_return std::move(client);
  }

  std::vector<std::string> log;
  std::optional<ServerRun> run;
};

INSTANTIATE_TEST_SUITE_P(Real, NbdServerRun, kRealReactors, reactor_name);

TEST_P(NbdServerRun, WhatWasAnsweredIsDurableAtTheEnd) {
  serve_while([](NbdServerRun& t) -> Task<void> {
    const std::unique_ptr<TestClient> client = co_await attach(t);
    const std::vector<std::byte> data(4096, std::byte{7});
    const Answer answer =
        co_await client->call({.command = Command::write, .cookie = 1, .length = 4096}, data);
    EXPECT_EQ(answer.status, Status::ok);
    EXPECT_EQ(t.run->waiting_for(), "0 requests to 'disk', 1 connection");
    t.run->stop();
  });
  EXPECT_EQ(disk->durable[0], std::byte{0});
  EXPECT_TRUE(reactor->run(run->end()));
  EXPECT_EQ(disk->durable[0], std::byte{7});
  EXPECT_EQ(log, (std::vector<std::string>{"flush", "close", "gone"}));
  EXPECT_EQ(run->waiting_for(), "the flush and close of 'disk'");
}

TEST_P(NbdServerRun, ADiskThatCannotFlushIsClosedNevertheless) {
  serve_while([](NbdServerRun& t) -> Task<void> {
    t.run->stop();
    co_return;
  });
  disk->fail_flush = EIO;
  const Result<void> ended = reactor->run(run->end());
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().sys_errno(), EIO);
  EXPECT_EQ(log, (std::vector<std::string>{"flush", "close", "gone"}));
}

// Who waits for the end of its connection finds the disk free.
TEST_P(NbdServerRun, TheDiskGoesBeforeTheConnectionOfTheLastClient) {
  options.end_with_last_client = true;
  static std::unique_ptr<TestClient> client;
  serve_while([](NbdServerRun& t) -> Task<void> {
    client = co_await attach(t);
    co_await client->ask({.command = Command::disconnect, .cookie = 1});
  });
  const auto end = [](NbdServerRun& t) -> Task<void> {
    Scope scope(t.reactor->ready());
    bool hung_up = false;
    const auto watch = [](NbdServerRun& test, bool& flag) -> Task<void> {
      EXPECT_TRUE(co_await client->at_end());
      test.log.push_back("hung up");
      flag = true;
    };
    scope.spawn(watch(t, hung_up));
    co_await t.run->end();
    t.run->stop();  // A signal may come then, or the kernel lets its device go.
    co_await t.reactor->sleep(5 * kMillisecond);
    EXPECT_FALSE(hung_up);
    t.run.reset();
    co_await scope.join();
  };
  EXPECT_TRUE(reactor->run(end(*this)));
  EXPECT_EQ(log, (std::vector<std::string>{"flush", "close", "gone", "hung up"}));
  client.reset();
}

TEST_P(NbdServerRun, WorkBesideTheServerIsRepeatedAndEndsWithIt) {
  make();
  int often = 0;
  int seldom = 0;
  run->every(kMillisecond, [&]() -> Task<void> {
    if (++often == 3) run->stop();
    co_return;
  });
  run->every(3600 * kSecond, [&]() -> Task<void> {
    ++seldom;
    co_return;
  });
  ASSERT_TRUE(listen({.socket = path}));
  EXPECT_FALSE(run->ending());
  EXPECT_TRUE(reactor->run(run->serve()));
  EXPECT_TRUE(run->ending());
  EXPECT_GE(often, 3);
  EXPECT_EQ(seldom, 0);
  EXPECT_TRUE(reactor->run(run->end()));
}

TEST_P(NbdServerRun, ASignalAsksForWork) {
  Result<SignalWatch> signals = SignalWatch::make(*reactor, {SIGUSR1});
  ASSERT_TRUE(signals);
  make();
  ASSERT_TRUE(listen({.socket = path}));
  int came = 0;
  run->on_signal(*signals, [&]() -> Task<void> {
    ++came;
    run->stop();
    co_return;
  });
  kill(getpid(), SIGUSR1);
  EXPECT_TRUE(reactor->run(run->serve()));
  EXPECT_EQ(came, 1);
  EXPECT_TRUE(reactor->run(run->end()));
}

TEST_P(NbdServerRun, ListensOnASocketAndOnAPortThatIsFree) {
  make();
  ASSERT_TRUE(listen({.socket = path, .default_socket = folder / "default", .port = 0}));
  ASSERT_EQ(run->addresses().size(), 2u);
  EXPECT_EQ(run->addresses()[0].text(), cat("nbd+unix:///disk?socket=", path));
  EXPECT_NE(run->addresses()[1].port, 0);
  EXPECT_EQ(run->addresses()[1].text(), cat("nbd://127.0.0.1:", run->addresses()[1].port, "/disk"));
  struct stat status;
  EXPECT_EQ(stat(path.c_str(), &status), 0);
  EXPECT_NE(stat((folder / "default").c_str(), &status), 0);
  EXPECT_TRUE(reactor->run(run->end()));
  run.reset();
  EXPECT_NE(stat(path.c_str(), &status), 0);
}

TEST_P(NbdServerRun, OnlyTheDefaultSocketHasAHintWhenItDoesNotWork) {
  const std::string nowhere = folder / "none/socket";
  make();
  const Result<void> chosen = listen({.socket = nowhere, .default_socket_hint = "; a hint"});
  ASSERT_FALSE(chosen);
  EXPECT_FALSE(chosen.error().message().ends_with("; a hint"));
  make();
  const Result<void> by_default =
      listen({.default_socket = nowhere, .default_socket_hint = "; a hint"});
  ASSERT_FALSE(by_default);
  EXPECT_EQ(by_default.error().message(), cat(chosen.error().message(), "; a hint"));
  EXPECT_EQ(by_default.error().sys_errno(), chosen.error().sys_errno());
}

}  // namespace
}  // namespace byre::nbd
