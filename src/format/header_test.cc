// SPDX-License-Identifier: Apache-2.0
#include "format/header.h"

#include <gtest/gtest.h>

#include <functional>
#include <initializer_list>

#include "format/extension.h"

namespace byre {
namespace {

/// A sound version 3 header: 1 MiB, 64 KiB clusters, refcount table in cluster 1, L1 in cluster 3.
std::vector<std::byte> header_bytes() {
  Header header;
  header.size = MiB;
  header.l1_entries = 1;
  header.l1_offset = {0x30000};
  header.refcount_table_offset = {0x10000};
  header.refcount_table_clusters = 1;
  Result<std::vector<std::byte>> bytes = serialize_header(header, {});
  EXPECT_TRUE(bytes);
  bytes->resize(0x10000);
  return *std::move(bytes);
}
std::vector<std::byte> header_bytes_v2() {
  std::vector<std::byte> bytes = header_bytes();
  store_be<uint32_t>(bytes, 4, 2);
  fill_zero(MutableBytes(bytes).subspan(72));
  return bytes;
}

std::string error_of(Bytes bytes, OpenFor purpose = OpenFor::use) {
  Result<Header> header = parse_header(bytes, purpose);
  return header ? "" : header.error().message();
}
/// The error after one field of a sound header was changed.
template <class Int>
std::string error_with(size_t at, Int value, OpenFor purpose = OpenFor::use) {
  std::vector<std::byte> bytes = header_bytes();
  store_be<Int>(bytes, at, value);
  return error_of(bytes, purpose);
}

TEST(Header, WhatWasWrittenIsRead) {
  Header header;
  header.cluster_bits = 21;
  header.size = 0x1234567;
  header.crypt_method = CryptMethod::aes;
  header.l1_entries = 77;
  header.l1_offset = {0x600000};
  header.refcount_table_offset = {0x200000};
  header.refcount_table_clusters = 4;
  header.snapshot_count = 65536;
  header.snapshots_offset = {0x400000};
  header.incompatible = kDirty | kCorrupt | kCompressionType | kExtendedL2;
  header.compatible = kLazyRefcounts | uint64_t{1} << 63;
  header.autoclear = uint64_t{1} << 33;
  header.refcount_order = 6;
  header.compression = Compression::zstd;
  header.unknown_fields.assign(7, std::byte{0});
  const Result<std::vector<std::byte>> bytes = serialize_header(header, {});
  ASSERT_TRUE(bytes);
  const Result<Header> read = parse_header(*bytes);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(*read, header);
  EXPECT_EQ(
      geometry_of(*read),
      (Geometry{.cluster_bits = 21, .refcount_order = 6, .extended_l2 = true, .encrypted = true}));
}

// Trap 1: what follows byte 72 in version 2 is no header, whatever it says.
TEST(Header, VersionTwoEndsAtByte72) {
  std::vector<std::byte> bytes = header_bytes_v2();
  for (size_t i = 72; i < 4096; ++i) bytes[i] = std::byte{0xff};
  const Result<Header> header = parse_header(bytes);
  ASSERT_TRUE(header) << header.error().message();
  EXPECT_EQ(header->incompatible | header->compatible | header->autoclear, 0u);
  EXPECT_EQ(header->refcount_order, 4u);
  EXPECT_EQ(header->header_length, 72u);
  EXPECT_TRUE(header->unknown_fields.empty());
  EXPECT_TRUE(parse_header(Bytes(bytes).first(72)));
}

// Trap 2.
TEST(Header, OnlyVersionsTwoAndThreeExist) {
  for (const uint32_t version : {0u, 1u, 4u, 5u, 0x80000003u, UINT32_MAX})
    EXPECT_NE(error_with<uint32_t>(4, version).find("version"), std::string::npos);
}

// Trap 3: a multiple of 8 is what we write, not what we demand.
TEST(Header, HeaderLengthIsAtLeast104AndAtMostACluster) {
  EXPECT_NE(error_with<uint32_t>(100, 103), "");
  EXPECT_NE(error_with<uint32_t>(100, 0x10001), "");
  EXPECT_EQ(error_with<uint32_t>(100, 0x10000), "");
  EXPECT_EQ(error_with<uint32_t>(100, 104), "");

  std::vector<std::byte> bytes = header_bytes();
  store_be<uint32_t>(bytes, 100, 117);
  bytes[116] = std::byte{9};
  const Result<Header> header = parse_header(bytes);
  ASSERT_TRUE(header);
  ASSERT_EQ(oddities(*header, {}).size(), 1u);
  const Result<std::vector<std::byte>> again = serialize_header(*header, {});
  ASSERT_TRUE(again);
  EXPECT_EQ(load_be<uint32_t>(*again, 100), 120u);
  EXPECT_EQ((*again)[116], std::byte{9});
}

// Trap 4: both directions, and absent when header_length stops in front of it.
TEST(Header, CompressionTypeAgreesWithItsFeatureBit) {
  for (const uint32_t length : {104u, 105u, 112u})
    for (const uint64_t bit : {uint64_t{0}, kCompressionType})
      for (const unsigned type : {0u, 1u, 2u, 255u}) {
        std::vector<std::byte> bytes = header_bytes();
        store_be<uint32_t>(bytes, 100, length);
        store_be<uint64_t>(bytes, 72, bit);
        bytes[104] = static_cast<std::byte>(type);
        const unsigned seen = length > 104 ? type : 0;
        const bool sound = seen <= 1 && (bit != 0) == (seen != 0);
        EXPECT_EQ(error_of(bytes) == "", sound) << length << " " << bit << " " << type;
      }
}

// Trap 5.
TEST(Header, UnknownFieldsSurviveByteForByte) {
  std::vector<std::byte> bytes = header_bytes();
  store_be<uint32_t>(bytes, 100, 136);
  for (size_t i = 105; i < 136; ++i) bytes[i] = static_cast<std::byte>(i);
  const Result<Header> header = parse_header(bytes);
  ASSERT_TRUE(header);
  const Result<std::vector<std::byte>> again = serialize_header(*header, {});
  ASSERT_TRUE(again);
  EXPECT_TRUE(equal(Bytes(*again).first(136), Bytes(bytes).first(136)));
  EXPECT_EQ(oddities(*header, {}).size(), 1u);  // The padding is not zero.
}

// Trap 6 is in extension_test.cc.  Trap 10: the bit that raw external data need is bit 2.
TEST(Header, RawExternalDataNeedTheExternalDataFile) {
  EXPECT_NE(error_with<uint64_t>(88, kRawDataFile), "");
  EXPECT_EQ(error_with<uint64_t>(88, kRawDataFile, OpenFor::repair), "");
  std::vector<std::byte> bytes = header_bytes();
  store_autoclear(bytes, kRawDataFile);
  store_incompatible(bytes, kCorrupt);
  EXPECT_NE(error_of(bytes), "");
  store_incompatible(bytes, kDataFile);
  EXPECT_EQ(error_of(bytes), "");
}

// Trap 11: neither bit stops a reader.
TEST(Header, DirtyAndCorruptImagesParse) {
  EXPECT_EQ(error_with<uint64_t>(72, kDirty | kCorrupt), "");
}

// Trap 20.
TEST(Header, TheSizeNeedNotBeWholeSectors) {
  std::vector<std::byte> bytes = header_bytes();
  store_size(bytes, MiB - 100);
  const Result<Header> header = parse_header(bytes);
  ASSERT_TRUE(header);
  EXPECT_EQ(header->size, MiB - 100);
  EXPECT_EQ(oddities(*header, {}).size(), 1u);
}

// Trap 21: nothing is shifted by a number that was not looked at.
TEST(Header, ClusterBitsAre9To21) {
  for (const uint32_t bits : {0u, 8u, 22u, 63u, 64u, 200u, UINT32_MAX})
    EXPECT_NE(error_with<uint32_t>(20, bits).find("cluster_bits"), std::string::npos) << bits;
  for (uint32_t bits = 9; bits <= 21; ++bits) {
    std::vector<std::byte> bytes = header_bytes();
    store_be<uint32_t>(bytes, 20, bits);
    store_l1(bytes, {uint64_t{64} << 21}, 256);
    store_refcount_table(bytes, {uint64_t{1} << 21}, 1);
    EXPECT_EQ(error_of(bytes), "") << bits;
    store_incompatible(bytes, kExtendedL2);
    EXPECT_EQ(error_of(bytes) == "", bits >= 14) << bits;
  }
}

// Trap 22.
TEST(Header, TablesBeyondTheLimitsAreRefused) {
  EXPECT_EQ(error_with<uint32_t>(36, kL1EntriesMax), "");
  EXPECT_NE(error_with<uint32_t>(36, kL1EntriesMax + 1), "");
  EXPECT_EQ(error_with<uint32_t>(56, 128), "");
  EXPECT_NE(error_with<uint32_t>(56, 129), "");
  EXPECT_NE(error_with<uint32_t>(56, UINT32_MAX), "");
  EXPECT_NE(error_with<uint32_t>(60, kSnapshotsMax + 1), "");
}

// Trap 23.
TEST(Header, TheL1TableMayBeLargerThanTheDiskNotSmaller) {
  std::vector<std::byte> bytes = header_bytes();
  for (const auto& [size, entries, sound] :
       std::initializer_list<std::tuple<uint64_t, uint32_t, bool>>{{0, 0, true},
                                                                   {1, 0, false},
                                                                   {1, 1, true},
                                                                   {512 * MiB, 1, true},
                                                                   {512 * MiB + 1, 1, false},
                                                                   {MiB, 1000, true},
                                                                   {UINT64_MAX, 4194304, false}}) {
    store_size(bytes, size);
    store_l1(bytes, {0x30000}, entries);
    EXPECT_EQ(error_of(bytes) == "", sound) << size << " " << entries;
  }
  store_size(bytes, 0);
  store_l1(bytes, {0}, 0);
  EXPECT_EQ(error_of(bytes), "");
}

TEST(Header, TablesAreAlignedInsideTheFileAndOutsideTheFirstCluster) {
  for (const uint64_t bad : {uint64_t{0}, uint64_t{0x30200}, uint64_t{1}, UINT64_MAX,
                             uint64_t{1} << 63, UINT64_MAX << 16}) {
    EXPECT_NE(error_with<uint64_t>(40, bad), "") << bad;
    EXPECT_NE(error_with<uint64_t>(48, bad), "") << bad;
    std::vector<std::byte> bytes = header_bytes();
    store_snapshots(bytes, 1, {bad});
    EXPECT_NE(error_of(bytes), "") << bad;
  }
  EXPECT_NE(error_with<uint64_t>(64, 512), "");  // QEMU refuses it even without snapshots.
}

// Trap 24: a table of zeros is for the engine; a missing one is for repair only.
TEST(Header, AMissingRefcountTableIsForRepairOnly) {
  EXPECT_NE(error_with<uint32_t>(56, 0), "");
  EXPECT_EQ(error_with<uint32_t>(56, 0, OpenFor::repair), "");
  EXPECT_EQ(error_with<uint64_t>(48, 0x10200, OpenFor::repair), "");
  EXPECT_EQ(error_with<uint32_t>(56, 7), "");
  std::vector<std::byte> bytes = header_bytes();
  store_refcount_table(bytes, {0}, 0);
  const Result<Header> header = parse_header(bytes, OpenFor::repair);
  ASSERT_TRUE(header);
  EXPECT_FALSE(check_refcount_table(*header));
}

// Trap 25: each length is either enough or an error, and nothing behind it is read.
TEST(Header, ShortFilesAreReadByStages) {
  const std::vector<std::byte> v3 = header_bytes();
  const std::vector<std::byte> v2 = header_bytes_v2();
  for (size_t size = 0; size <= 200; ++size) {
    // A copy of its own, so that a sanitizer sees a read behind it.
    const std::vector<std::byte> short_v3(v3.begin(), v3.begin() + static_cast<ptrdiff_t>(size));
    const std::vector<std::byte> short_v2(v2.begin(), v2.begin() + static_cast<ptrdiff_t>(size));
    EXPECT_EQ(error_of(short_v3) == "", size >= 112) << size;
    EXPECT_EQ(error_of(short_v2) == "", size >= 72) << size;
    EXPECT_EQ(bool(parse_cluster_bits(short_v3)), size >= 24);
  }
}

TEST(Header, OtherFilesAreNotTakenForImages) {
  EXPECT_NE(error_with<uint32_t>(0, 0x514649fa), "");
  EXPECT_NE(error_of(std::vector<std::byte>(4096)), "");
}

TEST(Header, UnknownEncryptionAndRefcountWidthsAreRefused) {
  EXPECT_EQ(error_with<uint32_t>(32, 2), "");
  EXPECT_NE(error_with<uint32_t>(32, 3), "");
  EXPECT_EQ(error_with<uint32_t>(96, 0), "");
  EXPECT_EQ(error_with<uint32_t>(96, 6), "");
  EXPECT_NE(error_with<uint32_t>(96, 7), "");
  EXPECT_NE(error_with<uint32_t>(96, UINT32_MAX), "");
}

// Trap 16.
TEST(Header, TheBackingFileNameLiesInTheFirstClusterBehindTheHeader) {
  std::vector<std::byte> bytes = header_bytes();
  for (const auto& [offset, size, sound] :
       std::initializer_list<std::tuple<uint64_t, uint32_t, bool>>{{0, UINT32_MAX, true},
                                                                   {112, 1023, true},
                                                                   {112, 1024, false},
                                                                   {111, 5, false},
                                                                   {0xffff, 1, true},
                                                                   {0xffff, 2, false},
                                                                   {0x10000, 0, true},
                                                                   {0x10001, 0, false},
                                                                   {UINT64_MAX, 1, false},
                                                                   {UINT64_MAX - 3, 10, false}}) {
    store_be<uint64_t>(bytes, 8, offset);
    store_be<uint32_t>(bytes, 16, size);
    EXPECT_EQ(error_of(bytes) == "", sound) << offset << " " << size;
  }
}

// Trap 16: with 512-byte clusters there is little room; creation fails before anything is written.
TEST(Header, SerialisingFailsWhenTheFirstClusterIsFull) {
  Header header;
  header.cluster_bits = 9;
  Extensions extensions;
  extensions.backing_format = "qcow2";
  const size_t room = 512 - 112 - 16 - 8;
  EXPECT_TRUE(serialize_header(header, extensions, std::string(room, 'n')));
  const Result<std::vector<std::byte>> full =
      serialize_header(header, extensions, std::string(room + 1, 'n'));
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code(), Errc::no_space);
  EXPECT_FALSE(serialize_header(Header{}, {}, std::string(1024, 'n')));
  EXPECT_FALSE(serialize_header(Header{}, {}, std::string_view("a\0b", 3)));
}

TEST(Header, TheFeatureNameTableGivesWayToWhatMatters) {
  Header header;
  header.cluster_bits = 9;
  header.size = 512;
  header.l1_entries = 1;
  header.l1_offset = {1024};
  header.refcount_table_offset = {512};
  header.refcount_table_clusters = 1;
  Extensions extensions;
  extensions.feature_names = default_feature_names();
  const Result<std::vector<std::byte>> alone = serialize_header(header, extensions);
  ASSERT_TRUE(alone);
  EXPECT_EQ(alone->size(), 512u);
  const Result<std::vector<std::byte>> bytes = serialize_header(header, extensions, "base.qcow2");
  ASSERT_TRUE(bytes);
  const Result<Header> read = parse_header(*bytes);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_TRUE(parse_extensions(*bytes, *read)->feature_names.empty());
  EXPECT_EQ(*parse_backing_file(*bytes, *read), "base.qcow2");
}

// Trap 17: between the last extension and the name there is nothing; behind the name neither.
TEST(Header, TheNameFollowsTheExtensions) {
  const Result<std::vector<std::byte>> bytes = serialize_header(Header{}, {}, "b");
  ASSERT_TRUE(bytes);
  EXPECT_EQ(bytes->size(), 112u + 8u + 1u);
  EXPECT_EQ(load_be<uint64_t>(*bytes, 8), 120u);
  EXPECT_EQ(load_be<uint32_t>(*bytes, 16), 1u);
}

// Trap 18, trap 19: each group changes its own bytes of the first sector and no others.
TEST(Header, FieldsAreStoredInPlace) {
  struct Case {
    size_t first, last;
    std::function<void(MutableBytes)> store;
  };
  const Case cases[] = {
      {24, 31, [](MutableBytes s) { store_size(s, UINT64_MAX); }},
      {36, 47, [](MutableBytes s) { store_l1(s, {UINT64_MAX}, UINT32_MAX); }},
      {48, 59, [](MutableBytes s) { store_refcount_table(s, {UINT64_MAX}, UINT32_MAX); }},
      {60, 71, [](MutableBytes s) { store_snapshots(s, UINT32_MAX, {UINT64_MAX}); }},
      {72, 79, [](MutableBytes s) { store_incompatible(s, UINT64_MAX); }},
      {80, 87, [](MutableBytes s) { store_compatible(s, UINT64_MAX); }},
      {88, 95, [](MutableBytes s) { store_autoclear(s, UINT64_MAX); }},
  };
  for (const Case& one : cases) {
    std::vector<std::byte> sector(512);
    one.store(sector);
    for (size_t i = 0; i < sector.size(); ++i)
      EXPECT_EQ(sector[i] == std::byte{0xff}, i >= one.first && i <= one.last) << i;
  }
  std::vector<std::byte> bytes = header_bytes();
  store_size(bytes, 3 * MiB);
  store_l1(bytes, {0x50000}, 9);
  store_refcount_table(bytes, {0x70000}, 2);
  store_snapshots(bytes, 3, {0x90000});
  const Result<Header> header = parse_header(bytes);
  ASSERT_TRUE(header);
  EXPECT_EQ(header->size, 3 * MiB);
  EXPECT_EQ(header->l1_offset, HostOffset{0x50000});
  EXPECT_EQ(header->l1_entries, 9u);
  EXPECT_EQ(header->refcount_table_offset, HostOffset{0x70000});
  EXPECT_EQ(header->refcount_table_clusters, 2u);
  EXPECT_EQ(header->snapshot_count, 3u);
  EXPECT_EQ(header->snapshots_offset, HostOffset{0x90000});
}

// Every single bit of the first 120 bytes, flipped: an answer, never a crash, and what is accepted
// can be written again.
TEST(Header, AnyFlippedBitIsAnswered) {
  const std::vector<std::byte> sound = header_bytes();
  for (size_t bit = 0; bit < 120 * 8; ++bit) {
    std::vector<std::byte> bytes = sound;
    bytes[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    const Result<Header> header = parse_header(bytes);
    if (!header) continue;
    const Result<std::vector<std::byte>> again = serialize_header(*header, {});
    if (!again) continue;
    Result<Header> read = parse_header(*again);
    ASSERT_TRUE(read) << "bit " << bit << ": " << read.error().message();
  }
}

}  // namespace
}  // namespace byre
