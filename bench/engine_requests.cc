// SPDX-License-Identifier: Apache-2.0
/// N requests of 4 KiB to mapped clusters of an image on a disk that does nothing with guest data,
/// for a tool that counts instructions (bench/engine.py): the difference of two N is what the
/// requests cost alone.  Always the same requests, without io_uring, which valgrind does not know.
/// It fails when a request takes memory from the heap; the first ones may, in all but release
/// builds all do (frame_pool.h).
///
/// Beside these, N times each: `extents` asks what the 64 MiB of that image are (its table, in
/// runs); `zeros` looks at 64 KiB of zeros; `entries` decodes an L2 table entry by entry; `parse`
/// reads an NBD request and checks it.
///     engine_requests read|overwrite|extents|zeros|entries|parse N
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "base/allocations_testing.h"
#include "block/hollow_testing.h"
#include "format/l2.h"
#include "nbd/nbd_wire.h"
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

/// Keeps a value alive, so that what made it is not left out.
template <typename T>
void keep(const T& value) {
  asm volatile("" : : "g"(&value) : "memory");
}

void look_at_zeros(uint64_t count) {
  const std::vector<std::byte> zeros(64 * KiB);
  for (uint64_t i = 0; i < count; ++i) {
    asm volatile("" : : "r"(zeros.data()) : "memory");  // Else it is looked at once.
    const bool found = is_zero(zeros);
    keep(found);
  }
}

void decode_entries(uint64_t count) {
  const Geometry geometry{};
  std::vector<std::byte> table(geometry.cluster_size());
  for (size_t i = 0; i < geometry.l2_entries(); ++i)
    store_l2(table, i, L2Entry{kCopied | ((i + 5) << 16)}, geometry);
  for (uint64_t i = 0; i < count; ++i) {
    for (size_t entry = 0; entry < geometry.l2_entries(); ++entry)
      keep(decode_l2(load_l2(table, entry, geometry), geometry));
  }
}

void parse_requests(uint64_t count) {
  const nbd::RequestWire wire = nbd::make_request(
      {.command = nbd::Command::write, .cookie = 7, .offset = 65536, .length = kRequest});
  for (uint64_t i = 0; i < count; ++i) {
    keep(wire);
    const Result<nbd::Request> request = nbd::parse_request(bytes_of(wire));
    keep(nbd::check(*request, {.size = kSize}));
  }
}

Task<void> ask_extents(Image& image) {
  for (uint64_t at = 0; at < kSize;) at += (co_await image.status(at, kSize - at)).length;
}

enum class Kind { read, overwrite, extents };

Result<void> run(Kind kind, uint64_t count) {
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
      if (kind == Kind::extents) {
        co_await ask_extents(*image);
      } else if (kind == Kind::read) {
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
  using byre::Kind;
  const std::string_view kind = argc == 3 ? argv[1] : "";
  const uint64_t count = argc == 3 ? std::strtoull(argv[2], nullptr, 10) : 0;
  byre::Result<void> done;
  if (kind == "read" || kind == "overwrite" || kind == "extents") {
    done = byre::run(kind == "read"        ? Kind::read
                     : kind == "overwrite" ? Kind::overwrite
                                           : Kind::extents,
                     count);
  } else if (kind == "zeros") {
    byre::look_at_zeros(count);
  } else if (kind == "entries") {
    byre::decode_entries(count);
  } else if (kind == "parse") {
    byre::parse_requests(count);
  } else {
    std::fputs("usage: engine_requests read|overwrite|extents|zeros|entries|parse N\n", stderr);
    return 2;
  }
  if (!done) std::fprintf(stderr, "%s\n", done.error().message().c_str());
  return done ? 0 : 1;
}
