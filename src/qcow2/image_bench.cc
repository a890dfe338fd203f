// SPDX-License-Identifier: Apache-2.0
/// What the engine itself costs for a request to a mapped cluster, on a disk that does nothing with
/// guest data.  Budget: 2 us of CPU and no heap allocation after warm-up.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <new>

#include "block/memory.h"
#include "qcow2/create.h"
#include "qcow2/image.h"

namespace {
uint64_t allocations = 0;
}

void* operator new(size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  std::abort();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace byre {
namespace {

/// Keeps metadata; guest data go nowhere.
class HollowDevice final : public Device {
 public:
  explicit HollowDevice(Reactor& reactor) : memory_(reactor) {}
  uint64_t size() const override { return memory_.size(); }
  bool writable() const override { return true; }
  const std::string& name() const override { return memory_.name(); }
  Reactor& reactor() override { return memory_.reactor(); }
  Task<void> read(uint64_t offset, MutableBytes data, Mark mark) override {
    if (mark != Mark::read_guest) co_await memory_.read(offset, data, mark);
  }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    if (options.mark != Mark::write_guest) co_await memory_.write(offset, data, options);
  }
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t o, uint64_t l, ZeroOptions p) override {
    return memory_.zero(o, l, p);
  }
  BYRE_CORO_WRAPPER Task<void> discard(uint64_t o, uint64_t l, DiscardOptions p) override {
    return memory_.discard(o, l, p);
  }
  BYRE_CORO_WRAPPER Task<void> flush(Mark mark) override { return memory_.flush(mark); }
  BYRE_CORO_WRAPPER Task<Extent> status(uint64_t o, uint64_t l) override {
    return memory_.status(o, l);
  }
  BYRE_CORO_WRAPPER Task<void> resize(uint64_t size) override { return memory_.resize(size); }
  bool new_space_is_zero() const override { return true; }
  bool can_grow() const override { return true; }
  Task<void> close() override { co_return; }
  MemoryDevice& memory() { return memory_; }

 private:
  MemoryDevice memory_;
};

class NoGate final : public Gate {
  Result<std::unique_ptr<File>> open(std::string_view, FileOptions) override {
    return invalid("no files here");
  }
  Result<std::unique_ptr<File>> open_named_by_image(std::string_view, std::string_view,
                                                    FileOptions) override {
    return invalid("no files here");
  }
};

constexpr uint64_t kSize = 1 * GiB;
constexpr int kBatch = 1000;

struct Subject {
  std::unique_ptr<Reactor> reactor = *make_reactor();
  NoGate gate;
  std::unique_ptr<Image> image;
  explicit Subject(bool recorded) {
    const auto open = [recorded](Subject& s) -> Task<void> {
      auto hollow = std::make_unique<HollowDevice>(*s.reactor);
      co_await create_image(hollow->memory(), {.size = kSize});
      s.image = co_await Image::open_over(std::move(hollow), s.gate, {.writable = true});
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
    const uint64_t before = allocations;
    BYRE_ASSERT(subject.reactor->run(batch()).has_value());
    counted += allocations - before;
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
    co_await image.read(at, data, Mark::read_guest);
  });
}
BENCHMARK(bm_read)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace byre
