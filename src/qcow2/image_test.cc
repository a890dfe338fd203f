// SPDX-License-Identifier: Apache-2.0
/// The engine against a plain array, on a disk in memory: many requests at once, reopened now and
/// then, and judged by the checker after every close.
#include "qcow2/image.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "base/prng.h"
#include "block/memory.h"
#include "coro/scope.h"
#include "qcow2/memory_image_testing.h"
#include "qcow2/ops/create.h"

namespace byre {
namespace {

struct Shape {
  CreateOptions create;
  ImageOptions open;
};

Shape draw(Prng& prng) {
  Shape shape;
  CreateOptions& c = shape.create;
  c.version = prng.one_in(4) ? 2 : 3;
  const uint32_t bits[] = {9, 12, 14, 16};
  c.cluster_size = uint64_t{1} << bits[prng.below(4)];
  if (c.version == 3) c.refcount_bits = 1u << prng.below(7);
  if (c.version == 3 && c.cluster_size >= 16 * KiB) c.extended_l2 = prng.one_in(2);
  if (c.version == 3) c.lazy_refcounts = prng.one_in(4);
  if (c.version == 3 && prng.one_in(2)) c.compression = Compression::zstd;
  c.size = c.cluster_size * prng.between(1, 64) +
           (prng.one_in(3) ? 512 * prng.below(c.cluster_size / 512) : 0);
  shape.open = {.writable = true,
                .discard = prng.one_in(3) ? DiscardPolicy::ignore : DiscardPolicy::unmap,
                .table_cache_size = prng.one_in(2) ? uint64_t{1} : 1 * MiB,
                .staged_max = prng.one_in(2) ? 4u : 1024u,
                .growth_step = prng.one_in(2) ? uint64_t{1} : 1 * MiB};
  return shape;
}

Task<void> client(Image& image, std::vector<std::byte>& model, uint64_t seed, uint64_t slot,
                  uint64_t slots) {
  // Each client has its own stripe of sectors, so that the model is exact without locks; stripes
  // share clusters, so that requests meet in them.
  Prng prng(seed);
  const uint64_t sectors = model.size() / 512;
  for (int i = 0; i < 60; ++i) {
    const uint64_t region = sectors / slots;
    if (region == 0) co_return;
    uint64_t first = slot * region + prng.below(region);
    uint64_t count = prng.between(1, std::min<uint64_t>(region - (first - slot * region), 64));
    if (prng.one_in(4)) {
      first = slot * region;
      count = region;
    }
    const MutableBytes range = MutableBytes(model).subspan(first * 512, count * 512);
    switch (prng.below(10)) {
      case 8:
      case 9: {
        // Whole clusters of the stripe, one in four of them noise that does not get smaller.
        const uint64_t cluster = image.geometry().cluster_size();
        const uint64_t start = round_up(slot * region * 512, cluster);
        const uint64_t clusters = (slot + 1) * region * 512 / cluster;
        if (start >= clusters * cluster) break;
        const uint64_t at = start + prng.below(clusters - start / cluster) * cluster;
        const uint64_t length = prng.between(1, clusters - at / cluster) * cluster;
        const MutableBytes whole = MutableBytes(model).subspan(at, length);
        for (uint64_t c = 0; c < length; c += cluster) {
          const auto value = static_cast<std::byte>(prng.next());
          const bool noise = prng.one_in(4);
          const uint64_t plain = prng.below(cluster);
          for (uint64_t b = 0; b < cluster; ++b)
            whole[c + b] = noise || b > plain ? static_cast<std::byte>(prng.next()) : value;
        }
        co_await image.write(at, whole, {.fua = prng.one_in(8), .compressed = true});
        break;
      }
      case 0:
      case 1:
      case 2: {
        for (std::byte& b : range) b = static_cast<std::byte>(prng.next() | 1);
        co_await image.write(first * 512, range, {.fua = prng.one_in(8)});
        break;
      }
      case 3: {
        co_await image.zero(first * 512, range.size(), {.may_unmap = prng.one_in(2)});
        fill_zero(range);
        break;
      }
      case 4: {
        std::vector<std::byte> before(range.begin(), range.end());
        co_await image.discard(first * 512, range.size(), {});
        std::vector<std::byte> now(range.size());
        co_await image.read(first * 512, now, IoTag::none);
        for (uint64_t s = 0; s < count; ++s) {
          const Bytes sector = Bytes(now).subspan(s * 512, 512);
          if (!is_zero(sector) && !equal(sector, Bytes(before).subspan(s * 512, 512))) {
            co_await fail(corrupt("discard left something else at sector ", first + s));
          }
        }
        copy(range, now);
        break;
      }
      case 5:
        co_await image.flush();
        break;
      default: {
        std::vector<std::byte> now(range.size());
        co_await image.read(first * 512, now, IoTag::none);
        if (!equal(now, range)) {
          uint64_t at = 0;
          while (now[at] == range[at]) ++at;
          co_await fail(corrupt("client ", slot, " step ", i, ": byte ", first * 512 + at, " is ",
                                static_cast<int>(now[at]), " instead of ",
                                static_cast<int>(range[at])));
        }
      }
    }
  }
}

Task<void> life(Reactor& reactor, Device& memory, Shape shape, std::vector<std::byte>& model,
                uint64_t seed) {
  ClosedGate opener;
  std::unique_ptr<Image> image =
      co_await Image::open_over(std::make_unique<Borrowed>(memory), opener, shape.open);
  Scope scope(reactor.ready());
  for (uint64_t slot = 0; slot < 4; ++slot)
    scope.spawn(client(*image, model, seed * 4 + slot, slot, 4));
  Result<void> joined = co_await scope.join().result();
  Result<void> closed = co_await image->close().result();
  if (!closed) image->abandon();
  co_await std::move(joined);
  co_await std::move(closed);
}

Task<void> history(Reactor& reactor, uint64_t seed) {
  Prng prng(seed);
  const Shape shape = draw(prng);
  MemoryDevice memory(reactor);
  co_await create_image(memory, shape.create);
  std::vector<std::byte> model(round_down(shape.create.size, 512));
  for (int n = 0; n < 3; ++n) {
    co_await life(reactor, memory, shape, model, prng.next());
    co_await expect_sound(memory);
  }
}

TEST(Image, AgreesWithAPlainArrayAndChecksClean) {
  const char* from = std::getenv("BYRE_SEED");
  const uint64_t first = from ? std::strtoull(from, nullptr, 10) : 0;
  for (uint64_t seed = first; seed < first + (from ? 1 : 150); ++seed) {
    Result<std::unique_ptr<Reactor>> reactor = make_reactor();
    ASSERT_TRUE(reactor);
    Result<void> result = (*reactor)->run(history(**reactor, seed));
    ASSERT_TRUE(result) << "seed " << seed << ": " << result.error().message();
  }
}

}  // namespace
}  // namespace byre
