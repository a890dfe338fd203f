// SPDX-License-Identifier: Apache-2.0
/// A client and servers that break off, go silent, or answer what was not asked.
#include "daemon/qmp_client.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "coro/scope.h"
#include "sim/sim_reactor.h"
#include "sim/sim_socket.h"

namespace byre::qmp {
namespace {

constexpr std::string_view kGreeting = R"({"QMP": {"version": {}, "capabilities": []}})"
                                       "\r\n";
constexpr std::string_view kWelcome = R"({"return": {}, "id": 1})"
                                      "\r\n";

/// A server that says `text`, whatever it is asked, and then hangs up or stays.
struct World {
  World(SimReactor& s, std::string t, bool hangs_up, Client::Options options)
      : sim(s), text(std::move(t)), leaves(hangs_up) {
    const auto [there, here] = SimSocket::make_pair(sim);
    fd = there;
    server = Socket(sim, there);
    client.emplace(sim, Socket(sim, here), options);
  }
  SimReactor& sim;
  const std::string text;
  const bool leaves;
  int fd = -1;
  Socket server;
  std::optional<Client> client;
  Result<Json> answer = Json();

  Task<void> serve() {
    if (!text.empty()) (void)co_await server.send_all(bytes_of(std::string_view(text))).result();
    if (leaves) SimSocket::hang_up(sim, fd);
  }
  Task<Json> talk() {
    co_await client->negotiate();
    co_return co_await client->ask("query", Json::object());
  }
  Task<void> run() {
    Scope scope(sim.ready());
    scope.spawn(serve());
    answer = co_await talk().result();
    co_await scope.join();
  }
};

Result<Json> talk_to(uint64_t seed, std::string text, bool hangs_up = false,
                     Client::Options options = Client::Options()) {
  SimReactor sim(seed);
  World world(sim, std::move(text), hangs_up, options);
  EXPECT_TRUE(sim.run(world.run()));
  return std::move(world.answer);
}

TEST(QmpClient, AsksAndIsAnswered) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const Result<Json> answer =
        talk_to(seed, cat(kGreeting, kWelcome, R"({"event": "X"}{"return": [1, 2], "id": 2})"));
    ASSERT_TRUE(answer) << answer.error().message();
    EXPECT_EQ(*answer, Json::parse("[1, 2]"));
  }
}

TEST(QmpClient, AServerMayHangUpAtAnyPoint) {
  const std::string text = cat(kGreeting, kWelcome, R"({"return": "whole", "id": 2})");
  for (size_t count = 0; count < text.size(); ++count) {
    const Result<Json> answer = talk_to(count + 1, text.substr(0, count), true);
    ASSERT_FALSE(answer) << count;
    EXPECT_EQ(answer.error().code(), Errc::io) << answer.error().message();
    EXPECT_NE(answer.error().message().find("hung up"), std::string::npos);
  }
}

TEST(QmpClient, WaitsForAGreetingOnlySoLong) {
  for (const size_t count : {size_t{0}, size_t{10}}) {
    const Result<Json> answer = talk_to(1, std::string(kGreeting.substr(0, count)));
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().code(), Errc::busy);
    EXPECT_NE(answer.error().message().find("no greeting came in 10 seconds"), std::string::npos);
  }
}

TEST(QmpClient, OthersThanQmpAreToldApart) {
  for (const char* text :
       {"NBDMAGIC", "220 mail", "[1]", R"({"hello": 1})", R"({"QMP": 1})", R"({"QMP" 1})", "{]"}) {
    const Result<Json> answer = talk_to(1, text);
    ASSERT_FALSE(answer) << text;
    EXPECT_EQ(answer.error().code(), Errc::unsupported) << text;
    EXPECT_NE(answer.error().message().find("does not speak QMP"), std::string::npos);
  }
}

TEST(QmpClient, KeepsNoMoreThanItsLimit) {
  const std::string text =
      cat(kGreeting, kWelcome, R"({"return": ")", std::string(1000, 'x'), R"(", "id": 2})");
  EXPECT_TRUE(talk_to(1, text));
  const Result<Json> answer = talk_to(1, text, false, {.limits = {.text_max = 512}});
  ASSERT_FALSE(answer);
  EXPECT_NE(answer.error().message().find("more than 512 bytes"), std::string::npos);
}

TEST(QmpClient, RefusalsSayWhatKindTheyAre) {
  const std::pair<const char*, Errc> kinds[] = {{"CommandNotFound", Errc::unsupported},
                                                {"DeviceNotFound", Errc::not_found},
                                                {"DeviceNotActive", Errc::not_found},
                                                {"GenericError", Errc::invalid}};
  for (const auto& [name, code] : kinds) {
    const Result<Json> answer = talk_to(1, cat(kGreeting, kWelcome, R"({"error": {"class": ")",
                                               name, R"(", "desc": "because"}, "id": 2})"));
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().code(), code);
    EXPECT_EQ(answer.error().message(), "because");
  }
}

TEST(QmpClient, AnAnswerToAnotherQuestionIsNone) {
  const Result<Json> answer = talk_to(
      1, cat(kGreeting, kWelcome, R"({"return": "old", "id": 1}{"return": "new", "id": 2})"));
  ASSERT_TRUE(answer);
  EXPECT_EQ(*answer, Json("new"));
}

}  // namespace
}  // namespace byre::qmp
