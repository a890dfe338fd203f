// SPDX-License-Identifier: Apache-2.0
/// The client against byre's own server, over real sockets and in the simulator, and against
/// servers that a script plays: those that lose the connection, and those that lie.
#include "remote/nbd_client.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/prng.h"
#include "export/test_sockets.h"
#include "remote/nbd_covered.h"
#include "remote/whole_blocks.h"
#include "sim/sim_reactor.h"
#include "sim/sim_socket.h"

namespace byre::nbd {
namespace {

// --- Against byre's server -----------------------------------------------------------------------

class NbdClientTest : public SocketServerTest {
 public:
  using Body = Task<void> (*)(NbdClientTest&);

  void start_server() {
    server = std::make_unique<Server>(*reactor, options);
    ASSERT_TRUE(
        server->add_export({.name = "disk", .disk = Entrance::to(*disk), .writable = true}, true));
    ASSERT_TRUE(server->add_export({.name = "frozen", .disk = Entrance::to(*disk)}));
    auto listener = Listener::listen_unix(*reactor, path);
    ASSERT_TRUE(listener) << listener.error().message();
    server->add_listener(*std::move(listener), {});
    scope->spawn(server->serve());
  }
  Task<void> stop_server() {
    server->stop();
    co_await scope->join();
    server.reset();
  }
  void run(Body body) {
    scope = std::make_unique<Scope>(reactor->ready());
    start_server();
    Result<void> result = reactor->run(both(*this, body));
    EXPECT_TRUE(result) << result.error().message();
  }
  static Task<void> both(NbdClientTest& t, Body body) {
    Result<void> result = co_await body(t).result();
    if (t.client) (void)co_await t.client->close().result();
    if (t.server) co_await t.stop_server();
    co_await std::move(result);
  }
  Task<void> open(ClientOptions how = {}, std::string name = "disk") {
    how.server = {.socket = path, .host = {}, .export_name = std::move(name)};
    how.writable = true;
    client = co_await NbdClient::open(*reactor, std::move(how));
  }

  std::unique_ptr<Server> server;
  std::unique_ptr<Scope> scope;
  std::unique_ptr<NbdClient> client;
};
INSTANTIATE_TEST_SUITE_P(Real, NbdClientTest, kRealReactors, reactor_name);

TEST_P(NbdClientTest, ReadsWhatItWrote) {
  run([](NbdClientTest& t) -> Task<void> {
    co_await t.open();
    EXPECT_EQ(t.client->size(), 1 * MiB);
    EXPECT_TRUE(t.client->writable());
    for (const auto& [offset, size] :
         {std::pair<uint64_t, size_t>{0, 1}, {5, 4096}, {100'000, 200'000}, {0, 1 * MiB}}) {
      const std::vector<std::byte> data = noise(size, size);
      co_await t.client->write(offset, data, {});
      std::vector<std::byte> back(size);
      co_await t.client->read(offset, back, IoTag::none);
      EXPECT_TRUE(equal(back, data)) << size;
      EXPECT_TRUE(equal(Bytes(t.disk->bytes).subspan(offset, size), data));
    }
    EXPECT_FALSE(equal(t.disk->durable, t.disk->bytes));
    co_await t.client->flush(IoTag::flush);
    EXPECT_TRUE(equal(t.disk->durable, t.disk->bytes));
  });
}

TEST_P(NbdClientTest, ZeroesDiscardsAndAsksForStatus) {
  run([](NbdClientTest& t) -> Task<void> {
    co_await t.open();
    co_await t.client->write(0, noise(64 * KiB), {.fua = true});
    EXPECT_TRUE(equal(Bytes(t.disk->durable).first(64 * KiB), noise(64 * KiB)));
    co_await t.client->zero(4096, 8192, {.may_unmap = true});
    EXPECT_TRUE(t.disk->last_zero.may_unmap);
    co_await t.client->zero(16384, 4096, {.no_fallback = true, .fua = true});
    EXPECT_FALSE(t.disk->last_zero.may_unmap);
    EXPECT_TRUE(t.disk->last_zero.no_fallback);
    EXPECT_TRUE(is_zero(Bytes(t.disk->durable).subspan(16384, 4096)));
    co_await t.client->discard(32768, 4096, {});
    EXPECT_EQ(t.disk->discards, 1u);

    Extent extent = co_await t.client->status(0, 1 * MiB);
    EXPECT_EQ(extent.length, 4096u);
    EXPECT_TRUE(extent.data && !extent.zero);
    extent = co_await t.client->status(4096, 1 * MiB - 4096);
    EXPECT_TRUE(!extent.data && extent.zero);
    EXPECT_GE(extent.length, 4096u);
    extent = co_await t.client->status(16384, 512);
    EXPECT_EQ(extent.length, 512u);
    EXPECT_TRUE(extent.data && extent.zero);
  });
}

TEST_P(NbdClientTest, ManyRequestsAreInFlight) {
  run([](NbdClientTest& t) -> Task<void> {
    t.disk->delay_ns_max = kMillisecond;
    co_await t.open();
    const auto one = [](NbdClientTest& test, uint64_t i) -> Task<void> {
      const size_t size = 512 + i * 40;
      const std::vector<std::byte> data = noise(size, i);
      co_await test.client->write(i * 8192, data, {});
      std::vector<std::byte> back(size);
      co_await test.client->read(i * 8192, back, IoTag::none);
      EXPECT_TRUE(equal(back, data)) << i;
    };
    Scope requests(t.reactor->ready());
    for (uint64_t i = 0; i < 128; ++i) requests.spawn(one(t, i));
    co_await requests.join();
    EXPECT_GT(t.disk->running_max, 8u);
    EXPECT_LE(t.disk->running_max, NbdClient::kRequestsMax);
  });
}

TEST_P(NbdClientTest, AnErrorOfTheServerHasItsErrno) {
  run([](NbdClientTest& t) -> Task<void> {
    co_await t.open();
    std::vector<std::byte> data(512);
    t.disk->fail_read = EIO;
    const Result<void> read = co_await t.client->read(0, data, IoTag::none).result();
    EXPECT_EQ(read.error().sys_errno(), EIO);
    EXPECT_TRUE(read.error().message().starts_with("nbd+unix:///disk?socket=" + t.path));
    t.disk->fail_write = ENOSPC;
    const Result<void> write = co_await t.client->write(0, data, {}).result();
    EXPECT_EQ(write.error().code(), Errc::no_space);
    const Result<void> beyond = co_await t.client->read(1 * MiB - 1, data, IoTag::none).result();
    EXPECT_EQ(beyond.error().code(), Errc::invalid);
    t.disk->fail_read = 0;
    co_await t.client->read(0, data, IoTag::none);
  });
}

TEST_P(NbdClientTest, AReadOnlyExportAndOneThatIsNotThereSaySo) {
  run([](NbdClientTest& t) -> Task<void> {
    const Result<void> none = co_await t.open({}, "nothing").result();
    EXPECT_EQ(none.error().code(), Errc::not_found);
    co_await t.open({}, "frozen");
    EXPECT_FALSE(t.client->writable());
    const std::vector<std::byte> data(512);
    const Result<void> written = co_await t.client->write(0, data, {}).result();
    EXPECT_EQ(written.error().code(), Errc::read_only);
  });
}

TEST_P(NbdClientTest, AServerThatComesBackGoesOnServing) {
  run([](NbdClientTest& t) -> Task<void> {
    co_await t.open({.reconnect_delay_ns = 20 * kSecond});
    co_await t.client->write(0, noise(4096), {});
    co_await t.stop_server();
    const auto restart = [](NbdClientTest& test) -> Task<void> {
      co_await test.reactor->sleep(200 * kMillisecond);
      test.start_server();
    };
    const auto write = [](NbdClientTest& test, uint64_t i) -> Task<void> {
      co_await test.client->write(i * 8192, noise(8192, i), {});
    };
    Scope both(t.reactor->ready());
    both.spawn(restart(t));
    for (uint64_t i = 1; i < 20; ++i) both.spawn(write(t, i));
    co_await both.join();
    EXPECT_EQ(t.client->reconnects(), 1u);
    for (uint64_t i = 1; i < 20; ++i) {
      EXPECT_TRUE(equal(Bytes(t.disk->bytes).subspan(i * 8192, 8192), noise(8192, i)));
    }
  });
}

TEST_P(NbdClientTest, WithoutADelayRequestsFailAtOnceAndLaterOnesWorkAgain) {
  run([](NbdClientTest& t) -> Task<void> {
    co_await t.open();
    co_await t.stop_server();
    std::vector<std::byte> data(512);
    EXPECT_FALSE(co_await t.client->read(0, data, IoTag::none).result());
    EXPECT_FALSE(co_await t.client->read(0, data, IoTag::none).result());
    t.start_server();
    Result<void> read;
    for (int i = 0; i < 1000; ++i) {
      read = co_await t.client->read(0, data, IoTag::none).result();
      if (read) break;
      co_await t.reactor->sleep(10 * kMillisecond);
    }
    EXPECT_TRUE(read);
  });
}

TEST_P(NbdClientTest, AServerThatStaysAwayFailsRequestsAfterTheDelay) {
  run([](NbdClientTest& t) -> Task<void> {
    co_await t.open({.reconnect_delay_ns = 300 * kMillisecond});
    co_await t.stop_server();
    const Instant begun = t.reactor->now();
    std::vector<std::byte> data(512);
    EXPECT_FALSE(co_await t.client->read(0, data, IoTag::none).result());
    EXPECT_GE(t.reactor->now() - begun, 250 * kMillisecond);
    EXPECT_TRUE(co_await t.client->close().result());
  });
}

TEST_P(NbdClientTest, AnExportOfAnotherSizeIsNotTheSame) {
  run([](NbdClientTest& t) -> Task<void> {
    co_await t.open({.reconnect_delay_ns = 20 * kSecond});
    co_await t.stop_server();
    t.disk = std::make_unique<TestDevice>(*t.reactor, 2 * MiB);
    t.start_server();
    std::vector<std::byte> data(512);
    for (int i = 0; i < 2; ++i) {
      const Result<void> read = co_await t.client->read(0, data, IoTag::none).result();
      EXPECT_TRUE(!read &&
                  read.error().message().find("came back with 2097152") != std::string::npos);
    }
  });
}

TEST_P(NbdClientTest, OpeningWaitsForAServer) {
  run([](NbdClientTest& t) -> Task<void> {
    co_await t.stop_server();
    EXPECT_FALSE(co_await t.open().result());
    const auto start = [](NbdClientTest& test) -> Task<void> {
      co_await test.reactor->sleep(200 * kMillisecond);
      test.start_server();
    };
    Scope starting(t.reactor->ready());
    starting.spawn(start(t));
    co_await t.open({.open_timeout_ns = 20 * kSecond});
    co_await starting.join();
  });
}

// --- Servers that a script plays -----------------------------------------------------------------

/// A coroutine function of one argument, whatever it holds; lives until its task has ended.
template <class Argument>
class Act {
 public:
  Act() = default;
  template <class Function>
    requires(!std::is_same_v<std::remove_cvref_t<Function>, Act>)
  Act(Function function)
      : make_([function](std::optional<Task<void>>& out, Argument& argument) {
          out.emplace(function(argument));
        }) {}
  explicit operator bool() const { return bool(make_); }
  Task<void> operator()(Argument& argument) const {
    std::optional<Task<void>> task;
    make_(task, argument);
    co_await *std::move(task);
  }

 private:
  std::function<void(std::optional<Task<void>>&, Argument&)> make_;
};

/// What the server of a script offers, and does once it is attached.
struct Script {
  uint64_t size = 1 * MiB;
  uint16_t flags = kHasFlags | kSendFlush | kSendFua | kSendTrim | kSendWriteZeroes;
  std::optional<BlockSizeInfo> blocks;
  bool structured = true;
  bool knows_go = true;
  Act<class Scripted> serve = {};
};

class Scripted {
 public:
  Scripted(SimReactor& reactor, int fd, const Script& script)
      : reactor_(reactor), fd_(fd), socket_(reactor, fd), intake_(socket_), script_(script) {}

  Task<void> run() {
    co_await shake_hands();
    if (script_.serve) co_await script_.serve(*this);
    SimSocket::hang_up(reactor_, fd_);
  }
  /// Its payload, if it is a write, is in `payload`.  None: the client has gone.
  Task<std::optional<Request>> next() {
    if (!co_await intake_.need(sizeof(RequestWire))) co_return std::optional<Request>();
    const Request request = co_await parse_request(intake_.have());
    intake_.take(sizeof(RequestWire));
    if (request.command == Command::disconnect) co_return std::optional<Request>();
    payload.clear();
    if (request.command == Command::write) {
      payload.resize(request.length);
      if (!co_await intake_.read(payload)) co_return std::optional<Request>();
    }
    co_return std::optional<Request>(request);
  }
  template <class Wire>
  Task<void> send(Wire wire, Bytes more = {}) {
    Text out(bytes_of(wire).begin(), bytes_of(wire).end());
    out.insert(out.end(), more.begin(), more.end());
    co_await socket_.send_all(out);
  }
  Task<void> send_text(Text text) { co_await socket_.send_all(text); }

  std::vector<std::byte> payload;

 private:
  Task<void> shake_hands() {
    Text out;
    append_greeting(out, kHandshakeFixedNewstyle | kHandshakeNoZeroes);
    co_await send_text(std::move(out));
    co_await intake_.need(4);
    intake_.take(4);
    for (;;) {
      co_await intake_.need(sizeof(OptionWire));
      const OptionHeader header = co_await parse_option_header(intake_.have());
      intake_.take(sizeof(OptionWire));
      co_await intake_.need(header.length);
      intake_.take(header.length);
      Text reply;
      bool done = false;
      const auto option = header.option;
      if (option == Option::export_name) {
        append_export(reply, {script_.size, script_.flags}, false);
        done = true;
      } else if (option == Option::go && script_.knows_go) {
        append_info(reply, option, ExportInfo{script_.size, script_.flags});
        if (script_.blocks) append_info(reply, option, *script_.blocks);
        append_reply(reply, option, OptionReply::ack);
        done = true;
      } else if (option == Option::structured_reply && script_.structured) {
        append_reply(reply, option, OptionReply::ack);
      } else if (option == Option::set_meta_context) {
        append_meta_context(reply, option, {.id = 7, .name = "base:allocation"});
        append_reply(reply, option, OptionReply::ack);
      } else {
        append_reply(reply, option, OptionReply::unsupported);
      }
      co_await send_text(std::move(reply));
      if (done) co_return;
    }
  }

  SimReactor& reactor_;
  const int fd_;
  Socket socket_;
  Intake intake_;
  const Script& script_;
};

/// Each runs in the simulator with several seeds.
class NbdClientScript : public ::testing::TestWithParam<uint64_t> {
 public:
  using Body = Act<NbdClientScript>;

  /// `scripts`: one for each connection; when there are no more, nobody listens.
  void run(std::vector<Script> all, Body body, ClientOptions how = {}) {
    scripts = std::move(all);
    how.server = {.host = "server", .port = 1, .export_name = "x"};
    how.writable = true;
    how.attempt_timeout_ns = 0;
    how.connect = [this]() -> Result<Socket> {
      if (used == scripts.size()) return Error(Errc::io, "nobody listens", ECONNREFUSED);
      const auto [ours, theirs] = SimSocket::make_pair(reactor, {.seed = GetParam() + used});
      servers.push_back(std::make_unique<Scripted>(reactor, theirs, scripts[used++]));
      ends.push_back(ours);
      scope.spawn(serve(*servers.back()));
      return Socket(reactor, ours);
    };
    const Result<void> result = reactor.run(play(*this, std::move(body), std::move(how)));
    EXPECT_TRUE(result) << result.error().message();
  }
  static Task<void> serve(Scripted& server) { (void)co_await server.run().result(); }
  static Task<void> play(NbdClientScript& t, Body body, ClientOptions how) {
    t.client = co_await NbdClient::open(t.reactor, std::move(how));
    Result<void> result = co_await body(t).result();
    (void)co_await t.client->close().result();
    for (const int end : std::exchange(t.ends, {})) SimSocket::hang_up(t.reactor, end);
    co_await t.scope.join();
    co_await std::move(result);
  }
  /// A read of 4096 bytes must fail with these words.
  static Body read_fails(std::string words) {
    return [words](NbdClientScript& t) -> Task<void> {
      std::vector<std::byte> data(4096);
      Result<void> read = co_await t.client->read(8192, data, IoTag::none).result();
      EXPECT_FALSE(read);
      if (read) co_return;
      EXPECT_NE(read.error().message().find(words), std::string::npos) << read.error().message();
      EXPECT_TRUE(read.error().message().starts_with("nbd://server:1/x"));
    };
  }

  SimReactor reactor{GetParam()};
  Scope scope{reactor.ready()};
  std::vector<Script> scripts;
  size_t used = 0;
  std::vector<std::unique_ptr<Scripted>> servers;
  std::vector<int> ends;  ///< The client's.
  std::unique_ptr<NbdClient> client;
};
INSTANTIATE_TEST_SUITE_P(Seeds, NbdClientScript, ::testing::Range<uint64_t>(1, 9));

/// Says yes to everything; reads are noise of their offset.
Task<void> serve_all(Scripted& server, std::vector<Request>& log) {
  while (const std::optional<Request> request = co_await server.next()) {
    log.push_back(*request);
    if (request->command == Command::read) {
      co_await server.send(make_data_chunk(request->cookie, request->offset, request->length, true),
                           noise(request->length, request->offset));
    } else {
      co_await server.send(make_simple_reply(request->cookie, Status::ok));
    }
  }
}
Act<Scripted> into(std::vector<Request>& log) {
  return [&log](Scripted& server) -> Task<void> { co_await serve_all(server, log); };
}

TEST_P(NbdClientScript, LargeRequestsAreSplitAtTheServersMaximum) {
  std::vector<Request> log;
  run({{.blocks = BlockSizeInfo{512, 4096, 65536}, .serve = into(log)}},
      [](NbdClientScript& t) -> Task<void> {
        EXPECT_EQ(t.client->alignment(), 512u);
        co_await t.client->write(512, noise(150'016), {});
        std::vector<std::byte> data(150'016);
        co_await t.client->read(0, data, IoTag::none);
        EXPECT_TRUE(equal(Bytes(data).first(65536), noise(65536, 0)));
        EXPECT_TRUE(equal(Bytes(data).subspan(131072), noise(18944, 131072)));
      });
  // The last is close()'s flush.
  ASSERT_EQ(log.size(), 7u);
  EXPECT_EQ(log[1].offset, 512u + 65536);
  EXPECT_EQ(log[2].length, 150'016u - 131072);
  EXPECT_EQ(log[6].command, Command::flush);
}

TEST_P(NbdClientScript, WithoutOffersThereAreOtherWays) {
  std::vector<Request> log;
  run({{.flags = kHasFlags | kSendFlush, .serve = into(log)}},
      [](NbdClientScript& t) -> Task<void> {
        co_await t.client->zero(0, 4096, {.fua = true});
        co_await t.client->discard(0, 4096, {});
        const Result<void> fast = co_await t.client->zero(0, 512, {.no_fallback = true}).result();
        EXPECT_EQ(fast.error().code(), Errc::unsupported);
      });
  ASSERT_EQ(log.size(), 2u);
  EXPECT_EQ(log[0].command, Command::write);
  EXPECT_EQ(log[0].flags, 0);
  EXPECT_EQ(log[1].command, Command::flush);
}

TEST_P(NbdClientScript, OldServersAreAttachedByNameAndAnswerSimply) {
  const auto serve = [](Scripted& server) -> Task<void> {
    while (const std::optional<Request> request = co_await server.next()) {
      const bool read = request->command == Command::read;
      co_await server.send(
          make_simple_reply(request->cookie, Status::ok),
          read ? noise(request->length, request->offset) : std::vector<std::byte>());
    }
  };
  run({{.structured = false, .knows_go = false, .serve = serve}},
      [](NbdClientScript& t) -> Task<void> {
        std::vector<std::byte> data(100'000);
        co_await t.client->read(7, data, IoTag::none);
        EXPECT_TRUE(equal(data, noise(100'000, 7)));
        const Extent extent = co_await t.client->status(0, 4096);
        EXPECT_TRUE(extent.data && !extent.zero && extent.length == 4096);
      });
}

TEST_P(NbdClientScript, ChunksMayComeInAnyOrder) {
  const auto serve = [](Scripted& server) -> Task<void> {
    while (const std::optional<Request> request = co_await server.next()) {
      const uint64_t at = request->offset;
      co_await server.send(make_data_chunk(request->cookie, at + 3000, 1096, false),
                           noise(1096, 3));
      co_await server.send(make_data_chunk(request->cookie, at, 1000, false), noise(1000, 1));
      co_await server.send(make_hole_chunk(request->cookie, at + 1000, 2000, false));
      co_await server.send(make_done(request->cookie));
    }
  };
  run({{.serve = serve}}, [](NbdClientScript& t) -> Task<void> {
    std::vector<std::byte> data(4096, std::byte{0xee});
    co_await t.client->read(4096, data, IoTag::none);
    EXPECT_TRUE(equal(Bytes(data).first(1000), noise(1000, 1)));
    EXPECT_TRUE(is_zero(Bytes(data).subspan(1000, 2000)));
    EXPECT_TRUE(equal(Bytes(data).subspan(3000), noise(1096, 3)));
  });
}

TEST_P(NbdClientScript, AnErrorInAChunkIsTheRequests) {
  const auto serve = [](Scripted& server) -> Task<void> {
    while (const std::optional<Request> request = co_await server.next()) {
      co_await server.send(make_error_chunk(request->cookie, Status::enospc, 4),
                           bytes_of(std::string_view("full")));
    }
  };
  run({{.serve = serve}}, read_fails("'full': No space left on device"));
}

TEST_P(NbdClientScript, ARequestThatWasNotAnsweredIsSentAgain) {
  std::vector<Request> first, second;
  const auto hang_up = [&first](Scripted& server) -> Task<void> {
    for (int i = 0; i < 3; ++i) {
      if (const std::optional<Request> request = co_await server.next()) first.push_back(*request);
    }
  };
  const auto body = [](NbdClientScript& t) -> Task<void> {
    const auto write = [](NbdClientScript& test, uint64_t i) -> Task<void> {
      co_await test.client->write(i * 4096, noise(4096, i), {});
    };
    Scope writes(t.reactor.ready());
    for (uint64_t i = 0; i < 10; ++i) writes.spawn(write(t, i));
    co_await writes.join();
    EXPECT_EQ(t.client->reconnects(), 1u);
  };
  run({{.serve = hang_up}, {.serve = into(second)}}, body, {.reconnect_delay_ns = 100 * kSecond});
  EXPECT_LE(first.size(), 3u);
  EXPECT_EQ(second.size(), 11u);  // And close()'s flush.
}

TEST_P(NbdClientScript, AServerThatIsAboutToLeaveIsComeBackTo) {
  std::vector<Request> log;
  const auto leave = [](Scripted& server) -> Task<void> {
    while (const std::optional<Request> request = co_await server.next()) {
      co_await server.send(make_simple_reply(request->cookie, Status::eshutdown));
    }
  };
  run({{.serve = leave}, {.serve = into(log)}},
      [](NbdClientScript& t) -> Task<void> { co_await t.client->flush(IoTag::flush); },
      {.reconnect_delay_ns = 100 * kSecond});
  EXPECT_EQ(log.size(), 1u);
}

TEST_P(NbdClientScript, AServerThatHangsUpOnARequestAgainAndAgainFailsIt) {
  std::vector<Script> many(
      2000, Script{.serve = [](Scripted& server) -> Task<void> { (void)co_await server.next(); }});
  run(std::move(many), read_fails("the server closed the connection"),
      {.reconnect_delay_ns = 50 * kMicrosecond});
}

TEST_P(NbdClientScript, AServerThatComesBackWithLessIsNotTheSame) {
  std::vector<Request> log;
  for (const Script& other :
       {Script{.size = 2 * MiB, .serve = into(log)}, Script{.flags = kHasFlags, .serve = into(log)},
        Script{.blocks = BlockSizeInfo{1, 4096, 4096}, .serve = into(log)}}) {
    used = 0;
    run({Script{}, other}, read_fails("came back"), {.reconnect_delay_ns = 100 * kSecond});
  }
  EXPECT_TRUE(log.empty());
}

/// Answers the first request with what `reply` sends.
template <class Reply>
Script lying(Reply reply) {
  return {.serve = [reply](Scripted& server) -> Task<void> {
    const std::optional<Request> request = co_await server.next();
    if (!request) co_return;
    co_await reply(server, *request);
    while (co_await server.next()) {
    }
  }};
}

TEST_P(NbdClientScript, AServerThatBreaksTheProtocolIsLeftForGood) {
  const std::vector<std::pair<std::string, Script>> lies = {
      {"starts with 0x42424242", lying([](Scripted& s, Request) -> Task<void> {
         co_await s.send_text(Text(32, std::byte{0x42}));
       })},
      {"a request that was not made", lying([](Scripted& s, Request r) -> Task<void> {
         co_await s.send(make_done(r.cookie + 1));
       })},
      {"with a simple reply", lying([](Scripted& s, Request r) -> Task<void> {
         co_await s.send(make_simple_reply(r.cookie, Status::ok), noise(r.length));
       })},
      {"only in part",
       lying([](Scripted& s, Request r) -> Task<void> { co_await s.send(make_done(r.cookie)); })},
      {"only in part", lying([](Scripted& s, Request r) -> Task<void> {
         co_await s.send(make_data_chunk(r.cookie, r.offset, 100, true), noise(100));
       })},
      {"data twice", lying([](Scripted& s, Request r) -> Task<void> {
         co_await s.send(make_data_chunk(r.cookie, r.offset, 4096, false), noise(4096));
         co_await s.send(make_hole_chunk(r.cookie, r.offset + 1, 1, true));
       })},
      {"not asked for", lying([](Scripted& s, Request r) -> Task<void> {
         co_await s.send(make_data_chunk(r.cookie, r.offset - 1, 4096, true), noise(4096));
       })},
      {"not asked for", lying([](Scripted& s, Request r) -> Task<void> {
         co_await s.send(make_hole_chunk(r.cookie, r.offset + 1, 4096, true));
       })},
      {"chunk of 4294967295 bytes", lying([](Scripted& s, Request r) -> Task<void> {
         ChunkWire wire = make_done(r.cookie);
         wire.type = static_cast<uint16_t>(ChunkType::offset_data);
         wire.length = UINT32_MAX;
         co_await s.send(wire);
       })},
      {"chunk of 65537 bytes", lying([](Scripted& s, Request r) -> Task<void> {
         ChunkWire wire = make_done(r.cookie);
         wire.type = static_cast<uint16_t>(ChunkType::error);
         wire.length = 65537;
         co_await s.send(wire);
       })},
      {"unknown type 3", lying([](Scripted& s, Request r) -> Task<void> {
         ChunkWire wire = make_done(r.cookie);
         wire.type = 3;
         co_await s.send(wire);
       })},
      {"block status that was not asked for", lying([](Scripted& s, Request r) -> Task<void> {
         co_await s.send(make_status_chunk(r.cookie, 7, 1, true),
                         bytes_of(DescriptorWire{.length = 4096, .flags = 0}));
       })},
  };
  for (const auto& [words, script] : lies) {
    used = 0;
    run({script, Script{}},
        [&words](NbdClientScript& t) -> Task<void> {
          for (int i = 0; i < 2; ++i) co_await read_fails(words)(t);
        },
        {.reconnect_delay_ns = 100 * kSecond});
    EXPECT_EQ(used, 1u) << words;
  }
}

TEST_P(NbdClientScript, AbandonEndsWhatRunsInTheBackground) {
  std::vector<Request> log;
  run({{.serve = into(log)}}, [](NbdClientScript& t) -> Task<void> {
    t.client->abandon();
    co_await t.reactor.sleep(kSecond);  // What is left then is found by the leak checker.
  });
}

// --- Helpers -------------------------------------------------------------------------------------

TEST(NbdCovered, HoldsAgainstAMapOfBytes) {
  Prng prng(1);
  for (int round = 0; round < 2000; ++round) {
    const uint64_t size = prng.next() % 20 + 1;
    Covered covered(size);
    std::vector<bool> model(size);
    for (int i = 0; i < 20; ++i) {
      const uint64_t offset = prng.next() % (size + 1);
      const uint64_t length = prng.next() % 6 + 1;
      bool good = offset + length <= size;
      for (uint64_t at = offset; good && at < offset + length; ++at) good = !model[at];
      ASSERT_EQ(covered.add(offset, length), good);
      for (uint64_t at = offset; good && at < offset + length; ++at) model[at] = true;
      bool whole = true;
      for (const bool byte : model) whole &= byte;
      ASSERT_EQ(covered.is_whole(), whole);
    }
  }
}

TEST(NbdCovered, TakesOnlySoManyPieces) {
  Covered covered(1 * MiB);
  for (uint64_t i = 0; i < Covered::kPiecesMax; ++i) ASSERT_TRUE(covered.add(2 * i + 1, 1));
  EXPECT_FALSE(covered.add(2 * Covered::kPiecesMax + 1, 1));
}

/// Fails the test on a request that is not whole.
class Strict final : public Forwarder {
 public:
  explicit Strict(Device& below) : Forwarder(below) {}
  uint32_t alignment() const override { return 512; }
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    EXPECT_TRUE(offset % 512 == 0 && data.size() % 512 == 0);
    co_await below().read(offset, data, options);
  }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    EXPECT_TRUE(offset % 512 == 0 && data.size() % 512 == 0);
    co_await below().write(offset, data, options);
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override {
    EXPECT_TRUE(offset % 512 == 0 && length % 512 == 0);
    co_await below().zero(offset, length, options);
  }
  Task<Extent> status(uint64_t offset, uint64_t length) override {
    EXPECT_TRUE(offset % 512 == 0 && length % 512 == 0);
    co_return co_await below().status(offset, length);
  }
};

Task<void> change_at_random(WholeBlocks& device, std::vector<std::byte>& model, uint64_t first,
                            uint64_t end, uint64_t seed) {
  Prng prng(seed);
  for (int i = 0; i < 60; ++i) {
    const uint64_t offset = first + prng.next() % (end - first);
    const uint64_t length = 1 + prng.next() % (end - offset);
    const std::vector<std::byte> data = noise(length, prng.next());
    if (prng.next() % 3 == 0) {
      co_await device.zero(offset, length, {});
      fill_zero(MutableBytes(model).subspan(offset, length));
    } else {
      co_await device.write(offset, data, {});
      copy(MutableBytes(model).subspan(offset, length), data);
    }
    std::vector<std::byte> back(length);
    co_await device.read(offset, back, IoTag::none);
    EXPECT_TRUE(equal(back, Bytes(model).subspan(offset, length)));
    EXPECT_LE((co_await device.status(offset, length)).length, length);
  }
}

TEST(WholeBlocks, NeighboursInABlockDoNotLoseTheirWrites) {
  for (uint64_t seed = 1; seed < 20; ++seed) {
    SimReactor reactor(seed);
    TestDevice disk(reactor, 8192 + 100);
    disk.delay_ns_max = kMillisecond;
    WholeBlocks device(Child(std::make_unique<Strict>(disk)));
    EXPECT_EQ(device.size(), 8192u);
    std::vector<std::byte> model(8192);
    const auto run = [&]() -> Task<void> {
      Scope writers(reactor.ready());
      for (uint64_t i = 0; i < 5; ++i) {
        const uint64_t share = 8192 / 5;
        writers.spawn(change_at_random(device, model, i * share, (i + 1) * share, seed * 10 + i));
      }
      co_await writers.join();
      co_await device.close();
    };
    const Result<void> result = reactor.run(run());
    ASSERT_TRUE(result) << result.error().message();
    EXPECT_TRUE(equal(Bytes(disk.bytes).first(8192), model));
  }
}

}  // namespace
}  // namespace byre::nbd
