// SPDX-License-Identifier: Apache-2.0
/// Compressed clusters: one cluster in, one stream out, and back.
///
/// A stream is raw deflate (RFC 1951) or zstd frames, followed by whatever shares its last sector.
/// Success of decompress() means that exactly one cluster was produced; deflate has no checksum, so
/// that is all the proof there is.  What QEMU accepts is accepted: a deflate stream that fills the
/// cluster before it ends, several zstd frames in a row, trailing junk.
/// Deflate is written with a window of 4 KiB, the one that QEMU's inflate is set up for.
///
/// Cost: deflate in tens of MB/s one way, hundreds the other: work for the offload pool.  Contexts
/// (about 1 MiB for large zstd levels) are kept in a Codec; the free functions keep one a thread.
/// No memory in proportion to what a stream claims is ever allocated.
/// Thread safety: one thread at a time a Codec.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "format/types.h"

namespace byre {

/// Stands for the level that fits most: 6 for deflate, 3 for zstd.
inline constexpr int kDefaultLevel = 0;

class Codec {
 public:
  Codec();
  ~Codec();
  Codec(Codec&&) noexcept;
  Codec& operator=(Codec&&) noexcept;

  /// Fills `cluster` from `stream`, or fails; what `cluster` then holds is undefined.
  Result<void> decompress(Compression compression, Bytes stream, MutableBytes cluster);

  /// The stream for `cluster`, or none when it would not be smaller.  `level` is 1 to 9 for
  /// deflate, 1 to 19 for zstd, clamped to that, or kDefaultLevel.
  Result<std::optional<std::vector<std::byte>>> compress(Compression compression, Bytes cluster,
                                                         int level = kDefaultLevel);

 private:
  struct Contexts;
  std::unique_ptr<Contexts> contexts_;
};

/// The same with this thread's own Codec.
Result<void> decompress(Compression compression, Bytes stream, MutableBytes cluster);
Result<std::optional<std::vector<std::byte>>> compress(Compression compression, Bytes cluster,
                                                       int level = kDefaultLevel);

}  // namespace byre
