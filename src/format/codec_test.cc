// SPDX-License-Identifier: Apache-2.0
#include "format/codec.h"

#include <gtest/gtest.h>

#define ZLIB_CONST
#include <libdeflate.h>
#include <zlib.h>
#include <zstd.h>

#include <string>

#include "base/prng.h"

namespace byre {
namespace {

constexpr Compression kBoth[] = {Compression::deflate, Compression::zstd};

/// Bytes that compress about as well as text.
std::vector<std::byte> text(size_t size, uint64_t seed = 1) {
  static constexpr std::string_view kWords[] = {"cluster ", "table ", "of ", "the ", "entry "};
  Prng random(seed);
  std::vector<std::byte> bytes;
  while (bytes.size() < size) {
    const Bytes word = bytes_of(kWords[random.below(std::size(kWords))]);
    bytes.insert(bytes.end(), word.begin(), word.end());
  }
  bytes.resize(size);
  return bytes;
}
std::vector<std::byte> noise(size_t size) {
  Prng random(7);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.next());
  return bytes;
}
std::vector<std::byte> operator+(std::vector<std::byte> a, const std::vector<std::byte>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::vector<std::byte> stream_of(Compression compression, Bytes cluster) {
  auto stream = compress(compression, cluster);
  EXPECT_TRUE(stream && *stream);
  return **std::move(stream);
}
std::vector<std::byte> zstd_frame(Bytes content) {
  std::vector<std::byte> frame(ZSTD_compressBound(content.size()));
  frame.resize(ZSTD_compress(frame.data(), frame.size(), content.data(), content.size(), 3));
  return frame;
}
/// The cluster of `size` bytes that a stream gives, or empty when it is refused.
std::vector<std::byte> cluster_of(Compression compression, Bytes stream, size_t size) {
  std::vector<std::byte> cluster(size, std::byte{0xcc});
  if (!decompress(compression, stream, cluster)) return {};
  return cluster;
}

TEST(Codec, WhatWasCompressedComesBack) {
  for (const Compression compression : kBoth)
    for (size_t bits = 9; bits <= 21; ++bits)
      for (const int level : {kDefaultLevel, 1, 9, level_max(compression)}) {
        const std::vector<std::byte> cluster = text(size_t{1} << bits);
        const auto stream = compress(compression, cluster, level);
        ASSERT_TRUE(stream);
        ASSERT_TRUE(*stream);
        EXPECT_LT((*stream)->size(), cluster.size());
        EXPECT_EQ(cluster_of(compression, **stream, cluster.size()), cluster);
      }
}

TEST(Codec, LevelsOutsideTheRangeAreClamped) {
  for (const Compression compression : kBoth)
    for (const int level : {-100, 100}) EXPECT_TRUE(*compress(compression, text(4096), level));
}

// Trap 59: what does not get smaller is stored as it is.
TEST(Codec, NoiseIsNotCompressed) {
  for (const Compression compression : kBoth)
    for (const size_t size : {size_t{512}, size_t{65536}}) {
      const auto stream = compress(compression, noise(size));
      ASSERT_TRUE(stream);
      EXPECT_FALSE(*stream);
    }
}

// Trap 59: no stream is as long as its cluster, however little there is to gain.
TEST(Codec, AStreamIsAlwaysSmallerThanItsCluster) {
  for (const Compression compression : kBoth)
    for (size_t repeat = 0; repeat < 512; repeat += 7) {
      std::vector<std::byte> cluster = noise(512);
      for (size_t i = 0; i < repeat; ++i) cluster[i] = std::byte{0};
      const auto stream = compress(compression, cluster);
      ASSERT_TRUE(stream);
      if (!*stream) continue;
      EXPECT_LT((*stream)->size(), cluster.size());
      EXPECT_EQ(cluster_of(compression, **stream, cluster.size()), cluster);
    }
}

// Trap 50: QEMU's inflate has a window of 4 KiB, but is called once, with the whole cluster to
// fill.
TEST(Codec, DeflateIsReadAsQemuReadsIt) {
  const std::vector<std::byte> once = noise(20000);
  std::vector<std::byte> far = once + once + once;  // Repeats that only a larger window finds.
  far.resize(65536);
  for (const std::vector<std::byte>& cluster : {far, text(65536), text(1 << 21)}) {
    for (int level = 1; level <= level_max(Compression::deflate); ++level) {
      const auto stream = compress(Compression::deflate, cluster, level);
      ASSERT_TRUE(stream && *stream);
      z_stream inflater = {};
      ASSERT_EQ(inflateInit2(&inflater, -12), Z_OK);
      std::vector<std::byte> out(cluster.size());
      inflater.next_in = u8(**stream);
      inflater.avail_in = static_cast<uInt>((*stream)->size());
      inflater.next_out = u8(MutableBytes(out));
      inflater.avail_out = static_cast<uInt>(out.size());
      EXPECT_EQ(inflate(&inflater, Z_FINISH), Z_STREAM_END);
      inflateEnd(&inflater);
      EXPECT_EQ(out, cluster);
    }
  }
}

// Trap 50: what other writers make, with a window of 32 KiB, is read.
TEST(Codec, DeflateWithALargeWindowIsRead) {
  const std::vector<std::byte> once = noise(30000);
  std::vector<std::byte> cluster = once + once;
  cluster.resize(65536);
  std::vector<std::byte> stream(65536);
  libdeflate_compressor* writer = libdeflate_alloc_compressor(6);
  stream.resize(libdeflate_deflate_compress(writer, cluster.data(), cluster.size(), stream.data(),
                                            stream.size()));
  libdeflate_free_compressor(writer);
  ASSERT_GT(stream.size(), 0u);
  EXPECT_EQ(cluster_of(Compression::deflate, stream, cluster.size()), cluster);
}

// Trap 46: a stream longer than its cluster, as a stubborn writer stores it.
TEST(Codec, InflatedClustersAreRead) {
  const std::vector<std::byte> cluster = noise(65536);
  std::vector<std::byte> stored;
  for (size_t at = 0; at < cluster.size(); at += 512) {
    const bool last = at + 512 == cluster.size();
    stored = stored + std::vector<std::byte>{std::byte{last}, std::byte{0}, std::byte{2},
                                             std::byte{0xff}, std::byte{0xfd}};
    stored.insert(stored.end(), cluster.begin() + static_cast<ptrdiff_t>(at),
                  cluster.begin() + static_cast<ptrdiff_t>(at + 512));
  }
  EXPECT_GT(stored.size(), cluster.size());
  EXPECT_EQ(cluster_of(Compression::deflate, stored, cluster.size()), cluster);
  const std::vector<std::byte> frame = zstd_frame(cluster);
  EXPECT_GT(frame.size(), cluster.size());
  EXPECT_EQ(cluster_of(Compression::zstd, frame, cluster.size()), cluster);
}

// Trap 49, trap 52: behind the stream comes the rest of its sector: zeros, or another's bytes.
TEST(Codec, JunkBehindTheStreamIsIgnored) {
  for (const Compression compression : kBoth) {
    const std::vector<std::byte> cluster = text(65536);
    const std::vector<std::byte> stream = stream_of(compression, cluster);
    for (const std::vector<std::byte>& junk :
         {std::vector<std::byte>(700), noise(700), stream, std::vector<std::byte>(3, std::byte{1})})
      EXPECT_EQ(cluster_of(compression, stream + junk, cluster.size()), cluster);
  }
}

// Trap 51: success is exactly one cluster.
TEST(Codec, AStreamThatIsTooShortIsRefused) {
  for (const Compression compression : kBoth) {
    const std::vector<std::byte> stream = stream_of(compression, text(4096));
    EXPECT_TRUE(cluster_of(compression, stream, 4097).empty());
    EXPECT_TRUE(cluster_of(compression, stream, 65536).empty());
    EXPECT_TRUE(cluster_of(compression, {}, 512).empty());
    EXPECT_TRUE(cluster_of(compression, stream + std::vector<std::byte>(512), 65536).empty());
  }
}

// Trap 51: QEMU takes a deflate stream that goes on when the cluster is full, or whose end is
// missing; a zstd frame must end there (trap 52).
TEST(Codec, ADeflateStreamMayGoOnBehindTheCluster) {
  const std::vector<std::byte> words = text(65536);
  const std::vector<std::byte> first(words.begin(), words.begin() + 4096);
  const std::vector<std::byte> deflated = stream_of(Compression::deflate, words);
  EXPECT_EQ(cluster_of(Compression::deflate, deflated, 4096), first);
  EXPECT_EQ(cluster_of(Compression::deflate, Bytes(deflated).first(deflated.size() / 2), 4096),
            first);
  EXPECT_TRUE(cluster_of(Compression::zstd, stream_of(Compression::zstd, words), 4096).empty());

  // Each prefix: refused, or the whole cluster with only the end-of-block code missing.
  const std::vector<std::byte> exact = stream_of(Compression::deflate, first);
  for (size_t size = 0; size < exact.size(); ++size) {
    const std::vector<std::byte> got =
        cluster_of(Compression::deflate, Bytes(exact).first(size), first.size());
    if (got.empty()) continue;
    EXPECT_EQ(got, first);
    EXPECT_GE(size + 2, exact.size());
  }
}

// Trap 52: several frames, empty and skippable ones among them, make up one cluster.
TEST(Codec, ZstdFramesInARowAreOneCluster) {
  const std::vector<std::byte> words = text(65536);
  const auto part = [&](size_t from, size_t size) {
    return zstd_frame(Bytes(words).subspan(from, size));
  };
  const std::vector<std::byte> skippable = {
      std::byte{0x50}, std::byte{0x2a}, std::byte{0x4d}, std::byte{0x18}, std::byte{2},
      std::byte{0},    std::byte{0},    std::byte{0},    std::byte{9},    std::byte{9}};
  EXPECT_EQ(
      cluster_of(Compression::zstd,
                 part(0, 1000) + skippable + part(0, 0) + part(1000, 64536) + noise(100), 65536),
      words);
  EXPECT_TRUE(cluster_of(Compression::zstd, part(0, 1000) + part(1000, 64535), 65536).empty());
  EXPECT_TRUE(cluster_of(Compression::zstd, part(0, 1000) + part(0, 65536), 65536).empty());
}

TEST(Codec, ATruncatedZstdFrameIsRefused) {
  const std::vector<std::byte> stream = stream_of(Compression::zstd, text(65536));
  for (size_t size = 0; size < stream.size(); size += 1 + size / 64)
    EXPECT_TRUE(cluster_of(Compression::zstd, Bytes(stream).first(size), 65536).empty()) << size;
}

// A frame that claims a window of 2 GiB costs no memory in proportion: it decodes into its place.
TEST(Codec, AHugeZstdWindowCostsNothing) {
  std::vector<std::byte> frame = {std::byte{0x28}, std::byte{0xb5}, std::byte{0x2f},
                                  std::byte{0xfd}, std::byte{0x00}, std::byte{21 << 3}};
  // One last block: run-length coded, 512 times 'x'.
  frame = frame +
          std::vector<std::byte>{std::byte{0x03}, std::byte{0x10}, std::byte{0x00}, std::byte{'x'}};
  EXPECT_EQ(cluster_of(Compression::zstd, frame, 512), std::vector<std::byte>(512, std::byte{'x'}));
}

// One Codec is used for everything in turn, after errors too.
TEST(Codec, ContextsAreReusable) {
  Codec codec;
  const std::vector<std::byte> cluster = text(8192);
  for (int round = 0; round < 20; ++round)
    for (const Compression compression : kBoth) {
      const auto stream = codec.compress(compression, cluster, 1 + round % 3);
      ASSERT_TRUE(stream && *stream);
      std::vector<std::byte> out(cluster.size());
      EXPECT_FALSE(codec.decompress(compression, noise(300), out));
      EXPECT_TRUE(codec.decompress(compression, **stream, out));
      EXPECT_EQ(out, cluster);
      EXPECT_FALSE(*codec.compress(compression, noise(8192)));
    }
  Codec moved = std::move(codec);
  std::vector<std::byte> out(cluster.size());
  EXPECT_TRUE(moved.decompress(Compression::zstd, stream_of(Compression::zstd, cluster), out));
}

// Damage gives an error or some cluster, never a crash or a write beyond it.
TEST(Codec, DamagedStreamsAreAnswered) {
  for (const Compression compression : kBoth) {
    const std::vector<std::byte> stream = stream_of(compression, text(4096));
    for (size_t bit = 0; bit < stream.size() * 8; ++bit) {
      std::vector<std::byte> damaged = stream;
      damaged[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
      const std::vector<std::byte> got = cluster_of(compression, damaged, 4096);
      EXPECT_TRUE(got.empty() || got.size() == 4096);
    }
  }
}

}  // namespace
}  // namespace byre
