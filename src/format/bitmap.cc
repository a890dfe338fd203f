// SPDX-License-Identifier: Apache-2.0
#include "format/bitmap.h"

#include <unordered_set>

#include "base/checked.h"
#include "format/l1.h"

namespace byre {

namespace {

/// Spec: Bitmaps extension.
struct BitmapsExtensionDisk {
  be32 count;
  be32 reserved;
  be64 directory_size;
  be64 directory_offset;
};
static_assert(sizeof(BitmapsExtensionDisk) == kBitmapsExtensionSize);

/// Spec: Bitmap directory, the part before extra data and name.
struct BitmapDisk {
  be64 table_offset;
  be32 table_entries;
  be32 flags;
  uint8_t type;
  uint8_t granularity_bits;
  be16 name_size;
  be32 extra_data_size;
};
static_assert(sizeof(BitmapDisk) == 24 && alignof(BitmapDisk) == 1);
constexpr size_t kFlagsOffset = 12;

constexpr uint32_t kInUse = 1u << 0;
constexpr uint32_t kAutomatic = 1u << 1;
constexpr uint32_t kExtraDataCompatible = 1u << 2;
constexpr uint32_t kFlagsKnown = kInUse | kAutomatic | kExtraDataCompatible;

/// An entry has a name of one byte at least.
constexpr uint64_t kEntrySizeMin = round_up(sizeof(BitmapDisk) + 1, 8);

uint64_t entry_size(const Bitmap& bitmap) {
  return round_up(sizeof(BitmapDisk) + bitmap.extra_data.size() + bitmap.name.size(), 8);
}

uint32_t flags_of(const Bitmap& bitmap) {
  return (bitmap.in_use ? kInUse : 0) | (bitmap.automatic ? kAutomatic : 0) |
         (bitmap.extra_data_compatible ? kExtraDataCompatible : 0);
}

/// The entry at the start of `bytes`; `size` becomes what it takes of them, padding included.
Result<Bitmap> parse_entry(Bytes bytes, const Geometry& geometry, uint64_t& size) {
  const auto* disk = view_as<BitmapDisk>(bytes);
  if (!disk) return corrupt("the directory ends in the middle of the entry");
  const uint64_t name_size = disk->name_size;
  const uint64_t extra_size = disk->extra_data_size;
  size = round_up(sizeof *disk + extra_size + name_size, 8);
  if (size > bytes.size()) return corrupt("the directory ends in the middle of the entry");
  if (name_size == 0) return corrupt("the name is empty");

  const uint32_t flags = disk->flags;
  if ((flags & ~kFlagsKnown) != 0) return corrupt("reserved flags ", hex(flags), " are set");
  if (disk->granularity_bits > 63)
    return corrupt("granularity of 2^", uint32_t{disk->granularity_bits}, " bytes");

  Bitmap bitmap;
  bitmap.table_offset = {disk->table_offset};
  bitmap.table_entries = disk->table_entries;
  bitmap.in_use = (flags & kInUse) != 0;
  bitmap.automatic = (flags & kAutomatic) != 0;
  bitmap.extra_data_compatible = (flags & kExtraDataCompatible) != 0;
  bitmap.type = disk->type;
  bitmap.granularity_bits = disk->granularity_bits;
  const Bytes extra = bytes.subspan(sizeof *disk, extra_size);
  bitmap.extra_data.assign(extra.begin(), extra.end());
  bitmap.name = text_of(bytes.subspan(sizeof *disk + extra_size, name_size));

  if (!geometry.aligned(bitmap.table_offset))
    return corrupt("table at ", bitmap.table_offset, " is not cluster aligned");
  if (bitmap.table_entries > kBitmapTableEntriesMax)
    return unsupported("table of ", bitmap.table_entries, " entries, at most ",
                       kBitmapTableEntriesMax);
  if (bitmap.table_entries != 0 && bitmap.table_offset.value == 0)
    return corrupt("table in the first cluster");
  if (!within(bitmap.table_offset.value, uint64_t{bitmap.table_entries} * 8, kFileSizeMax))
    return corrupt("table at ", bitmap.table_offset, " is beyond any file");
  return bitmap;
}

}  // namespace

Result<BitmapsExtension> parse_bitmaps_extension(Bytes data, const Geometry& geometry) {
  const auto* disk = view_as<BitmapsExtensionDisk>(data);
  if (!disk || data.size() != sizeof *disk)
    return corrupt("bitmaps extension: ", data.size(), " bytes, must be 24");
  if (disk->reserved != 0) return corrupt("bitmaps extension: reserved field is not zero");

  const BitmapsExtension extension{.count = disk->count,
                                   .directory_size = disk->directory_size,
                                   .directory_offset = {disk->directory_offset}};
  if (extension.count == 0 || extension.count > kBitmapsMax)
    return corrupt("bitmaps extension: ", extension.count, " bitmaps, allowed are 1 to 65535");
  if (extension.directory_size > kBitmapDirectorySizeMax)
    return unsupported("bitmap directory of ", extension.directory_size, " bytes, at most ",
                       kBitmapDirectorySizeMax);
  if (extension.directory_size < extension.count * kEntrySizeMin)
    return corrupt("bitmap directory of ", extension.directory_size, " bytes for ", extension.count,
                   " bitmaps");
  if (!geometry.aligned(extension.directory_offset))
    return corrupt("bitmap directory at ", extension.directory_offset, " is not cluster aligned");
  if (extension.directory_offset.value == 0)
    return corrupt("bitmap directory in the first cluster");
  if (!within(extension.directory_offset.value, extension.directory_size, kFileSizeMax))
    return corrupt("bitmap directory at ", extension.directory_offset, " is beyond any file");
  return extension;
}

std::array<std::byte, kBitmapsExtensionSize> serialize(const BitmapsExtension& extension) {
  std::array<std::byte, kBitmapsExtensionSize> data;
  copy(data, bytes_of(BitmapsExtensionDisk{.count = extension.count,
                                           .reserved = 0,
                                           .directory_size = extension.directory_size,
                                           .directory_offset = extension.directory_offset.value}));
  return data;
}

HostSpan hosts(const BitmapsExtension& extension, const Geometry& geometry) {
  return {geometry.cluster_of(extension.directory_offset),
          geometry.clusters_for(extension.directory_size)};
}

Result<std::vector<Bitmap>> parse_bitmap_directory(Bytes bytes, uint32_t count,
                                                   const Geometry& geometry) {
  std::vector<Bitmap> bitmaps;
  std::unordered_set<std::string> names;
  for (uint32_t i = 0; i < count; ++i) {
    uint64_t size = 0;
    Result<Bitmap> bitmap = parse_entry(bytes, geometry, size).doing("bitmap directory entry ", i);
    if (!bitmap) return std::move(bitmap).error();
    if (!names.insert(bitmap->name).second)
      return corrupt("bitmap directory: two bitmaps are called ", quoted(bitmap->name));
    bitmaps.push_back(*std::move(bitmap));
    bytes = bytes.subspan(size);
  }
  if (!bytes.empty())
    return corrupt("bitmap directory: ", bytes.size(), " bytes behind its last entry");
  return bitmaps;
}

Result<std::vector<std::byte>> serialize_bitmap_directory(const std::vector<Bitmap>& bitmaps) {
  if (bitmaps.size() > kBitmapsMax)
    return invalid(bitmaps.size(), " bitmaps, at most ", kBitmapsMax, " fit in an image");
  uint64_t total = 0;
  for (const Bitmap& bitmap : bitmaps) {
    if (bitmap.name.empty() || bitmap.name.size() > UINT16_MAX)
      return invalid("bitmap name of ", bitmap.name.size(), " bytes");
    if (bitmap.extra_data.size() > kBitmapDirectorySizeMax)
      return invalid("bitmap ", quoted(bitmap.name), ": too much extra data");
    total += entry_size(bitmap);
  }
  if (total > kBitmapDirectorySizeMax)
    return invalid("bitmap directory of ", total, " bytes, at most ", kBitmapDirectorySizeMax);

  std::vector<std::byte> directory(total);
  MutableBytes rest = directory;
  for (const Bitmap& bitmap : bitmaps) {
    copy(rest,
         bytes_of(BitmapDisk{.table_offset = bitmap.table_offset.value,
                             .table_entries = bitmap.table_entries,
                             .flags = flags_of(bitmap),
                             .type = bitmap.type,
                             .granularity_bits = bitmap.granularity_bits,
                             .name_size = static_cast<uint16_t>(bitmap.name.size()),
                             .extra_data_size = static_cast<uint32_t>(bitmap.extra_data.size())}));
    copy(rest.subspan(sizeof(BitmapDisk)), bitmap.extra_data);
    copy(rest.subspan(sizeof(BitmapDisk) + bitmap.extra_data.size()),
         bytes_of(std::string_view(bitmap.name)));
    rest = rest.subspan(entry_size(bitmap));
  }
  return directory;
}

size_t bitmap_flags_offset(const std::vector<Bitmap>& bitmaps, size_t index) {
  BYRE_ASSERT(index < bitmaps.size());
  size_t at = 0;
  for (size_t i = 0; i < index; ++i) at += entry_size(bitmaps[i]);
  return at + kFlagsOffset;
}

void store_bitmap_flags(MutableBytes directory, size_t at, const Bitmap& bitmap) {
  BYRE_ASSERT(at + 4 <= directory.size());
  store_be(directory, at, flags_of(bitmap));
}

HostSpan hosts(const Bitmap& bitmap, const Geometry& geometry) {
  return {geometry.cluster_of(bitmap.table_offset),
          geometry.clusters_for(uint64_t{bitmap.table_entries} * 8)};
}

Unusable why_unusable(const Bitmap& bitmap, uint64_t size, const Geometry& geometry) {
  const auto is = [&](BitmapFault fault, const auto&... why) {
    return Unusable{fault, cat("bitmap ", quoted(bitmap.name), ": ", why...)};
  };
  if (bitmap.type != kDirtyTrackingBitmap)
    return is(BitmapFault::foreign, "type ", uint32_t{bitmap.type}, " is not known");
  if (!bitmap.extra_data.empty() && !bitmap.extra_data_compatible)
    return is(BitmapFault::foreign, "has extra data that must be understood");
  const uint32_t bits = bitmap.granularity_bits;
  if (bits < kBitmapGranularityBitsMin || bits > kBitmapGranularityBitsMax) {
    return is(BitmapFault::invalid, "granularity of 2^", bits,
              " bytes, allowed are 512 bytes to 2 GiB");
  }
  if (bitmap.name.size() > kBitmapNameSizeMax) {
    return is(BitmapFault::invalid, "name of ", bitmap.name.size(), " bytes, at most ",
              kBitmapNameSizeMax);
  }
  const uint64_t wanted = bitmap_table_entries_for(size, bits, geometry);
  const uint64_t entries = bitmap.table_entries;
  // On a disk of no bytes there is nothing to record, and no reader takes a table without entries.
  const bool lost = entries == 0 || wanted == 0;
  const bool too_large = entries > kBitmapDataSizeMax / geometry.cluster_size();
  if (lost || too_large || (!bitmap.in_use && entries != wanted)) {
    return is(lost || too_large ? BitmapFault::invalid : BitmapFault::unfit, "table of ", entries,
              " entries, the disk needs ", wanted,
              too_large ? cat(", and more than ", kBitmapDataSizeMax, " bytes are too many") : "");
  }
  if (bitmap.in_use) return is(BitmapFault::in_use, "was not saved correctly (in_use)");
  return {};
}

Result<void> check_usable(const Bitmap& bitmap, uint64_t size, const Geometry& geometry) {
  const Unusable unusable = why_unusable(bitmap, size, geometry);
  if (unusable.fault == BitmapFault::none) return {};
  const bool lost = unusable.fault == BitmapFault::in_use || unusable.fault == BitmapFault::unfit;
  return lost ? corrupt(unusable.why) : unsupported(unusable.why);
}

uint64_t bitmap_data_size(uint64_t size, uint32_t granularity_bits) {
  const uint64_t granularity = uint64_t{1} << granularity_bits;
  return div_ceil(div_ceil(size, granularity), 8);
}

uint64_t bitmap_table_entries_for(uint64_t size, uint32_t granularity_bits,
                                  const Geometry& geometry) {
  return geometry.clusters_for(bitmap_data_size(size, granularity_bits));
}

Result<BitmapTableEntry> decode_bitmap_table_entry(uint64_t entry, const Geometry& geometry) {
  const uint64_t offset = entry & kOffsetMask;
  const bool ones = (entry & 1) != 0;
  if ((entry & ~(kOffsetMask | 1)) != 0)
    return corrupt("bitmap table entry ", hex(entry), ": reserved bits are set");
  if (offset == 0) return BitmapTableEntry{.data = std::nullopt, .ones = ones};
  if (ones) return corrupt("bitmap table entry ", hex(entry), ": all ones, yet with data");
  if (!geometry.aligned(HostOffset{offset}))
    return corrupt("bitmap table entry ", hex(entry), ": not cluster aligned");
  return BitmapTableEntry{.data = geometry.cluster_of(HostOffset{offset}), .ones = false};
}

uint64_t encode_bitmap_table_entry(BitmapTableEntry entry, const Geometry& geometry) {
  if (!entry.data) return entry.ones ? 1 : 0;
  const uint64_t offset = geometry.start_of(*entry.data).value;
  BYRE_ASSERT(!entry.ones && offset != 0 && (offset & ~kOffsetMask) == 0);
  return offset;
}

}  // namespace byre
