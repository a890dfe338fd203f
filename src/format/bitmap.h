// SPDX-License-Identifier: Apache-2.0
/// Persistent dirty bitmaps: the bitmaps extension, the bitmap directory, and bitmap tables.
///
/// A directory that parses is well formed: each entry ends inside it, the names differ, tables are
/// cluster aligned and not too large.  That does not make each bitmap one that byre may use; ask
/// check_usable().  Extra data, unknown types and flags of usable form are kept byte for byte.
/// Not here: whether the extension's data are consistent at all (autoclear bit kBitmaps, header.h).
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "format/types.h"

namespace byre {

inline constexpr size_t kBitmapsExtensionSize = 24;

/// Spec: Bitmaps extension.
struct BitmapsExtension {
  uint32_t count = 0;           ///< Bitmaps in the directory, at least 1.
  uint64_t directory_size = 0;  ///< Bytes.
  HostOffset directory_offset;
  friend bool operator==(const BitmapsExtension&, const BitmapsExtension&) = default;
};
/// `data` is the extension's payload.
Result<BitmapsExtension> parse_bitmaps_extension(Bytes data, const Geometry& geometry);
std::array<std::byte, kBitmapsExtensionSize> serialize(const BitmapsExtension& extension);
/// The host clusters of the directory.
HostSpan hosts(const BitmapsExtension& extension, const Geometry& geometry);

/// Spec: Bitmap directory, type.
inline constexpr uint8_t kDirtyTrackingBitmap = 1;

/// One entry of the bitmap directory.
struct Bitmap {
  HostOffset table_offset;
  uint32_t table_entries = 0;
  bool in_use = false;     ///< Was not saved; its bits may be old.
  bool automatic = false;  ///< Spec: auto.  Every change of the disk must be recorded.
  bool extra_data_compatible = false;
  uint8_t type = kDirtyTrackingBitmap;
  uint8_t granularity_bits = 16;
  std::string name;  ///< Any bytes, at least one.
  std::vector<std::byte> extra_data;

  uint64_t granularity() const { return uint64_t{1} << granularity_bits; }
  friend bool operator==(const Bitmap&, const Bitmap&) = default;
};

/// `bytes` are the directory_size bytes of the directory.  Refuses one that does not hold exactly
/// `count` entries.
Result<std::vector<Bitmap>> parse_bitmap_directory(Bytes bytes, uint32_t count,
                                                   const Geometry& geometry);
/// Fails when an entry or the whole is larger than the limits.
Result<std::vector<std::byte>> serialize_bitmap_directory(const std::vector<Bitmap>& bitmaps);
/// Offset of the flags of entry `index` in a serialised directory, so that in_use can be set in
/// place; the flags word is 4 aligned, inside one sector.
size_t bitmap_flags_offset(const std::vector<Bitmap>& bitmaps, size_t index);
/// Writes the flags word of `bitmap` at `at`.
void store_bitmap_flags(MutableBytes directory, size_t at, const Bitmap& bitmap);
/// The host clusters of the bitmap's table.
HostSpan hosts(const Bitmap& bitmap, const Geometry& geometry);

/// Why a bitmap cannot be used.
enum class BitmapFault : uint8_t {
  none,
  in_use,   ///< Was not saved.
  unfit,    ///< Its table is for a disk of another size.
  invalid,  ///< A granularity, name or table that no reader takes, whatever the disk.
  foreign,  ///< Perhaps a newer writer's: a type or extra data that are not known.
};
/// The worst of them, and the same in words that begin with the bitmap's name.
struct Unusable {
  BitmapFault fault = BitmapFault::none;
  std::string why;
};
Unusable why_unusable(const Bitmap& bitmap, uint64_t size, const Geometry& geometry);
/// May byre read this bitmap and write it back for a disk of `size` bytes?  Errc::corrupt when only
/// its contents are lost (in_use, unfit), Errc::unsupported for the rest.
Result<void> check_usable(const Bitmap& bitmap, uint64_t size, const Geometry& geometry);

/// Bytes of bitmap data for a disk of `size` bytes: one bit a granule, rounded up to bytes.
uint64_t bitmap_data_size(uint64_t size, uint32_t granularity_bits);
/// Entries of the bitmap table for them: one a cluster of bitmap data.
uint64_t bitmap_table_entries_for(uint64_t size, uint32_t granularity_bits,
                                  const Geometry& geometry);

/// One entry of a bitmap table: a cluster of bitmap data, or all zeros or all ones without one.
struct BitmapTableEntry {
  std::optional<HostCluster> data;
  bool ones = false;  ///< Never with data.
  friend bool operator==(const BitmapTableEntry&, const BitmapTableEntry&) = default;
};
Result<BitmapTableEntry> decode_bitmap_table_entry(uint64_t entry, const Geometry& geometry);
uint64_t encode_bitmap_table_entry(BitmapTableEntry entry, const Geometry& geometry);

}  // namespace byre
