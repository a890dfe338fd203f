// SPDX-License-Identifier: Apache-2.0
#include <benchmark/benchmark.h>

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "format/codec.h"

namespace byre {
namespace {

/// 64 KiB of machine code: this program itself, which compresses about as a guest's disk does.
std::vector<std::byte> cluster() {
  std::ifstream self("/proc/self/exe", std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(self)), {});
  const Bytes all = bytes_of(std::string_view(bytes));
  const Bytes middle = all.subspan(all.size() / 3 / 4096 * 4096, 65536);
  return {middle.begin(), middle.end()};
}

/// Budget, one core: deflate 20 MB/s, zstd 200 MB/s.
void bm_compress(benchmark::State& state, Compression compression, int level) {
  const std::vector<std::byte> plain = cluster();
  Codec codec;
  size_t size = 0;
  for (auto _ : state) size = (*codec.compress(compression, plain, level))->size();
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(plain.size()));
  state.counters["ratio"] = static_cast<double>(size) / static_cast<double>(plain.size());
}
/// Budget, one core: deflate 300 MB/s, zstd 500 MB/s.
void bm_decompress(benchmark::State& state, Compression compression) {
  const std::vector<std::byte> plain = cluster();
  Codec codec;
  const std::vector<std::byte> stream = **codec.compress(compression, plain);
  std::vector<std::byte> out(plain.size());
  for (auto _ : state) {
    Result<void> done = codec.decompress(compression, stream, out);
    benchmark::DoNotOptimize(done);
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(plain.size()));
}
BENCHMARK_CAPTURE(bm_compress, deflate_1, Compression::deflate, 1);
BENCHMARK_CAPTURE(bm_compress, deflate_6, Compression::deflate, 6);
BENCHMARK_CAPTURE(bm_compress, zstd_3, Compression::zstd, 3);
BENCHMARK_CAPTURE(bm_decompress, deflate, Compression::deflate);
BENCHMARK_CAPTURE(bm_decompress, zstd, Compression::zstd);

}  // namespace
}  // namespace byre
