// SPDX-License-Identifier: Apache-2.0
#include <benchmark/benchmark.h>

#include <vector>

#include "format/refcount.h"

namespace byre {
namespace {

/// A full refcount block of 64 KiB searched for a free cluster: what an allocator pays for each
/// block that has none.  Budget: 20 us.
void bm_find_zero(benchmark::State& state) {
  const auto order = static_cast<uint32_t>(state.range(0));
  std::vector<std::byte> block(65536);
  const size_t entries = block.size() * 8 >> order;
  for (size_t i = 0; i < entries; ++i) set_refcount(block, i, order, 1);
  for (auto _ : state) benchmark::DoNotOptimize(find_zero_refcount(block, 0, entries, order));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(block.size()));
}
BENCHMARK(bm_find_zero)->DenseRange(0, 6);

}  // namespace
}  // namespace byre
