// SPDX-License-Identifier: Apache-2.0
/// Sessions against clients good and bad.  Each test runs in the simulator with several seeds, and
/// over a socket pair on each real reactor that this machine allows.
#include "export/nbd_session.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <memory>
#include <string>
#include <vector>

#include "base/prng.h"
#include "export/test_client.h"
#include "export/test_device.h"
#include "sim/sim_reactor.h"
#include "sim/sim_socket.h"

namespace byre::nbd {
namespace {

constexpr uint64_t kDiskSize = 4 * MiB;

std::vector<std::byte> pattern(size_t size, uint64_t seed) {
  Prng prng(seed);
  std::vector<std::byte> out(size);
  for (std::byte& byte : out) byte = static_cast<std::byte>(prng.next() | 1);
  return out;
}

struct Where {
  std::string name;
  std::optional<ReactorKind> real;
  uint64_t seed = 0;
};
std::vector<Where> everywhere() {
  std::vector<Where> all;
  for (uint64_t seed = 1; seed <= 12; ++seed) all.push_back({cat("sim", seed), std::nullopt, seed});
  all.push_back({"uring", ReactorKind::uring});
  all.push_back({"threads", ReactorKind::posix});
  return all;
}

class NbdSession : public ::testing::TestWithParam<Where> {
 public:
  void SetUp() override {
    if (GetParam().real) {
      auto made = make_reactor(*GetParam().real);
      if (!made) GTEST_SKIP() << made.error().message();
      reactor = *std::move(made);
    } else {
      auto made = std::make_unique<SimReactor>(GetParam().seed);
      sim = made.get();
      reactor = std::move(made);
    }
    // In the simulator any timer can be due before the next coroutine runs.
    limits.handshake_timeout_ns = limits.linger_timeout_ns = sim ? 0 : 20 * kSecond;
    disk = std::make_unique<TestDevice>(*reactor, kDiskSize);
    // Requests overtake one another.
    disk->delay_ns_max = sim ? 2 * kMillisecond : 20 * kMicrosecond;
    ASSERT_TRUE(exports.add({.name = "disk", .disk = Entrance::to(*disk), .writable = true}));
    ASSERT_TRUE(exports.add({.name = "frozen", .disk = Entrance::to(*disk)}));
    memory = std::make_unique<Semaphore>(reactor->ready(), 256 * MiB);
    shared = std::make_unique<Session::Shared>(
        Session::Shared{exports, statistics, *memory,
                        [this](const Error& error) { reports.push_back(error.message()); }});
  }

  struct Ends {
    Socket server, client;
    int server_fd, client_fd;
  };
  Ends connect() {
    int fds[2];
    if (sim) {
      std::tie(fds[0], fds[1]) = SimSocket::make_pair(*sim, {.seed = GetParam().seed});
    } else {
      EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    }
    return {Socket(*reactor, fds[0]), Socket(*reactor, fds[1]), fds[0], fds[1]};
  }
  /// What the kernel does when a process closes its end.
  void close_end(int fd) {
    if (sim) {
      SimSocket::hang_up(*sim, fd);
    } else {
      ::shutdown(fd, SHUT_RDWR);
    }
  }

  /// One client's part.
  using Body = Task<void> (*)(NbdSession&, TestClient&);

  /// Runs `body` as the client of one session, to the end of both.
  void converse(Body body) {
    Result<void> result = reactor->run(conversation(*this, body, nullptr));
    EXPECT_TRUE(result) << result.error().message();
  }
  /// The same, without caring how the client fares: one that breaks the protocol.
  void misbehave(Body body, Body second = nullptr) {
    Result<void> ignored = reactor->run(conversation(*this, body, second));
  }
  void converse_twice(Body body, Body second) {
    Result<void> result = reactor->run(conversation(*this, body, second));
    EXPECT_TRUE(result) << result.error().message();
  }

  static Task<void> conversation(NbdSession& t, Body body, Body second) {
    Scope clients(t.reactor->ready());
    clients.spawn(one_client(t, body));
    if (second) clients.spawn(one_client(t, second));
    co_await clients.join();
  }
  static Task<void> one_client(NbdSession& t, Body body) {
    Ends ends = t.connect();
    Session session(*t.reactor, std::move(ends.server), *t.shared, t.limits, {.clients_max = 8});
    t.session = &session;
    Scope server(t.reactor->ready());
    server.spawn(serve(t, session, ends.server_fd));
    Result<void> result;
    {
      TestClient client(std::move(ends.client));
      result = co_await body(t, client).result();
      t.close_end(ends.client_fd);
    }
    co_await server.join();
    t.session = nullptr;
    if (!result) co_await fail(std::move(result).error());
  }
  static Task<void> serve(NbdSession& t, Session& session, int fd) {
    Result<void> result = co_await session.run().result();
    t.ended = result ? "well" : result.error().message();
    t.close_end(fd);
  }

  std::unique_ptr<Reactor> reactor;
  SimReactor* sim = nullptr;
  std::unique_ptr<TestDevice> disk;
  std::unique_ptr<TestDevice> another;  ///< Like `disk`, it outlives the exports.
  Exports exports;
  Statistics statistics;
  std::unique_ptr<Semaphore> memory;
  std::unique_ptr<Session::Shared> shared;
  SessionLimits limits;
  Session* session = nullptr;
  std::vector<std::string> reports;
  std::string ended;  ///< How the last session did.
};

INSTANTIATE_TEST_SUITE_P(Everywhere, NbdSession, ::testing::ValuesIn(everywhere()),
                         [](const auto& info) { return info.param.name; });

// ---- Good clients -----------------------------------------------------------------------------

Task<void> writes_and_reads(NbdSession&, TestClient& client) {
  const auto data = pattern(8192, 1);
  Answer answer = co_await client.call(
      {.command = Command::write, .cookie = 1, .offset = 4096, .length = 8192}, data);
  EXPECT_EQ(answer.status, Status::ok);
  answer =
      co_await client.call({.command = Command::read, .cookie = 2, .offset = 4096, .length = 8192});
  EXPECT_EQ(answer.status, Status::ok);
  EXPECT_TRUE(equal(answer.data, data));
  co_await client.ask({.command = Command::disconnect});
  EXPECT_TRUE(co_await client.at_end());
}

TEST_P(NbdSession, WhatWasWrittenIsRead) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    co_await writes_and_reads(t, client);
  });
  EXPECT_EQ(ended, "well");
  EXPECT_EQ(statistics.requests, 2u);
  EXPECT_EQ(statistics.bytes_read, 8192u);
  EXPECT_EQ(statistics.bytes_written, 8192u);
  EXPECT_EQ(statistics.requests_running, 0u);
}

TEST_P(NbdSession, WithoutStructuredRepliesToo) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach({.structured = false});
    EXPECT_FALSE(client.flags() & kSendDf);
    co_await writes_and_reads(t, client);
  });
  EXPECT_EQ(ended, "well");
}

// Many requests of all kinds at once, against a model in lockstep; each client keeps to its own
// quarter of the disk, so the model knows the outcome whatever the order.
Task<void> storm(NbdSession& t, TestClient& client, uint64_t part, uint64_t seed) {
  co_await client.attach({.contexts = true});
  constexpr uint64_t kPart = kDiskSize / 4;
  constexpr uint64_t kSlots = 16;
  constexpr uint64_t kSlot = kPart / kSlots;
  Prng prng(seed);
  std::vector<std::byte> model(t.disk->bytes.begin() + static_cast<ptrdiff_t>(part * kPart),
                               t.disk->bytes.begin() + static_cast<ptrdiff_t>((part + 1) * kPart));
  std::map<uint64_t, Request> running;  // By slot; at most one request a slot, its cookie.
  size_t asked = 0;
  while (asked < 150 || !running.empty()) {
    const uint64_t slot = prng.below(kSlots);
    if (asked < 150 && !running.contains(slot)) {
      ++asked;
      const uint64_t inside = prng.below(kSlot - 1);
      Request request{.cookie = slot,
                      .offset = part * kPart + slot * kSlot + inside,
                      .length = static_cast<uint32_t>(prng.between(1, kSlot - inside))};
      const MutableBytes place(model.data() + slot * kSlot + inside, request.length);
      std::vector<std::byte> payload;
      switch (prng.below(5)) {
        case 0:
        case 1:
          request.command = Command::read;
          if (prng.one_in(3)) request.flags = kDf;
          break;
        case 2:
          request.command = Command::write_zeroes;
          if (prng.one_in(2)) request.flags = kNoHole;
          fill_zero(place);
          break;
        default:
          request.command = Command::write;
          if (prng.one_in(4)) request.flags = kFua;
          payload = pattern(request.length, prng.next());
          copy(place, payload);
          break;
      }
      running[slot] = request;
      co_await client.ask(request, payload);
      if (running.size() < kSlots && !prng.one_in(3)) continue;
    }
    if (running.empty()) continue;
    const Answer answer = co_await client.answer();
    const Request request = running.at(answer.cookie);
    running.erase(answer.cookie);
    EXPECT_EQ(answer.status, Status::ok) << answer.message;
    if (request.command == Command::read) {
      const uint64_t at = request.offset - part * kPart;
      EXPECT_TRUE(equal(answer.data, Bytes(model).subspan(at, request.length)));
    }
  }
  const Answer all =
      co_await client.call({.cookie = 99, .offset = part * kPart, .length = uint32_t{kPart}});
  EXPECT_TRUE(equal(all.data, model));
  co_await client.ask({.command = Command::disconnect});
}

TEST_P(NbdSession, AStormOfRequestsKeepsEveryByte) {
  converse_twice(
      [](NbdSession& t, TestClient& client) -> Task<void> {
        co_await storm(t, client, 0, GetParam().seed + 100);
      },
      [](NbdSession& t, TestClient& client) -> Task<void> {
        co_await storm(t, client, 1, GetParam().seed + 200);
      });
  EXPECT_GT(disk->running_max, 1u);  // They did run side by side.
  EXPECT_EQ(statistics.requests_running, 0u);
}

TEST_P(NbdSession, AnswersComeInTheOrderOfTheirEnd) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    t.disk->opener.reset();
    co_await client.ask({.command = Command::read, .cookie = 1, .length = 512});
    co_await client.ask({.command = Command::cache, .cookie = 2, .length = 512});
    EXPECT_EQ((co_await client.answer()).cookie, 2u);
    t.disk->opener.set();
    EXPECT_EQ((co_await client.answer()).cookie, 1u);
  });
}

TEST_P(NbdSession, LargeRequestsPassWhole) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    const auto data = pattern(kDiskSize, 7);
    Answer answer = co_await client.call(
        {.command = Command::write, .cookie = 1, .length = uint32_t{kDiskSize}}, data);
    EXPECT_EQ(answer.status, Status::ok);
    answer = co_await client.call({.cookie = 2, .length = uint32_t{kDiskSize}});
    EXPECT_TRUE(equal(answer.data, data));
    EXPECT_EQ(answer.chunks, std::vector{ChunkType::offset_data});
    answer = co_await client.call({.flags = kDf, .cookie = 3, .length = uint32_t{kDiskSize}});
    EXPECT_TRUE(equal(answer.data, data));
    EXPECT_EQ(t.disk->statuses, 1024u);  // DF asks for no extents: only the first read did.
  });
}

TEST_P(NbdSession, ZerosAreSentAsHolesUnlessDfForbidsIt) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    // Data, 1 MiB of nothing, data; and a hole too short for a chunk of its own.
    const auto data = pattern(4096, 3);
    copy(MutableBytes(t.disk->bytes), data);
    copy(MutableBytes(t.disk->bytes).subspan(8192), data);
    copy(MutableBytes(t.disk->bytes).subspan(MiB), data);
    Request read{.cookie = 1, .offset = 0, .length = uint32_t{2 * MiB}};
    Answer answer = co_await client.call(read);
    EXPECT_TRUE(equal(answer.data, Bytes(t.disk->bytes).first(2 * MiB)));
    EXPECT_EQ(answer.chunks, (std::vector{ChunkType::offset_data, ChunkType::offset_hole,
                                          ChunkType::offset_data, ChunkType::offset_hole}));
    read.flags = kDf;
    answer = co_await client.call(read);
    EXPECT_TRUE(equal(answer.data, Bytes(t.disk->bytes).first(2 * MiB)));
    EXPECT_EQ(answer.chunks, std::vector{ChunkType::offset_data});
    // Nothing but zeros is one chunk either way.
    read = {.cookie = 2, .offset = uint32_t{3 * MiB}, .length = uint32_t{MiB}};
    for (const uint16_t flags : {uint16_t{0}, kDf}) {
      read.flags = flags;
      answer = co_await client.call(read);
      EXPECT_TRUE(is_zero(answer.data));
      EXPECT_EQ(answer.chunks, std::vector{ChunkType::offset_hole});
    }
  });
}

TEST_P(NbdSession, BlockStatusTellsHolesZerosAndDepth) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach({.contexts = true});
    const auto data = pattern(4096, 3);
    co_await client.call({.command = Command::write, .cookie = 1, .offset = 8192, .length = 4096},
                         data);
    co_await client.call({.flags = kNoHole,
                          .command = Command::write_zeroes,
                          .cookie = 1,
                          .offset = 12288,
                          .length = 8192});
    Request status{.command = Command::block_status, .cookie = 2, .offset = 4096, .length = 32768};
    Answer answer = co_await client.call(status);
    EXPECT_EQ(answer.status, Status::ok);
    using Ranges = std::vector<Answer::Range>;
    EXPECT_EQ(answer.extents[kAllocationContextId], (Ranges{{4096, kStateHole | kStateZero},
                                                            {4096, 0},
                                                            {8192, kStateZero},
                                                            {16384, kStateHole | kStateZero}}));
    EXPECT_EQ(answer.extents[kDepthContextId], (Ranges{{4096, 0}, {12288, 1}, {16384, 0}}));

    status.flags = kRequestOne;
    answer = co_await client.call(status);
    EXPECT_EQ(answer.extents[kAllocationContextId], (Ranges{{4096, kStateHole | kStateZero}}));
    EXPECT_EQ(answer.extents[kDepthContextId], (Ranges{{4096, 0}}));

    t.disk->fail_status = EIO;
    answer = co_await client.call(status);
    EXPECT_EQ(answer.status, Status::eio);
  });
}

TEST_P(NbdSession, BlockStatusOfManyExtentsEndsEarly) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach({.contexts = true});
    for (size_t i = 0; i < t.disk->allocated.size(); i += 2) t.disk->allocated[i] = true;
    t.disk->delay_ns_max = 0;
    Answer answer = co_await client.call(
        {.command = Command::block_status, .cookie = 2, .length = uint32_t{kDiskSize}});
    EXPECT_EQ(answer.extents[kAllocationContextId].size(), 1024u);
    // Every byte is told of, none twice.
    uint64_t sum = 0;
    for (const auto& range : answer.extents[kAllocationContextId]) sum += range.length;
    EXPECT_EQ(sum, kDiskSize);
  });
}

TEST_P(NbdSession, ZeroesAndTrimsMeanWhatTheirFlagsSay) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    Request zero{.command = Command::write_zeroes, .cookie = 1, .length = 8192};
    EXPECT_EQ((co_await client.call(zero)).status, Status::ok);
    EXPECT_TRUE(t.disk->last_zero.may_unmap);
    EXPECT_FALSE(t.disk->last_zero.no_fallback);
    zero.flags = kNoHole | kFua;
    EXPECT_EQ((co_await client.call(zero)).status, Status::ok);
    EXPECT_FALSE(t.disk->last_zero.may_unmap);
    EXPECT_TRUE(t.disk->last_zero.fua);
    zero.flags = kFastZero;
    EXPECT_EQ((co_await client.call(zero)).status, Status::ok);
    EXPECT_TRUE(t.disk->last_zero.no_fallback);
    t.disk->fast_zero = false;
    EXPECT_EQ((co_await client.call(zero)).status, Status::enotsup);
    EXPECT_TRUE(t.reports.empty());  // It was asked for.

    const Request trim{.command = Command::trim, .cookie = 2, .length = 8192};
    EXPECT_EQ((co_await client.call(trim)).status, Status::ok);
    EXPECT_EQ(t.disk->discards, 1u);
    t.disk->fail_discard = EOPNOTSUPP;
    EXPECT_EQ((co_await client.call(trim)).status, Status::ok);
    t.disk->fail_discard = EIO;
    EXPECT_EQ((co_await client.call(trim)).status, Status::eio);
  });
  EXPECT_EQ(statistics.bytes_zeroed, 3 * 8192u);
  EXPECT_EQ(statistics.bytes_trimmed, 2 * 8192u);
}

TEST_P(NbdSession, FuaIsDurableAtTheAnswer) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    const auto data = pattern(4096, 5);
    Request write{.command = Command::write, .cookie = 1, .length = 4096};
    co_await client.call(write, data);
    EXPECT_FALSE(equal(Bytes(t.disk->durable).first(4096), data));
    write.flags = kFua;
    co_await client.call(write, data);
    EXPECT_TRUE(equal(Bytes(t.disk->durable).first(4096), data));
    // Where it means nothing it is accepted all the same.
    for (const Command command : {Command::read, Command::flush, Command::cache})
      EXPECT_EQ((co_await client.call({.flags = kFua, .command = command, .cookie = 2})).status,
                Status::ok);
  });
}

// CAN_MULTI_CONN: what one connection was answered, the flush of another makes durable.
TEST_P(NbdSession, AFlushCoversTheWritesOfOtherConnections) {
  converse_twice(
      [](NbdSession& t, TestClient& client) -> Task<void> {
        co_await client.attach();
        EXPECT_TRUE(client.flags() & kCanMultiConn);
        const auto data = pattern(4096, 6);
        co_await client.call({.command = Command::write, .cookie = 1, .length = 4096}, data);
        t.disk->preferred = 1;  // Tells the other: it is written.
        while (t.disk->preferred == 1) co_await t.reactor->sleep(kMillisecond);
        EXPECT_TRUE(equal(Bytes(t.disk->durable).first(4096), data));
      },
      [](NbdSession& t, TestClient& client) -> Task<void> {
        co_await client.attach();
        while (t.disk->preferred != 1) co_await t.reactor->sleep(kMillisecond);
        EXPECT_EQ((co_await client.call({.command = Command::flush, .cookie = 1})).status,
                  Status::ok);
        t.disk->preferred = 2;
      });
}

// ---- Requests that cannot be carried out ------------------------------------------------------

TEST_P(NbdSession, EveryErrorIsAnsweredAndTheConnectionGoesOn) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    const auto data = pattern(1024, 1);
    const auto status = [](Answer answer) { return answer.status; };
    const uint64_t end = kDiskSize;
    EXPECT_EQ(status(co_await client.call({.cookie = 1, .offset = end - 512, .length = 1024})),
              Status::einval);
    EXPECT_EQ(
        status(co_await client.call(
            {.command = Command::write, .cookie = 2, .offset = end - 512, .length = 1024}, data)),
        Status::enospc);
    EXPECT_EQ(
        status(co_await client.call(
            {.command = Command::write_zeroes, .cookie = 3, .offset = end - 512, .length = 1024})),
        Status::enospc);
    EXPECT_EQ(
        status(co_await client.call(
            {.command = Command::trim, .cookie = 4, .offset = UINT64_MAX - 511, .length = 1024})),
        Status::einval);
    EXPECT_EQ(status(co_await client.call({.command = static_cast<Command>(77), .cookie = 5})),
              Status::einval);
    EXPECT_EQ(status(co_await client.call({.flags = 1 << 9, .cookie = 6, .length = 512})),
              Status::einval);
    EXPECT_EQ(status(co_await client.call(
                  {.command = Command::block_status, .cookie = 7, .length = 512})),
              Status::einval);  // No context was selected.
    EXPECT_EQ(status(co_await client.call({.cookie = 8, .length = UINT32_MAX})), Status::einval);
    t.disk->fail_read = EIO;
    const Answer failed = co_await client.call({.cookie = 9, .length = 512});
    EXPECT_EQ(failed.status, Status::eio);
    EXPECT_EQ(failed.message, "input/output error");  // Not a word of the server's paths.
    t.disk->fail_write = ENOSPC;
    EXPECT_EQ(status(co_await client.call({.command = Command::write, .cookie = 10, .length = 1024},
                                          data)),
              Status::enospc);
    t.disk->fail_read = 0;
    EXPECT_EQ(status(co_await client.call({.cookie = 11, .length = 512})), Status::ok);
    EXPECT_EQ(t.disk->writes, 1u);
  });
  EXPECT_EQ(statistics.requests_failed, 10u);
  EXPECT_EQ(reports.size(), 2u);  // The device's; whoever serves hears of the path.
  EXPECT_NE(reports[0].find("/secret/path"), std::string::npos);
  EXPECT_EQ(ended, "well");
}

TEST_P(NbdSession, SimpleRepliesCarryErrorsWithoutData) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach({.structured = false});
    t.disk->fail_read = EIO;
    EXPECT_EQ((co_await client.call({.cookie = 1, .length = 512})).status, Status::eio);
    t.disk->fail_read = 0;
    EXPECT_EQ((co_await client.call({.cookie = 2, .length = 512})).status, Status::ok);
  });
}

TEST_P(NbdSession, AReadThatFailsMidwayEndsWithAnError) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    t.disk->fail_read = EIO;
    const auto data = pattern(4096, 3);
    copy(MutableBytes(t.disk->bytes).subspan(MiB), data);
    const Answer answer = co_await client.call({.cookie = 1, .length = uint32_t{2 * MiB}});
    EXPECT_EQ(answer.status, Status::eio);
    EXPECT_EQ(answer.chunks, (std::vector{ChunkType::offset_hole, ChunkType::error}));
  });
}

TEST_P(NbdSession, AReadOnlyExportRefusesWrites) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach({.name = "frozen"});
    EXPECT_TRUE(client.flags() & kReadOnly);
    const auto data = pattern(4096, 1);
    for (const Command command : {Command::write, Command::trim, Command::write_zeroes}) {
      const Request request{.command = command, .cookie = 1, .length = 4096};
      const Answer answer =
          co_await client.call(request, command == Command::write ? Bytes(data) : Bytes());
      EXPECT_EQ(answer.status, Status::eperm);
    }
    EXPECT_EQ((co_await client.call({.command = Command::flush, .cookie = 2})).status, Status::ok);
    EXPECT_EQ(t.disk->writes + t.disk->zeroes + t.disk->discards, 0u);
  });
}

TEST_P(NbdSession, LengthZeroSucceedsWithoutTheDevice) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    for (const Command command :
         {Command::read, Command::write, Command::trim, Command::write_zeroes, Command::cache})
      EXPECT_EQ((co_await client.call({.command = command, .cookie = 1})).status, Status::ok);
    EXPECT_EQ(t.disk->reads + t.disk->writes + t.disk->zeroes + t.disk->discards, 0u);
  });
}

TEST_P(NbdSession, LongTrimsAndZeroesAreFine) {
  another = std::make_unique<TestDevice>(*reactor, 40 * MiB);
  TestDevice& large = *another;
  ASSERT_TRUE(exports.add({.name = "large", .disk = Entrance::to(large), .writable = true}));
  converse([](NbdSession&, TestClient& client) -> Task<void> {
    co_await client.attach({.name = "large"});
    for (const Command command : {Command::trim, Command::write_zeroes, Command::cache}) {
      const Request request{.command = command, .cookie = 1, .length = uint32_t{40 * MiB}};
      EXPECT_EQ((co_await client.call(request)).status, Status::ok);
    }
  });
  EXPECT_EQ(large.zeroes, 1u);
}

TEST_P(NbdSession, AWriteTooLongIsSkippedAndAnswered) {
  if (GetParam().seed > 1) return;  // 33 MiB through the simulator are slow.
  another = std::make_unique<TestDevice>(*reactor, 40 * MiB);
  TestDevice& large = *another;
  ASSERT_TRUE(exports.add({.name = "large", .disk = Entrance::to(large), .writable = true}));
  converse([](NbdSession&, TestClient& client) -> Task<void> {
    co_await client.attach({.name = "large"});
    const std::vector<std::byte> data(33 * MiB);
    const Request write{.command = Command::write, .cookie = 1, .length = uint32_t{33 * MiB}};
    EXPECT_EQ((co_await client.call(write, data)).status, Status::einval);
    EXPECT_EQ((co_await client.call({.cookie = 2, .length = 512})).status, Status::ok);
  });
  EXPECT_EQ(large.writes, 0u);
}

TEST_P(NbdSession, AWriteOf4GiBEndsTheConnection) {
  converse([](NbdSession&, TestClient& client) -> Task<void> {
    co_await client.attach();
    co_await client.ask({.command = Command::write, .cookie = 1, .length = UINT32_MAX});
    EXPECT_TRUE(co_await client.at_end());
  });
  EXPECT_NE(ended.find("a write of 4294967295 bytes"), std::string::npos) << ended;
  EXPECT_EQ(disk->writes, 0u);
}

// ---- Bad clients ------------------------------------------------------------------------------

TEST_P(NbdSession, AClientThatOnlyLooksIsNoError) {
  converse([](NbdSession&, TestClient&) -> Task<void> { co_return; });
  EXPECT_EQ(ended, "well");
}

TEST_P(NbdSession, GarbageInsteadOfFlagsEndsTheConnection) {
  misbehave([](NbdSession&, TestClient& client) -> Task<void> {
    co_await client.send(bytes_of(std::string_view("GET / HTTP/1.1\r\n\r\n")));
    co_await client.greet();
    EXPECT_TRUE(co_await client.at_end());
  });
  EXPECT_NE(ended, "well");
}

TEST_P(NbdSession, GarbageInsteadOfAnOptionEndsTheConnection) {
  misbehave([](NbdSession&, TestClient& client) -> Task<void> {
    co_await client.greet();
    co_await client.send(bytes_of(std::string_view("GET / HTTP/1.1\r\n\r\n")));
    EXPECT_TRUE(co_await client.at_end());
  });
  EXPECT_NE(ended, "well");
}

TEST_P(NbdSession, AnOptionOf4GiBEndsTheConnection) {
  misbehave([](NbdSession&, TestClient& client) -> Task<void> {
    co_await client.greet();
    const OptionWire wire{.magic = kOptionMagic, .option = 3, .length = UINT32_MAX};
    co_await client.send(bytes_of(wire));
    EXPECT_TRUE(co_await client.at_end());
  });
  EXPECT_NE(ended.find("an option of"), std::string::npos) << ended;
}

TEST_P(NbdSession, GarbageInsteadOfARequestEndsTheConnection) {
  misbehave([](NbdSession&, TestClient& client) -> Task<void> {
    co_await client.attach();
    co_await client.send(bytes_of(std::string_view("GET / HTTP/1.1\r\nHost: example\r\n\r\n")));
    EXPECT_TRUE(co_await client.at_end());
  });
  EXPECT_NE(ended, "well");
}

TEST_P(NbdSession, HalfARequestDoesNothing) {
  misbehave([](NbdSession&, TestClient& client) -> Task<void> {
    co_await client.attach();
    const RequestWire wire = make_request({.command = Command::trim, .length = 4096});
    co_await client.send(bytes_of(wire).first(20));
  });
  EXPECT_EQ(ended, "the client hung up inside a request");
  EXPECT_EQ(disk->discards, 0u);
}

// A hang-up at any byte of a write: the device sees none of it, the writes before it all.
TEST_P(NbdSession, AHangUpInsideAWriteHarmsNobody) {
  converse_twice(
      [](NbdSession&, TestClient& client) -> Task<void> {
        co_await client.attach();
        const auto data = pattern(40000, 9);
        co_await client.ask({.command = Command::write, .cookie = 1, .length = 40000}, data);
        const RequestWire wire =
            make_request({.command = Command::write, .cookie = 2, .offset = MiB, .length = 40000});
        co_await client.send(bytes_of(wire));
        co_await client.send(Bytes(data).first(GetParam().seed * 3000));
      },
      [](NbdSession& t, TestClient& client) -> Task<void> {
        co_await storm(t, client, 3, GetParam().seed);  // Goes on as if nothing had happened.
      });
  EXPECT_TRUE(equal(Bytes(disk->bytes).first(40000), pattern(40000, 9)));
  EXPECT_TRUE(is_zero(Bytes(disk->bytes).subspan(MiB, 40000)));
  EXPECT_EQ(memory->free(), memory->total());
}

TEST_P(NbdSession, RequestsOfAClientThatLeftAreCarriedOut) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    t.disk->opener.reset();
    const auto data = pattern(4096, 2);
    for (uint64_t i = 0; i < 8; ++i)
      co_await client.ask(
          {.command = Command::write, .cookie = i, .offset = i * 4096, .length = 4096}, data);
    while (t.disk->running < 8) co_await t.reactor->sleep(kMillisecond);
    t.disk->opener.set();
  });
  EXPECT_EQ(disk->writes, 8u);
  EXPECT_EQ(statistics.requests_running, 0u);
}

TEST_P(NbdSession, DiscWaitsForWhatRuns) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    const auto data = pattern(4096, 2);
    for (uint64_t i = 0; i < 8; ++i)
      co_await client.ask(
          {.command = Command::write, .cookie = i, .offset = i * 4096, .length = 4096}, data);
    co_await client.ask({.command = Command::disconnect});
    for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ((co_await client.answer()).status, Status::ok);
    EXPECT_TRUE(co_await client.at_end());
    EXPECT_EQ(t.statistics.writes, 8u);
  });
  EXPECT_EQ(ended, "well");
}

TEST_P(NbdSession, ASlowHandshakeIsCutOff) {
  limits.handshake_timeout_ns = 50 * kMillisecond;
  misbehave([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.greet();
    // One byte of an option now and then, for ever.
    Text out;
    append_option(out, Option::list);
    for (size_t i = 0; i + 1 < out.size(); ++i) {
      co_await client.send(Bytes(out).subspan(i, 1));
      co_await t.reactor->sleep(10 * kMillisecond);
    }
    ADD_FAILURE() << "still there";
  });
  EXPECT_EQ(ended, "the client did not finish the handshake in time");
}

TEST_P(NbdSession, TheTimeoutEndsWithTheHandshake) {
  limits.handshake_timeout_ns = 100 * kMillisecond;
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    const Result<void> attached = co_await client.attach().result();
    if (!attached) co_return;  // It was due before: see SetUp().
    co_await t.reactor->sleep(150 * kMillisecond);
    EXPECT_EQ((co_await client.call({.cookie = 1, .length = 512})).status, Status::ok);
  });
}

TEST_P(NbdSession, AClientThatReadsNothingIsBounded) {
  limits.requests_max = 8;
  limits.linger_timeout_ns = 50 * kMillisecond;
  misbehave([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    const auto data = pattern(128 * KiB, 1);
    copy(MutableBytes(t.disk->bytes), data);
    Text many;
    for (uint64_t i = 0; i < 100; ++i) {
      const RequestWire wire = make_request({.cookie = i, .length = 128 * 1024});
      many.insert(many.end(), bytes_of(wire).begin(), bytes_of(wire).end());
    }
    const RequestWire wire = make_request({.command = Command::disconnect});
    many.insert(many.end(), bytes_of(wire).begin(), bytes_of(wire).end());
    co_await client.send(many);
    co_await t.reactor->sleep(100 * kMillisecond);
    EXPECT_LE(t.disk->running_max, 8u);
    EXPECT_LE(t.disk->reads, 20u);  // As many as fit, and what the socket took.
  });
  EXPECT_EQ(memory->free(), memory->total());
}

TEST_P(NbdSession, MemoryIsBoundedAcrossSessions) {
  Semaphore small(reactor->ready(), kPayloadMax);
  shared = std::make_unique<Session::Shared>(Session::Shared{exports, statistics, small, {}});
  converse_twice(
      [](NbdSession& t, TestClient& client) -> Task<void> {
        co_await storm(t, client, 0, GetParam().seed);
      },
      [](NbdSession& t, TestClient& client) -> Task<void> {
        co_await storm(t, client, 1, GetParam().seed);
      });
  EXPECT_EQ(small.free(), small.total());
}

// All the shared memory waits for payloads that never come.
TEST_P(NbdSession, AWriteThatHangsStarvesNoSmallRequests) {
  another = std::make_unique<TestDevice>(*reactor, kPayloadMax);
  TestDevice& large = *another;
  ASSERT_TRUE(exports.add({.name = "large", .disk = Entrance::to(large), .writable = true}));
  Semaphore tight(reactor->ready(), kPayloadMax);
  shared = std::make_unique<Session::Shared>(Session::Shared{exports, statistics, tight, {}});
  misbehave(
      [](NbdSession& t, TestClient& client) -> Task<void> {
        co_await client.attach({.name = "large"});
        co_await client.ask({.command = Command::write, .cookie = 1, .length = kPayloadMax});
        for (int i = 0; i < 10'000 && !t.disk->durable.empty(); ++i)
          co_await t.reactor->sleep(kMillisecond);
      },
      [](NbdSession& t, TestClient& client) -> Task<void> {
        for (int i = 0; i < 10'000 && t.shared->memory.free() != 0; ++i)
          co_await t.reactor->sleep(kMillisecond);
        EXPECT_EQ(t.shared->memory.free(), 0u);
        co_await storm(t, client, 1, GetParam().seed);
        t.disk->durable.clear();  // Tells the other that it may go.
      });
  EXPECT_EQ(tight.free(), tight.total());
  EXPECT_EQ(large.writes, 0u);
}

// ---- Stopping ---------------------------------------------------------------------------------

TEST_P(NbdSession, StopFinishesWhatRunsAndRefusesWhatComes) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    t.disk->opener.reset();
    const auto data = pattern(4096, 4);
    co_await client.ask({.command = Command::write, .cookie = 1, .length = 4096}, data);
    while (t.disk->running == 0) co_await t.reactor->sleep(kMillisecond);
    t.session->stop();
    co_await client.ask({.command = Command::write, .cookie = 2, .offset = 8192, .length = 4096},
                        data);
    Answer answer = co_await client.answer();
    EXPECT_EQ(answer.cookie, 2u);
    EXPECT_EQ(answer.status, Status::eshutdown);
    t.disk->opener.set();
    answer = co_await client.answer();
    EXPECT_EQ(answer.cookie, 1u);
    EXPECT_EQ(answer.status, Status::ok);
    EXPECT_TRUE(co_await client.at_end());
    EXPECT_EQ(t.disk->writes, 1u);
  });
  EXPECT_EQ(ended, "well");
}

TEST_P(NbdSession, StopEndsAnIdleConnection) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    t.session->stop();
    t.session->stop();
    EXPECT_TRUE(co_await client.at_end());
  });
  EXPECT_EQ(ended, "well");
}

TEST_P(NbdSession, StopEndsAHandshake) {
  converse([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.greet();
    t.session->stop();
    EXPECT_TRUE(co_await client.at_end());
  });
  EXPECT_EQ(ended, "well");
}

TEST_P(NbdSession, StopDoesNotWaitForAClientThatReadsNothing) {
  limits.linger_timeout_ns = 50 * kMillisecond;
  misbehave([](NbdSession& t, TestClient& client) -> Task<void> {
    co_await client.attach();
    const auto data = pattern(MiB, 1);
    copy(MutableBytes(t.disk->bytes), data);
    for (uint64_t i = 0; i < 4; ++i)
      co_await client.ask({.flags = kDf, .cookie = i, .length = uint32_t{MiB}});
    co_await t.reactor->sleep(20 * kMillisecond);
    t.session->stop();
    for (int i = 0; i < 1000 && t.ended.empty(); ++i) co_await t.reactor->sleep(10 * kMillisecond);
    EXPECT_EQ(t.ended, "well");
  });
}

}  // namespace
}  // namespace byre::nbd
