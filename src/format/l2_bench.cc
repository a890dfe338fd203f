// SPDX-License-Identifier: Apache-2.0
#include <benchmark/benchmark.h>

#include <vector>

#include "format/l2.h"

namespace byre {
namespace {

/// One L2 table, entry by entry: what each request pays at least once.  Budget: 5 ns an entry for
/// plain data, 20 ns for every other kind.
void bm_decode(benchmark::State& state, Geometry geometry, L2Entry entry) {
  std::vector<std::byte> table(geometry.cluster_size());
  for (size_t i = 0; i < geometry.l2_entries(); ++i) store_l2(table, i, entry, geometry);
  for (auto _ : state) {
    for (size_t i = 0; i < geometry.l2_entries(); ++i) {
      Result<Mapping> mapping = decode_l2(load_l2(table, i, geometry), geometry);
      benchmark::DoNotOptimize(mapping);
    }
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(geometry.l2_entries()));
}
BENCHMARK_CAPTURE(bm_decode, plain, Geometry{}, L2Entry{kCopied | 0x50000});
BENCHMARK_CAPTURE(bm_decode, extended, Geometry{.extended_l2 = true},
                  L2Entry{kCopied | 0x50000, 0xff});
BENCHMARK_CAPTURE(bm_decode, unallocated, Geometry{}, L2Entry{});
BENCHMARK_CAPTURE(bm_decode, zero, Geometry{}, L2Entry{kReadsZero});
BENCHMARK_CAPTURE(bm_decode, compressed, Geometry{}, L2Entry{kCompressed | 0x51234});

}  // namespace
}  // namespace byre
