// SPDX-License-Identifier: Apache-2.0
/// Sessions in the simulator, with clients that hang up at each point, and over real sockets.
#include "daemon/qmp_session.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <memory>
#include <string>
#include <vector>

#include "sim/sim_reactor.h"
#include "sim/sim_socket.h"

namespace byre::qmp {
namespace {

Reactor* g_reactor = nullptr;
int g_done = 0;

struct Echo {
  std::string text;
};
const Struct& definition_of(const Echo*) {
  static const Struct kStruct({field("text", &Echo::text, "what comes back")});
  return kStruct;
}
Task<Json> nothing(Call&, Nothing) { co_return Json(); }
Task<Json> echo(Call&, Echo args) {
  ++g_done;
  co_return Json(args.text);
}
Task<Json> slow(Call&, Nothing) {
  co_await g_reactor->sleep(kMillisecond);
  ++g_done;
  co_return Json("slow");
}
Task<Json> broken(Call& call, Nothing) {
  call.failure_class = "DeviceNotActive";
  co_return invalid("it is broken");
}
const Command<> kCapabilities({.name = "qmp_capabilities", .help = ".", .run = nothing});
const Command<Echo> kEcho({.name = "echo", .help = ".", .run = echo});
const Command<> kSlow({.name = "slow", .help = ".", .run = slow});
const Command<Echo> kAtOnce({.name = "at-once", .help = ".", .run = echo, .at_once = true});
const Command<> kBroken({.name = "broken", .help = ".", .run = broken});

/// A monitor with one client.
class World {
 public:
  World(Reactor& r, Socket server, Socket c, Session::Options options)
      : reactor(r),
        turn(r.ready()),
        realm{.commands = set, .turn = turn, .version = {{"package", "test"}}},
        channel(r, std::move(server)),
        client(std::move(c)),
        session(r, channel, realm, options) {
    set.add(kCapabilities);
    set.add(kEcho);
    set.add(kSlow);
    set.add(kAtOnce);
    set.add(kBroken);
    g_reactor = &r;
    g_done = 0;
  }
  Reactor& reactor;
  CommandSet set;
  Mutex turn;
  Realm realm;
  Channel channel;
  Socket client;
  Session session;
  /// What ends the connection, for the client and for the server; a simulated socket does not see
  /// shutdown().
  std::function<void()> client_leaves = [this] { client.shutdown(); };
  std::function<void()> server_leaves = [] {};

  Task<Json> line() {
    std::string text;
    while (!text.ends_with("\r\n")) {
      std::byte one;
      if (!co_await client.receive_all({&one, 1})) co_return Json("end");
      text += static_cast<char>(one);
    }
    co_return Json::parse(text);
  }
  Task<void> send(std::string text) { co_await client.send_all(bytes_of(std::string_view(text))); }
  Task<Json> ask(std::string text) {
    co_await send(std::move(text));
    co_return co_await line();
  }
};

std::unique_ptr<World> simulated(SimReactor& sim, Session::Options options = {.linger_ns = 0}) {
  const auto [server, client] = SimSocket::make_pair(sim);
  auto world = std::make_unique<World>(sim, Socket(sim, server), Socket(sim, client), options);
  world->client_leaves = [&sim, fd = client] { SimSocket::hang_up(sim, fd); };
  world->server_leaves = [&sim, fd = server] { SimSocket::hang_up(sim, fd); };
  return world;
}

Task<void> with_session(World& world, Task<void> client, Result<void>& ended) {
  Scope scope(world.reactor.ready());
  scope.spawn(std::move(client));
  ended = co_await world.session.run().result();
  world.server_leaves();
  co_await scope.join();
}

Task<void> converse(World& w) {
  const Json greeting = co_await w.line();
  EXPECT_EQ(greeting["QMP"]["version"]["package"], "test");
  EXPECT_TRUE(greeting["QMP"]["capabilities"].is_array());
  const auto refused = [](const Json& answer) {
    return answer.contains("error") ? answer["error"]["class"].get<std::string>() : "";
  };
  EXPECT_EQ(refused(co_await w.ask(R"({"execute":"echo","arguments":{"text":"x"}})")),
            "CommandNotFound");
  EXPECT_EQ(co_await w.ask(R"({"execute":"qmp_capabilities","id":1})"),
            Json::parse(R"({"return": {}, "id": 1})"));
  EXPECT_EQ(refused(co_await w.ask(R"({"execute":"qmp_capabilities"})")), "CommandNotFound");
  EXPECT_EQ(co_await w.ask(R"({"execute":"echo","arguments":{"text":"x"},"id":[1,{"a":null}]})"),
            Json::parse(R"({"return": "x", "id": [1, {"a": null}]})"));
  EXPECT_EQ(
      co_await w.ask(R"({"execute":"nosuch","id":2})"),
      Json::parse(
          R"({"error": {"class": "CommandNotFound", "desc": "The command nosuch has not been found"},
          "id": 2})"));
  EXPECT_EQ(refused(co_await w.ask(R"({"execute":"broken"})")), "DeviceNotActive");
  for (const char* bad : {"[]", "1 ", R"({"a":1})", R"({"execute":1})", "{]", "{}",
                          R"({"execute":"slow","arguments":[]})", R"({"execute":"slow","x":1})"}) {
    EXPECT_EQ(refused(co_await w.ask(bad)), "GenericError") << bad;
  }
  // Several at once: answered in order.
  co_await w.send(R"({"execute":"slow","id":1}{"execute":"echo","arguments":{"text":"y"},"id":2})");
  EXPECT_EQ((co_await w.line())["id"], 1);
  EXPECT_EQ((co_await w.line())["id"], 2);
  w.client_leaves();
}

TEST(QmpSession, SpeaksTheProtocol) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SimReactor sim(seed);
    const auto world = simulated(sim);
    Result<void> ended;
    ASSERT_TRUE(sim.run(with_session(*world, converse(*world), ended)));
    EXPECT_TRUE(ended) << ended.error().message();
  }
}

/// Sends all, reads `count` bytes, and hangs up.
Task<void> leave_after(World& w, std::string text, size_t count) {
  (void)co_await w.send(std::move(text)).result();
  for (size_t i = 0; i < count; ++i) {
    std::byte one;
    const Result<bool> got = co_await w.client.receive_all({&one, 1}).result();
    if (!got || !*got) break;
  }
  w.client_leaves();
}

TEST(QmpSession, AClientMayHangUpAtAnyPoint) {
  const std::string text =
      R"({"execute":"qmp_capabilities"}{"execute":"slow"}{"execute":"echo","arguments":{"text":")" +
      std::string(300, 'x') + R"("}}{"execute":"slow"})";
  int all = 0;
  // All answers together have 425 bytes.
  for (size_t count = 0; count <= 420; count += 7) {
    SimReactor sim(count + 1);
    const auto world = simulated(sim);
    Result<void> ended;
    ASSERT_TRUE(sim.run(with_session(*world, leave_after(*world, text, count), ended)));
    all += g_done == 3;
    EXPECT_FALSE(world->turn.locked());
  }
  EXPECT_GT(all, 0);  // What came whole is carried out.
}

Task<void> crowd(World& w) {
  (void)co_await w.line();
  (void)co_await w.ask(R"({"execute":"qmp_capabilities"})");
  const Json answer = co_await w.ask(R"({"execute":"echo","arguments":{"text":")" +
                                     std::string(300, 'x') + R"("}})");
  EXPECT_EQ(answer["error"]["desc"], "JSON value of more than 256 bytes");
  EXPECT_EQ(co_await w.line(), Json("end"));
}

TEST(QmpSession, ALimitThatIsCrossedEndsItAndTheClientIsTold) {
  SimReactor sim(1);
  const auto world = simulated(sim, {.limits = {.text_max = 256}, .linger_ns = 0});
  Result<void> ended;
  ASSERT_TRUE(sim.run(with_session(*world, crowd(*world), ended)));
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().message(), "JSON value of more than 256 bytes");
}

Task<void> hear_events(World& w) {
  const Json event = {{"event", "X"}, {"data", std::string(1000, 'x')}};
  (void)co_await w.line();
  w.session.send_event(event);  // Not yet.
  (void)co_await w.ask(R"({"execute":"qmp_capabilities"})");
  w.session.send_event(event);
  EXPECT_EQ((co_await w.line())["event"], "X");
  // It does not read, and events go on.
  for (size_t i = 0; i < Session::kPendingMax / 1000 + 200; ++i) w.session.send_event(event);
  co_return;
}

TEST(QmpSession, WhoDoesNotReadEventsIsCutOff) {
  SimReactor sim(1);
  const auto world = simulated(sim);
  Result<void> ended;
  ASSERT_TRUE(sim.run(with_session(*world, hear_events(*world), ended)));
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().message(), "the client does not read its events");
}

Task<void> be_stopped(World& w) {
  (void)co_await w.line();
  (void)co_await w.ask(R"({"execute":"qmp_capabilities"})");
  co_await w.send(R"({"execute":"slow","id":1}{"execute":"slow","id":2})");
  co_await w.reactor.sleep(kMicrosecond);
  w.session.stop();
  Json last;
  for (Json line = co_await w.line(); line != Json("end"); line = co_await w.line()) last = line;
  if (g_done > 0) EXPECT_EQ(last["id"], g_done);  // What was begun is answered.
}

TEST(QmpSession, StopAnswersWhatRunsAndBeginsNothing) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SimReactor sim(seed);
    const auto world = simulated(sim);
    Result<void> ended;
    ASSERT_TRUE(sim.run(with_session(*world, be_stopped(*world), ended)));
    EXPECT_TRUE(ended);
  }
}

/// As a command of another monitor does that waits.
Task<void> hold_the_turn(World& w) {
  (void)co_await w.line();
  (void)co_await w.ask(R"({"execute":"qmp_capabilities"})");
  {
    const auto held = co_await w.turn.lock();
    const Json answer = co_await w.ask(R"({"execute":"at-once","arguments":{"text":"x"}})");
    EXPECT_EQ(answer["return"], "x");
    co_await w.send(R"({"execute":"echo","arguments":{"text":"y"}})");
    co_await w.reactor.sleep(kSecond);
    EXPECT_EQ(g_done, 1);
  }
  EXPECT_EQ((co_await w.line())["return"], "y");
  w.client_leaves();
}

TEST(QmpSession, WhatRunsAtOnceWaitsForNoOtherMonitor) {
  SimReactor sim(1);
  const auto world = simulated(sim);
  Result<void> ended;
  ASSERT_TRUE(sim.run(with_session(*world, hold_the_turn(*world), ended)));
  EXPECT_TRUE(ended);
  EXPECT_EQ(g_done, 2);
}

TEST(QmpSession, OverARealSocket) {
  for (const ReactorKind kind : {ReactorKind::uring, ReactorKind::posix}) {
    auto made = make_reactor(kind);
    if (!made) continue;
    Reactor& reactor = **made;
    int pair[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    World world(reactor, Socket(reactor, pair[0]), Socket(reactor, pair[1]), {});
    Result<void> ended;
    ASSERT_TRUE(reactor.run(with_session(world, converse(world), ended)));
    EXPECT_TRUE(ended) << ended.error().message();
  }
}

}  // namespace
}  // namespace byre::qmp
