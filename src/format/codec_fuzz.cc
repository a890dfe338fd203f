// SPDX-License-Identifier: Apache-2.0
/// One byte chooses compression and cluster size, the rest is first a stream, then a cluster.  A
/// stream fills exactly its cluster or fails, whatever is in it; deflate answers as zlib does,
/// which is what QEMU asks; a cluster comes back from what it was compressed to.
#define ZLIB_CONST
#include <zlib.h>

#include <cstdint>
#include <vector>

#include "format/codec.h"

using namespace byre;

namespace {

/// The rule that QEMU applies: the cluster is full, and the stream ended or simply goes on.
bool zlib_accepts(Bytes stream, MutableBytes cluster) {
  z_stream inflater = {};
  BYRE_ASSERT(inflateInit2(&inflater, -15) == Z_OK);
  inflater.next_in = u8(stream);
  inflater.avail_in = static_cast<uInt>(stream.size());
  inflater.next_out = u8(cluster);
  inflater.avail_out = static_cast<uInt>(cluster.size());
  const int result = inflate(&inflater, Z_FINISH);
  const bool full = inflater.avail_out == 0;
  inflateEnd(&inflater);
  return full && (result == Z_STREAM_END || result == Z_BUF_ERROR);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const Compression compression = (data[0] & 1) != 0 ? Compression::zstd : Compression::deflate;
  const size_t cluster_size = size_t{512} << (data[0] >> 1) % 8;
  // An allocation of its own, so that a read behind its end is seen.
  const std::vector<std::byte> stream(bytes_at(data + 1, size - 1).begin(),
                                      bytes_at(data + 1, size - 1).end());

  std::vector<std::byte> cluster(cluster_size);
  const bool accepted = bool(decompress(compression, stream, cluster));
  if (compression == Compression::deflate) {
    std::vector<std::byte> expected(cluster_size);
    const bool expect = zlib_accepts(stream, expected);
    BYRE_ASSERT(!expect || accepted);
    BYRE_ASSERT(!expect || cluster == expected);
  }

  std::vector<std::byte> plain(cluster_size);
  for (size_t i = 0; i < plain.size(); ++i) plain[i] = stream[i % stream.size()];
  const auto compressed = compress(compression, plain, 1 + data[0] % 9);
  BYRE_ASSERT(bool(compressed));
  if (!*compressed) return 0;
  BYRE_ASSERT((*compressed)->size() < plain.size());
  BYRE_ASSERT(bool(decompress(compression, **compressed, cluster)));
  BYRE_ASSERT(cluster == plain);
  return 0;
}
