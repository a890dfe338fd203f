// SPDX-License-Identifier: Apache-2.0
/// What a session costs per request: 4 KiB requests at depth 32 over a socket pair, on a disk that
/// does nothing.  The client is on the same thread and does as little as can be: one send for 32
/// requests, receives until all answers are there.
///
/// Budget: 1 us of the session's own code a request, so that the kernel's copies and not byre set
/// the pace; 3 us with both sides and the kernel.  `heap_allocations`: heap heap_allocations a
/// request, which is to be 0 once warm.
#include <benchmark/benchmark.h>
#include <sys/socket.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "base/allocations_testing.h"
#include "block/null.h"
#include "export/nbd_session.h"

namespace byre::nbd {
namespace {

constexpr uint32_t kLength = 4096;
constexpr uint64_t kDepth = 32;

/// One session and the near end of its socket.
struct Bench {
  std::unique_ptr<Reactor> reactor;
  std::unique_ptr<NullDevice> disk;
  Exports exports;
  Statistics statistics;
  std::unique_ptr<Semaphore> memory;
  std::unique_ptr<Session::Shared> shared;
  Text requests;
  size_t answer_size = 0;

  explicit Bench(Command command) {
    reactor = *make_reactor();
    disk = std::make_unique<NullDevice>(*reactor, 1 * GiB);
    const Result<void> added =
        exports.add({.name = "disk", .disk = Entrance::to(*disk), .writable = true});
    BYRE_ASSERT(added);
    memory = std::make_unique<Semaphore>(reactor->ready(), 1 * GiB);
    shared = std::make_unique<Session::Shared>(Session::Shared{exports, statistics, *memory, {}});
    for (uint64_t i = 0; i < kDepth; ++i) {
      const RequestWire wire =
          make_request({.command = command, .cookie = i, .offset = i * kLength, .length = kLength});
      requests.insert(requests.end(), bytes_of(wire).begin(), bytes_of(wire).end());
      if (command == Command::write) requests.resize(requests.size() + kLength, std::byte{1});
    }
    // Simple replies: the null disk's zeros would be holes otherwise.
    answer_size = kDepth * (sizeof(SimpleReplyWire) + (command == Command::read ? kLength : 0));
  }
};

Task<void> ask_and_listen(Socket& socket, Bytes requests, size_t answer_size, MutableBytes into) {
  co_await socket.send_all(requests);
  if (!co_await socket.receive_all(into.first(answer_size))) co_await fail(invalid("no answer"));
}

Task<void> measure(Bench& bench, benchmark::State& state) {
  int fds[2];
  BYRE_ASSERT(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
  const int size = 1 << 20;  // A whole batch each way, so that one thread can play both sides.
  for (const int fd : fds) {
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
  }
  Session session(*bench.reactor, Socket(*bench.reactor, fds[0]), *bench.shared, {}, {});
  Scope scope(bench.reactor->ready());
  scope.spawn(session.run());
  {
    Socket socket(*bench.reactor, fds[1]);
    std::vector<std::byte> into(1 << 20);
    co_await socket.receive_all(MutableBytes(into).first(sizeof(GreetingWire)));
    Text hello;
    append_client_flags(hello, kClientFixedNewstyle | kClientNoZeroes);
    append_option(hello, Option::export_name, bytes_of(std::string_view("disk")));
    co_await socket.send_all(hello);
    co_await socket.receive_all(MutableBytes(into).first(sizeof(ExportWire)));
    for (int i = 0; i < 100; ++i)
      co_await ask_and_listen(socket, bench.requests, bench.answer_size, into);

    const uint64_t before = heap_allocations;
    for (auto _ : state) co_await ask_and_listen(socket, bench.requests, bench.answer_size, into);
    const auto count = static_cast<double>(state.iterations() * int64_t{kDepth});
    state.SetItemsProcessed(state.iterations() * int64_t{kDepth});
    state.counters["heap_allocations"] = static_cast<double>(heap_allocations - before) / count;
  }
  co_await scope.join();
}

void run(benchmark::State& state, Command command) {
  Bench bench(command);
  const Result<void> result = bench.reactor->run(measure(bench, state));
  if (!result) state.SkipWithError(result.error().message().c_str());
}
void bm_read(benchmark::State& state) { run(state, Command::read); }
void bm_write(benchmark::State& state) { run(state, Command::write); }
void bm_no_op(benchmark::State& state) { run(state, Command::cache); }
BENCHMARK(bm_read)->Unit(benchmark::kMicrosecond);
BENCHMARK(bm_write)->Unit(benchmark::kMicrosecond);
BENCHMARK(bm_no_op)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace byre::nbd
