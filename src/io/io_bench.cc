// SPDX-License-Identifier: Apache-2.0
#include <benchmark/benchmark.h>
#include <stdlib.h>
#include <unistd.h>

#include <vector>

#include "base/prng.h"
#include "base/units.h"
#include "coro/scope.h"
#include "io/buffer.h"
#include "io/file.h"
#include "io/reactor.h"

namespace byre {
namespace {

constexpr uint64_t kFileSize = 16 * MiB;

/// A file that lies whole in the page cache.
std::unique_ptr<File> cached_file(Reactor& reactor) {
  char path[] = "/tmp/byre-bench-XXXXXX";
  const int fd = mkstemp(path);
  BYRE_ASSERT(fd >= 0);
  unlink(path);
  const std::vector<char> data(kFileSize, 'x');
  BYRE_ASSERT(write(fd, data.data(), data.size()) == static_cast<ssize_t>(data.size()));
  return std::make_unique<File>(
      reactor, File::Properties{.name = "bench", .fd = fd, .size = kFileSize, .writable = true});
}

Task<void> read_many(File& file, int64_t& left, uint64_t seed) {
  Prng prng(seed);
  const Buffer buffer(4096);
  while (left-- > 0) co_await file.read(prng.below(kFileSize / 4096) * 4096, buffer.bytes());
}

/// 4 KiB reads from the page cache, `depth` at a time: what reactor and File cost per request.
/// Budget with io_uring: 1 us at depth 32, of which the copy is 0.2 us.
void bm_read(benchmark::State& state) {
  const auto kind = static_cast<ReactorKind>(state.range(0));
  Result<std::unique_ptr<Reactor>> made = make_reactor(kind);
  if (!made) return state.SkipWithError("this reactor cannot run here");
  Reactor& reactor = **made;
  std::unique_ptr<File> file = cached_file(reactor);
  constexpr int64_t kBatch = 10000;
  for (auto _ : state) {
    int64_t left = kBatch;
    const auto all = [&]() -> Task<void> {
      Scope scope(reactor.ready());
      for (int64_t i = 0; i < state.range(1); ++i) {
        scope.spawn(read_many(*file, left, static_cast<uint64_t>(i)));
      }
      co_await scope.join();
    };
    if (!reactor.run(all())) return state.SkipWithError("read");
  }
  state.SetItemsProcessed(state.iterations() * kBatch);
  state.SetLabel(std::string(reactor.name()));
}
BENCHMARK(bm_read)
    ->ArgNames({"reactor", "depth"})
    ->ArgsProduct({{static_cast<int>(ReactorKind::uring), static_cast<int>(ReactorKind::posix)},
                   {1, 32}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

/// CPU work that takes no time: what the way to a worker thread and back costs, 32 at a time.
void bm_offload(benchmark::State& state) {
  Result<std::unique_ptr<Reactor>> made = make_reactor(static_cast<ReactorKind>(state.range(0)));
  if (!made) return state.SkipWithError("this reactor cannot run here");
  Reactor& reactor = **made;
  const auto loop = [](Reactor& r, int64_t& left) -> Task<void> {
    const auto work = [] {};
    while (left-- > 0) co_await r.offload(work);
  };
  constexpr int64_t kBatch = 1000;
  for (auto _ : state) {
    int64_t left = kBatch;
    const auto all = [&]() -> Task<void> {
      Scope scope(reactor.ready());
      for (int i = 0; i < 32; ++i) scope.spawn(loop(reactor, left));
      co_await scope.join();
    };
    if (!reactor.run(all())) return state.SkipWithError("offload");
  }
  state.SetItemsProcessed(state.iterations() * kBatch);
  state.SetLabel(std::string(reactor.name()));
}
BENCHMARK(bm_offload)
    ->ArgName("reactor")
    ->Arg(static_cast<int>(ReactorKind::uring))
    ->Arg(static_cast<int>(ReactorKind::posix))
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace byre
