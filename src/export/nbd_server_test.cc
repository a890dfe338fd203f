// SPDX-License-Identifier: Apache-2.0
/// The server over real sockets, on each real reactor.
#include "export/nbd_server.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "export/test_sockets.h"

namespace byre::nbd {
namespace {

class NbdServer : public SocketServerTest {
 public:
  using Body = Task<void> (*)(NbdServer&);
  /// Serves the disk while `body` runs, then stops.
  void serve_for(Body body, DoorOptions door = {}) {
    server = std::make_unique<Server>(*reactor, options);
    ASSERT_TRUE(server->add_export(
        {.name = "disk", .description = "a disk", .disk = Entrance::to(*disk), .writable = true},
        true));
    ASSERT_TRUE(server->add_export({.name = "frozen", .disk = Entrance::to(*disk)}));
    auto listener = Listener::listen_unix(*reactor, path);
    ASSERT_TRUE(listener) << listener.error().message();
    server->add_listener(*std::move(listener), door);
    Result<void> result = reactor->run(both(*this, body));
    EXPECT_TRUE(result) << result.error().message();
    EXPECT_EQ(server->statistics().connections_open, 0u);
    EXPECT_EQ(server->statistics().requests_running, 0u);
  }
  static Task<void> both(NbdServer& t, Body body) {
    Scope scope(t.reactor->ready());
    scope.spawn(t.server->serve());
    Result<void> result = co_await body(t).result();
    t.server->stop();
    co_await scope.join();
    if (!result) co_await fail(std::move(result).error());
  }
  /// Waits until `done` holds.
  template <class Done>
  Task<void> until(Done done) {
    for (int i = 0; i < 10'000 && !done(*this); ++i) co_await reactor->sleep(kMillisecond);
    EXPECT_TRUE(done(*this));
  }

  std::unique_ptr<Server> server;
};

INSTANTIATE_TEST_SUITE_P(Real, NbdServer, kRealReactors, reactor_name);

Task<void> check_read(TestClient& client) {
  const Answer answer = co_await client.call({.cookie = 1, .length = 4096});
  EXPECT_EQ(answer.status, Status::ok);
  EXPECT_EQ(answer.data.size(), 4096u);
}

TEST_P(NbdServer, ServesItsExportsByName) {
  serve_for([](NbdServer& t) -> Task<void> {
    for (const std::string_view name : {"", "disk", "frozen"}) {
      const std::unique_ptr<TestClient> client = co_await connect(t);
      co_await client->attach({.name = name});
      EXPECT_EQ(client->size(), 1 * MiB);
      EXPECT_EQ((client->flags() & kReadOnly) != 0, name == "frozen");
      co_await check_read(*client);
      co_await client->ask({.command = Command::disconnect});
      EXPECT_TRUE(co_await client->at_end());
    }
  });
  EXPECT_EQ(server->statistics().connections, 3u);
  EXPECT_EQ(server->statistics().bytes_read, 3 * 4096u);
  EXPECT_EQ(server->statistics().connections_failed, 0u);
}

TEST_P(NbdServer, AnExportIsRemovedWithItsClientsAndNoOthers) {
  serve_for([](NbdServer& t) -> Task<void> {
    const std::unique_ptr<TestClient> one = co_await connect(t);
    co_await one->attach({.name = "disk"});
    const std::unique_ptr<TestClient> other = co_await connect(t);
    co_await other->attach({.name = "frozen"});
    EXPECT_EQ(t.server->clients_of("disk"), 1u);
    EXPECT_EQ(t.server->clients_of("nosuch"), 0u);
    const size_t edges = t.disk->node()->parents().size();
    co_await t.server->remove_export("disk");
    EXPECT_EQ(t.disk->node()->parents().size(), edges - 1);  // Nothing here leads there any more.
    EXPECT_TRUE(co_await one->at_end());
    co_await check_read(*other);
    EXPECT_EQ(t.server->clients_of("disk"), 0u);
    const std::unique_ptr<TestClient> late = co_await connect(t);
    const Result<void> attached = co_await late->attach({.name = "disk"}).result();
    EXPECT_FALSE(attached);
    const Result<void> again = co_await t.server->remove_export("disk").result();
    EXPECT_FALSE(again);
  });
}

TEST_P(NbdServer, ADoorDecidesAboutListing) {
  const Body list = [](NbdServer& t) -> Task<void> {
    const std::unique_ptr<TestClient> client = co_await connect(t);
    co_await client->greet();
    co_await client->option(Option::list);
    EXPECT_EQ(co_await client->final_reply(),
              t.options.connections_max == 7 ? OptionReply::policy : OptionReply::ack);
  };
  serve_for(list);
  options.connections_max = 7;
  serve_for(list, {.allow_list = false});
}

TEST_P(NbdServer, AThousandConnectionsAreServed) {
  serve_for([](NbdServer& t) -> Task<void> {
    std::vector<std::unique_ptr<TestClient>> clients;
    for (int i = 0; i < 1000; ++i) {
      clients.push_back(co_await connect(t));
      co_await clients.back()->attach();
    }
    for (const auto& client : clients) co_await client->ask({.cookie = 1, .length = 4096});
    for (const auto& client : clients) EXPECT_EQ((co_await client->answer()).status, Status::ok);
    EXPECT_EQ(t.server->statistics().connections_open, 1000u);
  });
}

TEST_P(NbdServer, OneTooManyWaitsForAPlace) {
  options.connections_max = 2;
  serve_for([](NbdServer& t) -> Task<void> {
    std::unique_ptr<TestClient> first = co_await connect(t);
    co_await first->attach();
    const std::unique_ptr<TestClient> second = co_await connect(t);
    co_await second->attach();
    const std::unique_ptr<TestClient> third = co_await connect(t);
    Scope scope(t.reactor->ready());
    bool attached = false;
    const auto attach = [](TestClient& client, bool& done) -> Task<void> {
      co_await client.attach();
      done = true;
      co_await check_read(client);
    };
    scope.spawn(attach(*third, attached));
    co_await t.until([](NbdServer& s) { return s.server->statistics().connections_waiting == 1; });
    co_await check_read(*second);
    EXPECT_FALSE(attached);
    EXPECT_EQ(t.server->statistics().connections_open, 2u);
    first.reset();
    co_await scope.join();
    EXPECT_EQ(t.server->statistics().connections_waiting, 0u);
    EXPECT_EQ(t.server->statistics().connections_open, 2u);
  });
  EXPECT_EQ(server->statistics().connections, 3u);
  EXPECT_EQ(server->statistics().connections_failed, 0u);
}

// Each comes as soon as the one before has said that it goes, which the server may not have heard.
TEST_P(NbdServer, ManyClientsOneAfterAnotherFindTheOnePlace) {
  options.connections_max = 1;
  serve_for([](NbdServer& t) -> Task<void> {
    for (int i = 0; i < 300; ++i) {
      const std::unique_ptr<TestClient> client = co_await connect(t);
      co_await client->attach();
      EXPECT_EQ(client->flags() & kCanMultiConn, 0);
      co_await check_read(*client);
      if (i % 2 == 0) co_await client->ask({.command = Command::disconnect});
    }
  });
  EXPECT_EQ(server->statistics().connections, 300u);
  EXPECT_EQ(server->statistics().connections_failed, 0u);
}

TEST_P(NbdServer, StopEndsThoseWhoWait) {
  options.connections_max = 1;
  serve_for([](NbdServer& t) -> Task<void> {
    const std::unique_ptr<TestClient> first = co_await connect(t);
    co_await first->attach();
    const std::unique_ptr<TestClient> second = co_await connect(t);
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    t.server->add_client(Socket(*t.reactor, fds[0]));
    TestClient third(Socket(*t.reactor, fds[1]));
    co_await t.until([](NbdServer& s) { return s.server->statistics().connections_waiting == 2; });
    t.server->stop();
    EXPECT_TRUE(co_await second->at_end());
    EXPECT_TRUE(co_await third.at_end());
    EXPECT_TRUE(co_await first->at_end());
  });
  EXPECT_EQ(server->statistics().connections, 1u);
}

// A probe that only looks whether somebody listens, and one that lists the exports, are not the
// last client.
TEST_P(NbdServer, ItEndsWithTheLastClientThatWasAttached) {
  options.end_with_last_client = true;
  server = std::make_unique<Server>(*reactor, options);
  ASSERT_TRUE(server->add_export({.name = "disk", .disk = Entrance::to(*disk)}));
  auto listener = Listener::listen_unix(*reactor, path);
  ASSERT_TRUE(listener);
  server->add_listener(*std::move(listener));
  const auto body = [](NbdServer& t) -> Task<void> {
    Scope scope(t.reactor->ready());
    scope.spawn(t.server->serve());
    const nbd::Statistics& now = t.server->statistics();
    {
      const std::unique_ptr<TestClient> probe = co_await connect(t);
    }
    {
      const std::unique_ptr<TestClient> lister = co_await connect(t);
      co_await lister->greet();
      co_await lister->option(Option::list);
      EXPECT_EQ(co_await lister->final_reply(), OptionReply::ack);
    }
    co_await t.until([&](NbdServer&) { return now.connections == 2 && now.connections_open == 0; });
    std::unique_ptr<TestClient> first = co_await connect(t);
    co_await first->attach();
    std::unique_ptr<TestClient> second = co_await connect(t);
    co_await second->attach();
    first.reset();
    co_await t.until([&](NbdServer&) { return now.connections_open == 1; });
    co_await check_read(*second);
    second.reset();
    co_await scope.join();  // Nobody called stop().
    EXPECT_EQ(now.connections, 4u);
  };
  EXPECT_TRUE(reactor->run(body(*this)));
}

// A crowd that opens connections and says nothing: the one who is attached goes on; of the crowd
// each has its place for a short time only, and who comes late gets one.
TEST_P(NbdServer, ASilentCrowdIsBounded) {
  options.connections_max = 16;
  options.crowded_timeout_ns = 20 * kMillisecond;
  serve_for([](NbdServer& t) -> Task<void> {
    const std::unique_ptr<TestClient> good = co_await connect(t);
    co_await good->attach();
    std::vector<std::unique_ptr<TestClient>> crowd;
    for (int i = 0; i < 300; ++i) crowd.push_back(co_await connect(t));
    co_await check_read(*good);
    const std::unique_ptr<TestClient> late = co_await connect(t);
    co_await late->attach();
    co_await check_read(*late);
    co_await check_read(*good);
    // Those who had a place have lost it, but for the last ones, for whose places nobody waits.
    EXPECT_LE(t.server->statistics().connections_open, 16u);
    crowd.clear();
  });
  EXPECT_GE(server->statistics().connections_failed, 285u);
}

TEST_P(NbdServer, StopFinishesRequestsAndEndsIdleClients) {
  serve_for([](NbdServer& t) -> Task<void> {
    const std::unique_ptr<TestClient> idle = co_await connect(t);
    co_await idle->attach();
    const std::unique_ptr<TestClient> busy = co_await connect(t);
    co_await busy->attach();
    t.disk->opener.reset();
    const std::vector<std::byte> data(4096, std::byte{7});
    co_await busy->ask({.command = Command::write, .cookie = 1, .length = 4096}, data);
    co_await t.until([](NbdServer& s) { return s.disk->running == 1; });
    t.server->stop();
    EXPECT_TRUE(co_await idle->at_end());
    co_await busy->ask({.command = Command::flush, .cookie = 2});
    Answer answer = co_await busy->answer();
    EXPECT_EQ(answer.cookie, 2u);
    EXPECT_EQ(answer.status, Status::eshutdown);
    t.disk->opener.set();
    answer = co_await busy->answer();
    EXPECT_EQ(answer.cookie, 1u);
    EXPECT_EQ(answer.status, Status::ok);
    EXPECT_TRUE(co_await busy->at_end());
  });
}

TEST_P(NbdServer, AServerWithoutDoorsEndsWithItsLastClient) {
  server = std::make_unique<Server>(*reactor, options);
  ASSERT_TRUE(server->add_export({.name = "disk", .disk = Entrance::to(*disk)}));
  int fds[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  server->add_client(Socket(*reactor, fds[0]));
  const auto body = [](NbdServer& t, Socket socket) -> Task<void> {
    Scope scope(t.reactor->ready());
    scope.spawn(t.server->serve());
    {
      TestClient client(std::move(socket));
      co_await client.attach();
      co_await check_read(client);
    }
    co_await scope.join();  // Nobody called stop().
  };
  EXPECT_TRUE(reactor->run(body(*this, Socket(*reactor, fds[1]))));
}

Task<void> ask_without_handshake(TestClient& client) {
  const std::vector<std::byte> data(512, std::byte{5});
  const Answer written = co_await client.call(
      {.flags = kFua, .command = Command::write, .cookie = 1, .length = 512}, data);
  EXPECT_EQ(written.status, Status::ok);
  const Answer read = co_await client.call({.cookie = 2, .length = 512});
  EXPECT_EQ(read.data, data);
  // Simple replies, also for errors.
  EXPECT_TRUE(read.chunks.empty());
  const Answer outside = co_await client.call({.cookie = 3, .offset = 1 * MiB, .length = 512});
  EXPECT_NE(outside.status, Status::ok);
  EXPECT_TRUE(outside.chunks.empty());
  co_await client.ask({.command = Command::disconnect, .cookie = 4});
}

TEST_P(NbdServer, AClientThatAgreedBeforeBeginsWithRequests) {
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  options.end_with_last_client = true;
  server = std::make_unique<Server>(*reactor, options);
  ASSERT_TRUE(server->add_export({.name = "other", .disk = Entrance::to(*disk)}));
  ASSERT_TRUE(server->add_export({.name = "disk", .disk = Entrance::to(*disk), .writable = true},
                                 /*is_default=*/true));
  server->add_client(Socket(*reactor, fds[0]), {.agreed = true});
  TestClient client(Socket(*reactor, fds[1]));
  const Result<void> asked = reactor->run(ask_without_handshake(client));
  ASSERT_TRUE(asked) << asked.error().message();
  ASSERT_TRUE(reactor->run(server->serve()));

  // It sees the end when hang_up() says so, and not before.
  char byte;
  EXPECT_EQ(recv(fds[1], &byte, 1, MSG_DONTWAIT), -1);
  server->hang_up();
  EXPECT_EQ(recv(fds[1], &byte, 1, MSG_DONTWAIT), 0);
}

TEST_P(NbdServer, BadClientsAreReportedAndCounted) {
  std::vector<std::string> heard;
  options.report = [&heard](const Error& error) { heard.push_back(error.message()); };
  serve_for([](NbdServer& t) -> Task<void> {
    const std::unique_ptr<TestClient> client = co_await connect(t);
    co_await client->attach();
    co_await client->send(bytes_of(std::string_view("GET / HTTP/1.1\r\nHost: example\r\n\r\n")));
    EXPECT_TRUE(co_await client->at_end());
    co_await t.until([](NbdServer& s) { return s.server->statistics().connections_failed == 1; });
  });
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_NE(heard[0].find("a request starts with"), std::string::npos) << heard[0];
}

}  // namespace
}  // namespace byre::nbd
