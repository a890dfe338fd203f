// SPDX-License-Identifier: Apache-2.0
#include "format/bitmap.h"

#include <gtest/gtest.h>

namespace byre {
namespace {

const Geometry kGeometry{};

Bitmap bitmap(std::string name) {
  return {
      .table_offset = {0x80000}, .table_entries = 1, .automatic = true, .name = std::move(name)};
}

TEST(BitmapsExtension, WhatWasWrittenIsRead) {
  const BitmapsExtension extension{3, 200, {0x70000}};
  const auto read = parse_bitmaps_extension(serialize(extension), kGeometry);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(*read, extension);
  EXPECT_EQ(hosts(extension, kGeometry), (HostSpan{{7}, 1}));
}

TEST(BitmapsExtension, UnsoundOnesAreRefused) {
  for (const BitmapsExtension& bad : {
           BitmapsExtension{0, 32, {0x70000}},
           BitmapsExtension{65536, 65536 * 32, {0x70000}},
           BitmapsExtension{2, 63, {0x70000}},
           BitmapsExtension{1, kBitmapDirectorySizeMax + 1, {0x70000}},
           BitmapsExtension{1, 32, {0x70200}},
           BitmapsExtension{1, 32, {0}},
           BitmapsExtension{1, 32, {UINT64_MAX << 16}},
       })
    EXPECT_FALSE(parse_bitmaps_extension(serialize(bad), kGeometry));
  auto bytes = serialize(BitmapsExtension{1, 32, {0x70000}});
  EXPECT_FALSE(parse_bitmaps_extension(Bytes(bytes).first(23), kGeometry));
  bytes[7] = std::byte{1};
  EXPECT_FALSE(parse_bitmaps_extension(bytes, kGeometry));
}

TEST(BitmapDirectory, WhatWasWrittenIsRead) {
  std::vector<Bitmap> all;
  for (size_t length = 1; length < 20; ++length) all.push_back(bitmap(std::string(length, 'b')));
  all[1].in_use = true;
  all[2].automatic = false;
  all[3].extra_data_compatible = true;
  all[3].extra_data.assign(11, std::byte{3});
  all[4].type = 200;
  all[4].granularity_bits = 63;
  all[5].name = std::string("\0\xff\n", 3);
  const auto directory = serialize_bitmap_directory(all);
  ASSERT_TRUE(directory);
  EXPECT_EQ(directory->size() % 8, 0u);
  const auto read =
      parse_bitmap_directory(*directory, static_cast<uint32_t>(all.size()), kGeometry);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(*read, all);
}

// Trap 110: in_use can be set by writing one word, which lies in one sector.
TEST(BitmapDirectory, FlagsAreStoredInPlace) {
  std::vector<Bitmap> all;
  for (int i = 0; i < 50; ++i) all.push_back(bitmap(std::string(17, 'a') + std::to_string(i)));
  auto directory = serialize_bitmap_directory(all);
  ASSERT_TRUE(directory);
  for (size_t i = 0; i < all.size(); i += 3) {
    all[i].in_use = true;
    const size_t at = bitmap_flags_offset(all, i);
    EXPECT_EQ(at / kSectorSize, (at + 3) / kSectorSize);
    store_bitmap_flags(*directory, at, all[i]);
  }
  EXPECT_EQ(*directory, *serialize_bitmap_directory(all));
}

// Trap 114: names are not empty and differ.
TEST(BitmapDirectory, NamesAreUnique) {
  const auto twice = serialize_bitmap_directory({bitmap("a"), bitmap("b"), bitmap("a")});
  ASSERT_TRUE(twice);
  EXPECT_FALSE(parse_bitmap_directory(*twice, 3, kGeometry));
  EXPECT_FALSE(serialize_bitmap_directory({bitmap("")}));
  EXPECT_FALSE(serialize_bitmap_directory({bitmap(std::string(65536, 'x'))}));
}

TEST(BitmapDirectory, HoldsExactlyItsEntries) {
  const auto directory = serialize_bitmap_directory({bitmap("one"), bitmap("two")});
  ASSERT_TRUE(directory);
  EXPECT_FALSE(parse_bitmap_directory(*directory, 1, kGeometry));
  EXPECT_FALSE(parse_bitmap_directory(*directory, 3, kGeometry));
  for (size_t size = 0; size < directory->size(); ++size) {
    const std::vector<std::byte> cut(directory->begin(),
                                     directory->begin() + static_cast<ptrdiff_t>(size));
    EXPECT_FALSE(parse_bitmap_directory(cut, 2, kGeometry)) << size;
  }
}

TEST(BitmapDirectory, UnsoundEntriesAreRefused) {
  const auto sound = serialize_bitmap_directory({bitmap("name")});
  ASSERT_TRUE(sound);
  const auto accepted = [&](size_t at, auto value) {
    std::vector<std::byte> bytes = *sound;
    store_be(bytes, at, value);
    return bool(parse_bitmap_directory(bytes, 1, kGeometry));
  };
  EXPECT_FALSE(accepted(0, uint64_t{0x80200}));
  EXPECT_FALSE(accepted(0, uint64_t{0}));
  EXPECT_FALSE(accepted(0, uint64_t{UINT64_MAX << 16}));
  EXPECT_FALSE(accepted(8, uint32_t{kBitmapTableEntriesMax + 1}));
  for (uint32_t bit = 0; bit < 32; ++bit) EXPECT_EQ(accepted(12, 1u << bit), bit < 3) << bit;
  EXPECT_FALSE(accepted(17, uint8_t{64}));
  EXPECT_FALSE(accepted(18, uint16_t{0}));
  EXPECT_FALSE(accepted(18, uint16_t{UINT16_MAX}));
  EXPECT_FALSE(accepted(20, uint32_t{UINT32_MAX}));
}

// Trap 109, trap 112, trap 113, trap 114: well formed is not yet usable.
TEST(Bitmap, IsUsableOnlyIfEverythingAboutItIsKnown) {
  const uint64_t disk = 64 * MiB;
  const Bitmap good = bitmap("b");
  EXPECT_TRUE(check_usable(good, disk, kGeometry));
  const auto usable_with = [&](auto change) {
    Bitmap changed = good;
    change(changed);
    return bool(check_usable(changed, disk, kGeometry));
  };
  EXPECT_FALSE(usable_with([](Bitmap& b) { b.in_use = true; }));
  EXPECT_FALSE(usable_with([](Bitmap& b) { b.type = 2; }));
  EXPECT_FALSE(usable_with([](Bitmap& b) { b.granularity_bits = 8; }));
  EXPECT_FALSE(usable_with([](Bitmap& b) { b.granularity_bits = 32; }));
  EXPECT_FALSE(usable_with([](Bitmap& b) { b.name = std::string(1024, 'n'); }));
  EXPECT_FALSE(usable_with([](Bitmap& b) { b.table_entries = 2; }));
  EXPECT_FALSE(usable_with([](Bitmap& b) { b.extra_data.resize(1); }));
  EXPECT_TRUE(usable_with([](Bitmap& b) {
    b.extra_data.resize(1);
    b.extra_data_compatible = true;
  }));
  EXPECT_TRUE(usable_with([](Bitmap& b) { b.name = std::string(1023, 'n'); }));
}

TEST(Bitmap, DataAndTableSizes) {
  EXPECT_EQ(bitmap_data_size(0, 16), 0u);
  EXPECT_EQ(bitmap_data_size(1, 16), 1u);
  EXPECT_EQ(bitmap_data_size(8 * 65536, 16), 1u);
  EXPECT_EQ(bitmap_data_size(8 * 65536 + 1, 16), 2u);
  EXPECT_EQ(bitmap_data_size(UINT64_MAX, 63), 1u);
  EXPECT_EQ(bitmap_table_entries_for(32 * GiB, 16, kGeometry), 1u);
  EXPECT_EQ(bitmap_table_entries_for(32 * GiB + 1, 16, kGeometry), 2u);
  EXPECT_EQ(hosts(bitmap("b"), kGeometry), (HostSpan{{8}, 1}));
}

// Trap 111: every bit by itself.
TEST(BitmapTable, EveryBitByItself) {
  for (uint32_t bits = kClusterBitsMin; bits <= kClusterBitsMax; ++bits) {
    const Geometry geometry{.cluster_bits = bits};
    for (uint32_t bit = 0; bit < 64; ++bit) {
      const uint64_t value = uint64_t{1} << bit;
      const auto entry = decode_bitmap_table_entry(value, geometry);
      ASSERT_EQ(entry.has_value(), bit == 0 || (bit >= bits && bit < 56)) << bits << " " << bit;
      if (entry) {
        EXPECT_EQ(encode_bitmap_table_entry(*entry, geometry), value);
        EXPECT_EQ(entry->ones, bit == 0);
      }
      if (bit > 0) {
        EXPECT_FALSE(decode_bitmap_table_entry(value | 1, geometry));
      }
    }
    EXPECT_EQ(*decode_bitmap_table_entry(0, geometry), BitmapTableEntry{});
  }
}

}  // namespace
}  // namespace byre
