// SPDX-License-Identifier: Apache-2.0
/// Compressed clusters: one cluster in, one stream out, and back.
///
/// A stream is raw deflate (RFC 1951) or zstd frames, followed by whatever shares its last sector.
/// Success of decompress() means that exactly one cluster was produced; deflate has no checksum, so
/// that is all the proof there is.  What QEMU accepts is accepted: a deflate stream that fills the
/// cluster before it ends, several zstd frames in a row, trailing junk.
/// Deflate is written by libdeflate with its window of 32 KiB.  QEMU sets its inflate up for 4 KiB
/// but decodes a cluster in one call into one buffer, where longer distances are fine, and the
/// specification says RFC 1951 (tests/interop/compress_test.py asks every qemu-img at hand).
///
/// Cost: tens to hundreds of MB/s one way, hundreds the other: work for Reactor::offload().
/// Contexts (1 MiB at common levels, 10 at the highest) are kept in a Codec; the free functions
/// keep one a thread.
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

/// Stands for the level that fits most: 3 for both.
inline constexpr int kDefaultLevel = 0;
/// The highest level; the lowest is 1.
constexpr int level_max(Compression compression) {
  return compression == Compression::zstd ? 19 : 12;
}

class Codec {
 public:
  Codec();
  ~Codec();
  Codec(Codec&&) noexcept;
  Codec& operator=(Codec&&) noexcept;

  /// Fills `cluster` from `stream`, or fails; what `cluster` then holds is undefined.
  Result<void> decompress(Compression compression, Bytes stream, MutableBytes cluster);

  /// The stream for `cluster`, or none when it would not be smaller.  `level` is 1 to
  /// level_max(), clamped to that, or kDefaultLevel.
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
