// SPDX-License-Identifier: Apache-2.0
#include "format/codec.h"

#define ZLIB_CONST
#include <libdeflate.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>

namespace byre {

namespace {

constexpr int kDeflateLevel = 3;  // Smaller than zlib at 6, in a quarter of its time.
constexpr int kZstdLevel = 3;

/// Negative: raw deflate, without zlib's header.
constexpr int kReadWindowBits = -15;

/// One of the frames that may follow one another; old formats that libzstd can still read are not.
bool is_zstd_frame(Bytes stream) {
  if (stream.size() < 4) return false;
  uint32_t magic = 0;
  for (size_t i = 4; i-- > 0;) magic = magic << 8 | std::to_integer<uint32_t>(stream[i]);
  return magic == ZSTD_MAGICNUMBER ||
         (magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START;
}

}  // namespace

/// Each is made when it is first needed.
struct Codec::Contexts {
  Contexts() = default;
  Contexts(const Contexts&) = delete;
  Contexts& operator=(const Contexts&) = delete;
  ~Contexts() {
    libdeflate_free_decompressor(fast_inflate);
    if (inflate_ready) inflateEnd(&inflate);
    libdeflate_free_compressor(deflate);
    ZSTD_freeDCtx(zstd_in);
    ZSTD_freeCCtx(zstd_out);
  }

  libdeflate_decompressor* fast_inflate = nullptr;
  z_stream inflate = {};
  bool inflate_ready = false;
  libdeflate_compressor* deflate = nullptr;
  int deflate_level = 0;  ///< Of `deflate`; 0 while there is none.
  ZSTD_DCtx* zstd_in = nullptr;
  ZSTD_CCtx* zstd_out = nullptr;

  Result<void> inflate_cluster(Bytes stream, MutableBytes cluster);
  Result<void> inflate_slowly(Bytes stream, MutableBytes cluster);
  Result<void> unzstd_cluster(Bytes stream, MutableBytes cluster);
  /// Bytes written to `stream`, or none when they do not fit.
  std::optional<size_t> deflate_cluster(Bytes cluster, MutableBytes stream, int level);
  Result<std::optional<size_t>> zstd_cluster(Bytes cluster, MutableBytes stream, int level);
};

Result<void> Codec::Contexts::inflate_cluster(Bytes stream, MutableBytes cluster) {
  if (!fast_inflate) fast_inflate = libdeflate_alloc_decompressor();
  BYRE_ASSERT(fast_inflate);
  size_t used = 0;
  size_t produced = 0;
  const libdeflate_result result = libdeflate_deflate_decompress_ex(
      fast_inflate, stream.data(), stream.size(), cluster.data(), cluster.size(), &used, &produced);
  if (result == LIBDEFLATE_SUCCESS) {
    if (produced == cluster.size()) return {};
    return corrupt("compressed cluster: deflate gives ", produced, " bytes, not ", cluster.size());
  }
  // It wants to see the end of the stream, which QEMU does without once the cluster is full.
  return inflate_slowly(stream, cluster);
}

Result<void> Codec::Contexts::inflate_slowly(Bytes stream, MutableBytes cluster) {
  if (inflate_ready) {
    inflateReset(&inflate);
  } else {
    BYRE_ASSERT(inflateInit2(&inflate, kReadWindowBits) == Z_OK);
    inflate_ready = true;
  }
  inflate.next_in = u8(stream);
  inflate.avail_in = static_cast<uInt>(stream.size());
  inflate.next_out = u8(cluster);
  inflate.avail_out = static_cast<uInt>(cluster.size());
  const int result = ::inflate(&inflate, Z_FINISH);
  const bool full = inflate.avail_out == 0;
  if (full && (result == Z_STREAM_END || result == Z_BUF_ERROR)) return {};
  if (result == Z_STREAM_END || result == Z_BUF_ERROR)
    return corrupt("compressed cluster: deflate gives ", cluster.size() - inflate.avail_out,
                   " bytes, not ", cluster.size());
  return corrupt("compressed cluster: not deflate: ", inflate.msg ? inflate.msg : "unknown");
}

/// Frame by frame into the place they belong, so no window is allocated; a frame must end where
/// the cluster does.
Result<void> Codec::Contexts::unzstd_cluster(Bytes stream, MutableBytes cluster) {
  if (!zstd_in) zstd_in = ZSTD_createDCtx();
  BYRE_ASSERT(zstd_in);
  size_t produced = 0;
  while (produced < cluster.size()) {
    if (!is_zstd_frame(stream))
      return corrupt("compressed cluster: no zstd frame after ", produced, " bytes");
    const size_t frame_size = ZSTD_findFrameCompressedSize(stream.data(), stream.size());
    if (ZSTD_isError(frame_size))
      return corrupt("compressed cluster: zstd: ", ZSTD_getErrorName(frame_size));
    const size_t more = ZSTD_decompressDCtx(zstd_in, cluster.data() + produced,
                                            cluster.size() - produced, stream.data(), frame_size);
    if (ZSTD_isError(more)) return corrupt("compressed cluster: zstd: ", ZSTD_getErrorName(more));
    produced += more;
    stream = stream.subspan(frame_size);
  }
  return {};
}

std::optional<size_t> Codec::Contexts::deflate_cluster(Bytes cluster, MutableBytes stream,
                                                       int level) {
  if (deflate_level != level) {
    libdeflate_free_compressor(deflate);
    deflate = libdeflate_alloc_compressor(level);
    BYRE_ASSERT(deflate);
    deflate_level = level;
  }
  const size_t size = libdeflate_deflate_compress(deflate, cluster.data(), cluster.size(),
                                                  stream.data(), stream.size());
  return size == 0 ? std::nullopt : std::optional(size);
}

Result<std::optional<size_t>> Codec::Contexts::zstd_cluster(Bytes cluster, MutableBytes stream,
                                                            int level) {
  if (!zstd_out) zstd_out = ZSTD_createCCtx();
  BYRE_ASSERT(zstd_out);
  const size_t size = ZSTD_compressCCtx(zstd_out, stream.data(), stream.size(), cluster.data(),
                                        cluster.size(), level);
  if (!ZSTD_isError(size)) return std::optional(size);
  if (ZSTD_getErrorCode(size) == ZSTD_error_dstSize_tooSmall) return std::optional<size_t>();
  return Error(Errc::io, cat("compress: zstd: ", ZSTD_getErrorName(size)));
}

Codec::Codec() : contexts_(std::make_unique<Contexts>()) {}
Codec::~Codec() = default;
Codec::Codec(Codec&&) noexcept = default;
Codec& Codec::operator=(Codec&&) noexcept = default;

Result<void> Codec::decompress(Compression compression, Bytes stream, MutableBytes cluster) {
  if (compression == Compression::zstd) return contexts_->unzstd_cluster(stream, cluster);
  return contexts_->inflate_cluster(stream, cluster);
}

Result<std::optional<std::vector<std::byte>>> Codec::compress(Compression compression,
                                                              Bytes cluster, int level) {
  using Stream = std::optional<std::vector<std::byte>>;
  if (cluster.size() < 2) return Stream();
  std::vector<std::byte> stream(cluster.size() - 1);
  std::optional<size_t> size;
  const bool zstd = compression == Compression::zstd;
  if (level == kDefaultLevel) level = zstd ? kZstdLevel : kDeflateLevel;
  level = std::clamp(level, 1, level_max(compression));
  if (zstd) {
    BYRE_TRY(written, contexts_->zstd_cluster(cluster, stream, level));
    size = written;
  } else {
    size = contexts_->deflate_cluster(cluster, stream, level);
  }
  if (!size) return Stream();
  stream.resize(*size);
  stream.shrink_to_fit();
  return Stream(std::move(stream));
}

namespace {

Codec& this_threads_codec() {
  static thread_local Codec codec;
  return codec;
}

}  // namespace

Result<void> decompress(Compression compression, Bytes stream, MutableBytes cluster) {
  return this_threads_codec().decompress(compression, stream, cluster);
}

Result<std::optional<std::vector<std::byte>>> compress(Compression compression, Bytes cluster,
                                                       int level) {
  return this_threads_codec().compress(compression, cluster, level);
}

}  // namespace byre
