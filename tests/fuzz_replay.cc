// SPDX-License-Identifier: Apache-2.0
/// Replays a fuzzer's corpus without libFuzzer: every file of the named folders, and prefixes and
/// single-bit changes of each small one, so that a corpus of a few files still covers error paths.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
  size_t files = 0;
  size_t inputs = 0;
  const auto run = [&](const std::vector<uint8_t>& bytes) {
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    ++inputs;
  };
  for (int i = 1; i < argc; ++i) {
    if (!std::filesystem::exists(argv[i])) {
      std::fprintf(stderr, "%s: no such corpus folder\n", argv[i]);
      return 1;
    }
    for (const auto& entry : std::filesystem::recursive_directory_iterator(argv[i])) {
      if (!entry.is_regular_file()) continue;
      std::ifstream in(entry.path(), std::ios::binary);
      std::vector<uint8_t> bytes((std::istreambuf_iterator<char>(in)), {});
      run(bytes);
      ++files;
      const size_t span = bytes.size() < 512 ? bytes.size() : 512;
      for (size_t at = 0; at < span; ++at) {
        std::vector<uint8_t> changed = bytes;
        changed[at] = static_cast<uint8_t>(changed[at] ^ (1u << (at % 8)));
        run(changed);
        run({bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(at)});
      }
    }
  }
  if (files == 0) {
    std::fprintf(stderr, "no corpus file found\n");
    return 1;
  }
  std::printf("%zu files, %zu inputs replayed\n", files, inputs);
  return 0;
}
