// SPDX-License-Identifier: Apache-2.0
/// The first byte chooses the header, the rest is the extension area.  What parses is written and
/// read again the same.
#include <cstdint>

#include "format/extension.h"

using namespace byre;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const uint8_t shape = data[0];
  Header header;
  header.cluster_bits = 16;
  if ((shape & 1) != 0) header.crypt_method = CryptMethod::luks;
  if ((shape & 2) != 0) header.incompatible |= kDataFile;
  if ((shape & 4) != 0) header.autoclear |= kBitmaps;
  if ((shape & 8) != 0) header.incompatible |= uint64_t{1} << 40;
  if ((shape & 16) != 0) header.version = 2;

  const Bytes area = bytes_at(data + 1, size - 1);
  std::vector<std::byte> cluster(header.header_length + area.size());
  copy(MutableBytes(cluster).subspan(header.header_length), area);
  if ((shape & 32) != 0) header.backing_file_offset = cluster.size() / 2;

  const Result<Extensions> extensions = parse_extensions(cluster, header);
  if (!extensions) return 0;
  static_cast<void>(check_incompatible(header, *extensions));
  static_cast<void>(oddities(header, *extensions));
  if ((shape & 8) != 0) return 0;

  const std::vector<std::byte> written = serialize(*extensions);
  std::vector<std::byte> next(header.header_length + written.size());
  copy(MutableBytes(next).subspan(header.header_length), written);
  if (next.size() > 0x10000) return 0;
  header.backing_file_offset = 0;
  const Result<Extensions> again = parse_extensions(next, header);
  BYRE_ASSERT(bool(again));
  BYRE_ASSERT(*again == *extensions);
  return 0;
}
