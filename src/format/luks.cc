// SPDX-License-Identifier: Apache-2.0
#include "format/luks.h"

#include "base/checked.h"

namespace byre {

namespace {

/// Spec: Full disk encryption header pointer.
struct CryptoHeaderDisk {
  be64 offset;
  be64 length;
};
static_assert(sizeof(CryptoHeaderDisk) == kCryptoHeaderPointerSize);

}  // namespace

Result<CryptoHeader> parse_crypto_header(Bytes data, const Geometry& geometry) {
  const auto* disk = view_as<CryptoHeaderDisk>(data);
  if (!disk || data.size() != sizeof *disk)
    return corrupt("encryption header pointer: ", data.size(), " bytes, must be 16");
  const CryptoHeader header{.offset = {disk->offset}, .length = disk->length};
  if (!geometry.aligned(header.offset))
    return corrupt("encryption header at ", header.offset, " is not cluster aligned");
  if (header.offset.value == 0) return corrupt("encryption header in the first cluster");
  if (header.length == 0) return corrupt("encryption header is empty");
  if (header.length > kCryptoHeaderSizeMax)
    return unsupported("encryption header of ", header.length, " bytes, at most ",
                       kCryptoHeaderSizeMax);
  if (!within(header.offset.value, header.length, kFileSizeMax))
    return corrupt("encryption header at ", header.offset, " is beyond any file");
  return header;
}

std::array<std::byte, kCryptoHeaderPointerSize> serialize(const CryptoHeader& header) {
  std::array<std::byte, kCryptoHeaderPointerSize> data;
  copy(data, bytes_of(CryptoHeaderDisk{.offset = header.offset.value, .length = header.length}));
  return data;
}

HostSpan hosts(const CryptoHeader& header, const Geometry& geometry) {
  return {geometry.cluster_of(header.offset), geometry.clusters_for(header.length)};
}

}  // namespace byre
