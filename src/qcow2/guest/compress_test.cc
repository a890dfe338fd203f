// SPDX-License-Identifier: Apache-2.0
/// Compressed writes, one rule a test (docs/engine.md, P1 to P5).  Random histories are in
/// image_test.cc and in the simulator.
#include <gtest/gtest.h>

#include <algorithm>

#include "base/prng.h"
#include "block/memory.h"
#include "coro/scope.h"
#include "format/l2.h"
#include "format/refcount.h"
#include "qcow2/image.h"
#include "qcow2/memory_image_testing.h"
#include "qcow2/ops/create.h"

namespace byre {
namespace {

/// The memory below, which counts what is done with streams and can fail their writes.
class Below final : public Borrowed {
 public:
  using Borrowed::Borrowed;
  BYRE_CORO_WRAPPER Task<void> read(uint64_t o, MutableBytes d, ReadOptions options) override {
    if (options.tag == IoTag::read_compressed) ++reads;
    return below().read(o, d, options);
  }
  Task<void> write(uint64_t o, Bytes d, WriteOptions p) override {
    if (p.tag == IoTag::write_compressed) {
      EXPECT_EQ(o % kSectorSize, 0u);
      EXPECT_EQ(d.size() % kSectorSize, 0u);
      EXPECT_FALSE(writing_) << "two writes of streams at once";
      ++writes;
      if (fail_writes > 0) {
        --fail_writes;
        co_await fail(Error(fail_with, "the disk says no"));
      }
      writing_ = true;
      co_await reactor().sleep(kMicrosecond);
      writing_ = false;
    }
    co_await below().write(o, d, p);
  }
  Task<void> discard(uint64_t, uint64_t, DiscardOptions) override { co_return; }

  int reads = 0;
  int writes = 0;
  int fail_writes = 0;
  Errc fail_with = Errc::io;
  bool writing_ = false;
};

class Compress : public testing::Test {
 protected:
  void create(CreateOptions options) {
    memory_.emplace(*reactor_);
    const Result<void> made = reactor_->run(create_image(*memory_, options));
    ASSERT_TRUE(made) << made.error().message();
    geometry_ = *check_create(options);
    model_.assign(options.size, std::byte{0});
    open();
  }
  void open(ImageOptions options = {.writable = true}) {
    auto below = std::make_unique<Below>(*memory_);
    below_ = below.get();
    auto image = reactor_->run(Image::open_over(std::move(below), opener_, std::move(options)));
    ASSERT_TRUE(image) << image.error().message();
    image_ = *std::move(image);
  }
  uint64_t cluster() const { return geometry_.cluster_size(); }

  /// A cluster with about `noise` bytes that do not get smaller.
  std::vector<std::byte> cluster_with(uint64_t noise, int value = 'x') {
    std::vector<std::byte> bytes(cluster(), static_cast<std::byte>(value));
    for (uint64_t i = 0; i < std::min(noise, cluster()); ++i)
      bytes[i] = static_cast<std::byte>(prng_.next());
    return bytes;
  }
  /// What the disk should hold from now on.
  Bytes expect(uint64_t at, Bytes data) {
    copy(MutableBytes(model_).subspan(at, data.size()), data);
    return data;
  }
  Result<void> pack(uint64_t at, Bytes data) {
    return reactor_->run(image_->write(at, data, {.compressed = true}));
  }
  void pack_cluster(uint64_t number, uint64_t noise) {
    const std::vector<std::byte> bytes = cluster_with(noise, static_cast<int>('a' + number % 26));
    const Result<void> done = pack(number * cluster(), expect(number * cluster(), bytes));
    ASSERT_TRUE(done) << done.error().message();
  }
  void discard_cluster(uint64_t number) {
    ASSERT_TRUE(reactor_->run(image_->discard(number * cluster(), cluster(), {})));
    fill_zero(MutableBytes(model_).subspan(number * cluster(), cluster()));
  }
  Extent status(uint64_t number) {
    const uint64_t at = number * cluster();
    return *reactor_->run(image_->status(at, std::min(cluster(), model_.size() - at)));
  }
  /// The disk reads as the model, closed and opened again, and the checker finds nothing.
  void verify() {
    for (int round = 0; round < 2; ++round) {
      std::vector<std::byte> now(model_.size());
      const Result<void> read = reactor_->run(image_->read(0, now, IoTag::none));
      ASSERT_TRUE(read) << read.error().message();
      ASSERT_EQ(now, model_);
      const Result<void> closed = reactor_->run(image_->close());
      ASSERT_TRUE(closed) << closed.error().message();
      const Result<void> sound = reactor_->run(expect_sound(*memory_));
      EXPECT_TRUE(sound) << sound.error().message();
      open();
    }
  }
  void TearDown() override {
    if (image_) EXPECT_TRUE(reactor_->run(image_->close()));
  }

  std::unique_ptr<Reactor> reactor_ = *make_reactor(ReactorKind::posix);
  std::optional<MemoryDevice> memory_;
  ClosedGate opener_;
  Geometry geometry_;
  Below* below_ = nullptr;
  std::unique_ptr<Image> image_;
  std::vector<std::byte> model_;
  Prng prng_{1};
};

TEST_F(Compress, StreamsArePackedToTheByteAcrossClusters) {
  create({.size = 4 * MiB});
  const uint64_t before = memory_->size();
  uint64_t noise = 0;
  for (uint64_t n = 0; n < 64; ++n) {
    pack_cluster(n, 20000 + n);
    noise += 20000 + n;
    EXPECT_TRUE(status(n).compressed);
  }
  verify();
  // 64 times 20000 bytes: with a stream a cluster it would be 64 of them.
  EXPECT_LE(memory_->size() - before, noise + 64 * 512 + 3 * cluster());
}

TEST_F(Compress, EveryGeometryKeepsItsDataAndItsRefcounts) {
  for (const uint32_t bits : {9u, 12u, 14u, 16u, 21u}) {
    for (uint32_t order = 0; order <= 6; ++order) {
      for (const bool zstd : {false, true}) {
        if (bits == 21 && order % 4 != (zstd ? 1 : 0)) continue;  // They take long.
        SCOPED_TRACE(cat(bits, " ", order, " ", zstd));
        const uint64_t size = (uint64_t{20} << bits) + 3 * kSectorSize;
        create({.size = bits == 21 ? size / 2 / kSectorSize * kSectorSize : size,
                .cluster_size = uint64_t{1} << bits,
                .refcount_bits = 1u << order,
                .extended_l2 = bits >= 14 && order % 2 == 0,
                .compression = zstd ? Compression::zstd : Compression::deflate});
        const uint64_t count = model_.size() / cluster();
        for (int round = 0; round < 3; ++round) {
          for (uint64_t i = 0; i < count; ++i) {
            const uint64_t n = prng_.below(count);
            if (prng_.one_in(5)) {
              discard_cluster(n);
            } else {
              pack_cluster(n, prng_.below(cluster() * 9 / 8));
            }
          }
          verify();
        }
        ASSERT_TRUE(reactor_->run(image_->close()));
        image_ = nullptr;
      }
    }
  }
}

// P1, session R-C: the cursor does not outlive its cluster.
TEST_F(Compress, TheCursorEndsWithTheLastStreamOfItsCluster) {
  create({.size = 1 * MiB});
  for (int round = 0; round < 6; ++round) {
    pack_cluster(0, 100);
    discard_cluster(0);
    ASSERT_TRUE(reactor_->run(image_->flush()));
    ASSERT_TRUE(reactor_->run(image_->flush()));
    const std::vector<std::byte> plain(cluster(), std::byte{3});
    ASSERT_TRUE(reactor_->run(image_->write(2 * cluster(), expect(2 * cluster(), plain), {})));
    pack_cluster(4, 100);
    verify();
    discard_cluster(2);
  }
}

// A5: a refcount of one bit counts one stream, of two bits three.
TEST_F(Compress, AFullRefcountBeginsAnotherCluster) {
  for (const uint32_t bits : {1u, 2u}) {
    create({.size = 1 * MiB, .refcount_bits = bits});
    const uint64_t before = image_->stats().clusters_allocated;
    for (uint64_t n = 0; n < 12; ++n) pack_cluster(n, 100);
    EXPECT_GE(image_->stats().clusters_allocated - before, 12u / (bits == 1 ? 1 : 3));
    verify();
    ASSERT_TRUE(reactor_->run(image_->close()));
    image_ = nullptr;
  }
}

// Trap 59.
TEST_F(Compress, WhatDoesNotGetSmallerIsWrittenAsItIs) {
  create({.size = 1 * MiB});
  std::vector<std::byte> data;
  for (const uint64_t noise : {100u, 65536u, 65536u, 100u, 65536u}) {
    const std::vector<std::byte> bytes = cluster_with(noise);
    data.insert(data.end(), bytes.begin(), bytes.end());
  }
  ASSERT_TRUE(pack(0, expect(0, data)));
  for (uint64_t n = 0; n < 5; ++n) EXPECT_EQ(status(n).compressed, n == 0 || n == 3) << n;
  verify();
}

// Trap 60: the disk ends inside its last cluster, which is padded.
TEST_F(Compress, TheShortLastClusterIsCompressed) {
  create({.size = 2 * 64 * KiB + 512});
  const std::vector<std::byte> tail(512, std::byte{7});
  ASSERT_TRUE(pack(2 * cluster(), expect(2 * cluster(), tail)));
  EXPECT_TRUE(status(2).compressed);
  verify();
  ASSERT_TRUE(reactor_->run(image_->resize(4 * cluster())));
  model_.resize(4 * cluster());
  verify();
}

TEST_F(Compress, PartsOfClustersAreRefused) {
  create({.size = 2 * 64 * KiB + 1024});
  const std::vector<std::byte> data(cluster(), std::byte{7});
  const auto code = [&](uint64_t at, uint64_t length) {
    const Result<void> done = pack(at, Bytes(data).first(length));
    return done ? Errc::io : done.error().code();
  };
  EXPECT_EQ(code(512, 65536), Errc::invalid);
  EXPECT_EQ(code(0, 512), Errc::invalid);
  EXPECT_EQ(code(2 * cluster(), 512), Errc::invalid);
  EXPECT_EQ(code(2 * cluster() + 512, 512), Errc::invalid);
  verify();
}

TEST_F(Compress, OtherDevicesRefuse) {
  MemoryDevice memory(*reactor_, 4096);
  const std::vector<std::byte> data(512);
  const Result<void> done = reactor_->run(memory.write(0, data, {.compressed = true}));
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code(), Errc::unsupported);
}

// P4, trap E26: over streams, data, zeros with and without a cluster, and the other way round.
TEST_F(Compress, AnythingIsWrittenOverAnything) {
  create({.size = 1 * MiB});
  for (int round = 0; round < 40; ++round) {
    const uint64_t n = prng_.below(4);
    switch (prng_.below(5)) {
      case 0:
      case 1:
        pack_cluster(n, prng_.below(60000));
        break;
      case 2: {
        const std::vector<std::byte> part(4096, static_cast<std::byte>(round));
        const uint64_t at = n * cluster() + 4096 * prng_.below(16);
        ASSERT_TRUE(reactor_->run(image_->write(at, expect(at, part), {})));
        break;
      }
      case 3:
        ASSERT_TRUE(
            reactor_->run(image_->zero(n * cluster(), cluster(), {.may_unmap = prng_.one_in(2)})));
        fill_zero(MutableBytes(model_).subspan(n * cluster(), cluster()));
        break;
      default:
        discard_cluster(n);
        break;
    }
    ASSERT_TRUE(reactor_->run(image_->flush()));
  }
  verify();
  EXPECT_LE(memory_->size(), 16 * cluster());
}

// P3, session R-K: the map learns of a stream only when its bytes are down.
TEST_F(Compress, AFailedWriteLeavesTheOldData) {
  create({.size = 1 * MiB});
  pack_cluster(0, 1000);
  below_->fail_writes = 1;
  EXPECT_FALSE(pack(0, cluster_with(500)));
  EXPECT_FALSE(status(1).compressed);
  below_->fail_writes = 1;
  EXPECT_FALSE(pack(cluster(), cluster_with(500)));
  pack_cluster(2, 1000);
  verify();
}

TEST_F(Compress, AFullDiskIsTriedAgainOnceSpaceWasFreed) {
  create({.size = 1 * MiB});
  pack_cluster(0, 1000);
  discard_cluster(0);
  below_->fail_writes = 1;
  below_->fail_with = Errc::no_space;
  pack_cluster(1, 1000);
  below_->fail_writes = 2;
  const Result<void> full = pack(3 * cluster(), cluster_with(1000));
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code(), Errc::no_space);
  verify();
}

// L6, P2: many at once are few writes, never two at once, and none loses its part of a sector.
TEST_F(Compress, StreamsThatComeTogetherGoDownTogether) {
  create({.size = 8 * MiB});
  for (int round = 0; round < 4; ++round) {
    below_->writes = 0;
    std::vector<std::vector<std::byte>> data;
    Scope scope(reactor_->ready());
    for (uint64_t n = 0; n < 128; ++n) data.push_back(cluster_with(prng_.below(3000)));
    const auto one = [](Image& image, uint64_t at, Bytes bytes) -> Task<void> {
      co_await image.write(at, bytes, {.compressed = true});
    };
    for (uint64_t n = 0; n < 128; ++n)
      scope.spawn(one(*image_, n * cluster(), expect(n * cluster(), data[n])));
    ASSERT_TRUE(reactor_->run(scope.join()));
    EXPECT_LT(below_->writes, 128);
    verify();
  }
}

// A write that fails takes those with it that were in it, and no others.
TEST_F(Compress, WhatWaitsBehindAFailedWriteIsPlacedAnew) {
  create({.size = 8 * MiB});
  for (int round = 0; round < 4; ++round) {
    std::vector<std::vector<std::byte>> data;
    for (uint64_t n = 0; n < 64; ++n) data.push_back(cluster_with(prng_.below(3000)));
    below_->fail_writes = 1;
    uint64_t failed = 0;
    Scope scope(reactor_->ready());
    const auto one = [&](uint64_t n) -> Task<void> {
      const Result<void> done =
          co_await image_->write(n * cluster(), data[n], {.compressed = true}).result();
      if (done) {
        expect(n * cluster(), data[n]);
      } else {
        ++failed;
      }
    };
    for (uint64_t n = 0; n < 64; ++n) scope.spawn(one(n));
    ASSERT_TRUE(reactor_->run(scope.join()));
    EXPECT_GE(failed, 1u);
    EXPECT_LT(failed, 64u);
    verify();
  }
}

// The streams lie in the order in which the writes began, however long compressing took.
TEST_F(Compress, StreamsKeepTheOrderOfTheirRequests) {
  create({.size = 8 * MiB});
  std::vector<std::vector<std::byte>> data;
  for (uint64_t n = 0; n < 64; ++n) data.push_back(cluster_with(n % 4 == 0 ? 60000 : 100));
  Scope scope(reactor_->ready());
  const auto one = [](Image& image, uint64_t at, Bytes bytes) -> Task<void> {
    co_await image.write(at, bytes, {.compressed = true});
  };
  for (uint64_t n = 0; n < 64; ++n)
    scope.spawn(one(*image_, n * cluster(), expect(n * cluster(), data[n])));
  ASSERT_TRUE(reactor_->run(scope.join()));
  ASSERT_TRUE(reactor_->run(image_->flush()));
  std::byte table[8];
  memory_->peek(40, table);
  memory_->peek(load_be<uint64_t>(table), table);
  const uint64_t l2 = load_be<uint64_t>(table) & kOffsetMask;
  uint64_t last = 0;
  for (uint64_t n = 0; n < 64; ++n) {
    memory_->peek(l2 + n * 8, table);
    const Result<Mapping> mapping = decode_l2({load_be<uint64_t>(table), 0}, geometry_);
    ASSERT_TRUE(mapping && mapping->compressed);
    EXPECT_GT(mapping->compressed_at.value, last);
    last = mapping->compressed_at.value;
  }
  verify();
}

// Small reads one behind the other, or side by side, unpack a cluster once.
TEST_F(Compress, SequentialReadsUnpackEachClusterOnce) {
  create({.size = 1 * MiB});
  for (uint64_t n = 0; n < 16; ++n) pack_cluster(n, 1000);
  std::vector<std::byte> small(4096);
  for (uint64_t at = 0; at < model_.size(); at += small.size()) {
    ASSERT_TRUE(reactor_->run(image_->read(at, small, IoTag::none)));
    EXPECT_TRUE(equal(small, Bytes(model_).subspan(at, small.size())));
  }
  EXPECT_EQ(below_->reads, 16);
  EXPECT_EQ(image_->stats().clusters_decompressed, 16u);
  verify();

  below_->reads = 0;
  std::vector<std::vector<std::byte>> data(16, small);
  Scope scope(reactor_->ready());
  const auto one = [](Image& image, uint64_t at, MutableBytes out) -> Task<void> {
    co_await image.read(at, out, IoTag::none);
  };
  for (uint64_t i = 0; i < 16; ++i) scope.spawn(one(*image_, i * 4096, data[i]));
  ASSERT_TRUE(reactor_->run(scope.join()));
  EXPECT_EQ(below_->reads, 1);
  for (uint64_t i = 0; i < 16; ++i)
    EXPECT_TRUE(equal(data[i], Bytes(model_).subspan(i * 4096, 4096)));
}

// What was decompressed is forgotten when its bytes may change: the same place, another stream.
TEST_F(Compress, AnUnpackedClusterIsForgottenWhenItsHostIsFree) {
  create({.size = 1 * MiB});
  std::vector<std::byte> small(4096);
  for (int round = 0; round < 20; ++round) {
    // All streams have the same length, so places recur with the same descriptor.
    const std::vector<std::byte> bytes(cluster(), static_cast<std::byte>('a' + round));
    const uint64_t at = cluster() * (static_cast<uint64_t>(round) % 2);
    ASSERT_TRUE(pack(at, expect(at, bytes)));
    ASSERT_TRUE(reactor_->run(image_->read(at + 8192, small, IoTag::none)));
    EXPECT_TRUE(equal(small, Bytes(bytes).first(4096)));
    discard_cluster(at / cluster());
    for (int flush = 0; flush < 3; ++flush) ASSERT_TRUE(reactor_->run(image_->flush()));
  }
  EXPECT_GT(image_->stats().clusters_freed, 5u);
  verify();
}

}  // namespace
}  // namespace byre
