// SPDX-License-Identifier: Apache-2.0
/// N requests of 4 KiB to mapped clusters of an image on a disk that does nothing with guest data,
/// for a tool that counts instructions (bench/engine.py): the difference of two N is what the
/// requests cost alone.  Always the same requests, without io_uring, which valgrind does not know.
/// It fails when a request takes memory from the heap; the first ones may, in all but release
/// builds all do (frame_pool.h).
///     engine_requests read|overwrite N
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "base/allocations_testing.h"
#include "block/hollow_testing.h"
#include "qcow2/image.h"
#include "qcow2/image_testing.h"
#include "qcow2/ops/create.h"

namespace byre {
namespace {

constexpr uint64_t kSize = 64 * MiB;
constexpr uint64_t kRequest = 4096;
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer)
constexpr bool kPooled = false;
#else
constexpr bool kPooled = true;
#endif
constexpr uint64_t kWarmUp = 500;  ///< Requests.

Result<void> run(bool reads, uint64_t count) {
  const std::unique_ptr<Reactor> reactor = *make_reactor(ReactorKind::posix);
  ClosedGate opener;
  std::unique_ptr<Image> image;
  const auto requests = [&]() -> Task<void> {
    auto hollow = std::make_unique<HollowDevice>(*reactor);
    co_await create_image(hollow->below(), {.size = kSize});
    image = co_await Image::open_over(std::move(hollow), opener, {.writable = true});
    std::vector<std::byte> data(64 * KiB, std::byte{1});
    for (uint64_t at = 0; at < kSize; at += data.size()) co_await image->write(at, data, {});
    co_await image->flush();
    const MutableBytes small = MutableBytes(data).first(kRequest);
    uint64_t before = 0;
    for (uint64_t i = 0; i < kWarmUp + count; ++i) {
      if (i == kWarmUp) before = heap_allocations;
      const uint64_t at = i * 7919 * kRequest % kSize;
      if (reads) {
        co_await image->read(at, small, IoTag::read_guest);
      } else {
        co_await image->write(at, small, {});
      }
    }
    const uint64_t taken = heap_allocations - before;
    co_await image->close();
    if (kPooled && taken != 0)
      co_await fail(Error(Errc::invalid, cat(taken, " allocations in ", count, " requests")));
  };
  return reactor->run(requests());
}

}  // namespace
}  // namespace byre

int main(int argc, char** argv) {
  const std::string_view kind = argc == 3 ? argv[1] : "";
  if (kind != "read" && kind != "overwrite") {
    std::fputs("usage: engine_requests read|overwrite N\n", stderr);
    return 2;
  }
  const byre::Result<void> done = byre::run(kind == "read", std::strtoull(argv[2], nullptr, 10));
  if (!done) std::fprintf(stderr, "%s\n", done.error().message().c_str());
  return done ? 0 : 1;
}
