// SPDX-License-Identifier: Apache-2.0
/// Three bytes of geometry, disk size and count, then a bitmaps extension, then a directory.  What
/// parses is written and read again the same.
#include <cstdint>

#include "format/bitmap.h"

using namespace byre;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 3 + kBitmapsExtensionSize) return 0;
  const Geometry geometry{.cluster_bits = 9u + data[0] % 13u};
  const uint64_t disk_size = uint64_t{data[1]} << (data[1] % 56u);
  const uint32_t count = data[2];
  const Bytes extension_bytes = bytes_at(data + 3, kBitmapsExtensionSize);
  const Bytes directory =
      bytes_at(data + 3 + kBitmapsExtensionSize, size - 3 - kBitmapsExtensionSize);

  if (const auto extension = parse_bitmaps_extension(extension_bytes, geometry)) {
    BYRE_ASSERT(equal(serialize(*extension), extension_bytes));
    BYRE_ASSERT(hosts(*extension, geometry).count != 0);
  }
  const uint64_t entry = load_be<uint64_t>(extension_bytes, 16);
  if (const auto decoded = decode_bitmap_table_entry(entry, geometry))
    BYRE_ASSERT(encode_bitmap_table_entry(*decoded, geometry) == entry);

  const Result<std::vector<Bitmap>> bitmaps = parse_bitmap_directory(directory, count, geometry);
  if (!bitmaps) return 0;
  Result<std::vector<std::byte>> written = serialize_bitmap_directory(*bitmaps);
  BYRE_ASSERT(bool(written));
  BYRE_ASSERT(written->size() == directory.size());
  for (size_t i = 0; i < bitmaps->size(); ++i) {
    const Bitmap& bitmap = (*bitmaps)[i];
    static_cast<void>(check_usable(bitmap, disk_size, geometry));
    static_cast<void>(hosts(bitmap, geometry));
    store_bitmap_flags(*written, bitmap_flags_offset(*bitmaps, i), bitmap);
  }
  const Result<std::vector<Bitmap>> again = parse_bitmap_directory(*written, count, geometry);
  BYRE_ASSERT(bool(again) && *again == *bitmaps);
  return 0;
}
