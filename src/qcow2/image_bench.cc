// SPDX-License-Identifier: Apache-2.0
/// What the engine itself costs for a request to a mapped cluster, on a disk that does nothing with
/// guest data.  Budget: 2 us of CPU and no heap allocation after warm-up.
#include <benchmark/benchmark.h>

#include <cstdlib>

#include "base/allocations_testing.h"
#include "block/hollow_testing.h"
#include "qcow2/image.h"
#include "qcow2/image_testing.h"
#include "qcow2/ops/create.h"

namespace byre {
namespace {

constexpr uint64_t kSize = 1 * GiB;
constexpr int kBatch = 1000;

struct Subject {
  std::unique_ptr<Reactor> reactor = *make_reactor();
  ClosedGate opener;
  std::unique_ptr<Image> image;
  explicit Subject(bool recorded) {
    const auto open = [recorded](Subject& s) -> Task<void> {
      auto hollow = std::make_unique<HollowDevice>(*s.reactor);
      co_await create_image(hollow->below(), {.size = kSize});
      s.image = co_await Image::open_over(std::move(hollow), s.opener, {.writable = true});
      const std::vector<std::byte> data(64 * KiB, std::byte{1});
      for (uint64_t at = 0; at < kSize; at += data.size()) co_await s.image->write(at, data, {});
      co_await s.image->flush();
      if (recorded) co_await s.image->add_bitmap({.name = "daily"});
    };
    BYRE_ASSERT(reactor->run(open(*this)).has_value());
  }
  ~Subject() { BYRE_ASSERT(reactor->run(image->close()).has_value()); }
};

template <class Request>
void measure(benchmark::State& state, Request request, bool recorded = false) {
  Subject subject(recorded);
  uint64_t counted = 0;
  const auto batch = [&]() -> Task<void> {
    uint64_t at = 0;
    for (int i = 0; i < kBatch; ++i) {
      at = (at * 6364136223846793005u + 1442695040888963407u) % kSize & ~uint64_t{4095};
      co_await request(*subject.image, at);
    }
  };
  BYRE_ASSERT(subject.reactor->run(batch()).has_value());
  for (auto _ : state) {
    const uint64_t before = heap_allocations;
    BYRE_ASSERT(subject.reactor->run(batch()).has_value());
    counted += heap_allocations - before;
  }
  state.SetItemsProcessed(state.iterations() * kBatch);
  state.counters["heap/request"] =
      static_cast<double>(counted) / static_cast<double>(state.iterations() * kBatch);
}

void bm_overwrite(benchmark::State& state) {
  static const std::vector<std::byte> data(4096);
  measure(state,
          [](Image& image, uint64_t at) -> Task<void> { co_await image.write(at, data, {}); });
}
BENCHMARK(bm_overwrite)->Unit(benchmark::kMicrosecond);

/// With a persistent bitmap that records.
void bm_overwrite_recorded(benchmark::State& state) {
  static const std::vector<std::byte> data(4096);
  measure(
      state, [](Image& image, uint64_t at) -> Task<void> { co_await image.write(at, data, {}); },
      true);
}
BENCHMARK(bm_overwrite_recorded)->Unit(benchmark::kMicrosecond);

void bm_read(benchmark::State& state) {
  static std::vector<std::byte> data(4096);
  measure(state, [](Image& image, uint64_t at) -> Task<void> {
    co_await image.read(at, data, IoTag::read_guest);
  });
}
BENCHMARK(bm_read)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace byre
