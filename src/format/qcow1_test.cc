// SPDX-License-Identifier: Apache-2.0
#include "format/qcow1.h"

#include <gtest/gtest.h>

#include <vector>

namespace byre {
namespace {

struct Fields {
  uint32_t magic = 0x514649fb;
  uint32_t version = 1;
  uint64_t backing_file_offset = 0;
  uint32_t backing_file_size = 0;
  uint64_t size = 10 * MiB;
  int cluster_bits = 12;
  int l2_bits = 9;
  uint32_t crypt_method = 0;
  uint64_t l1_offset = 48;
};
std::vector<std::byte> header_of(const Fields& fields) {
  std::vector<std::byte> bytes(kQcow1HeaderSize);
  store_be(bytes, 0, fields.magic);
  store_be(bytes, 4, fields.version);
  store_be(bytes, 8, fields.backing_file_offset);
  store_be(bytes, 16, fields.backing_file_size);
  store_be(bytes, 24, fields.size);
  bytes[32] = static_cast<std::byte>(fields.cluster_bits);
  bytes[33] = static_cast<std::byte>(fields.l2_bits);
  store_be(bytes, 36, fields.crypt_method);
  store_be(bytes, 40, fields.l1_offset);
  return bytes;
}
Result<Qcow1Header> parse(const Fields& fields) { return parse_qcow1_header(header_of(fields)); }
std::string refused(const Fields& fields) {
  const Result<Qcow1Header> header = parse(fields);
  return header ? "" : header.error().message();
}

TEST(Qcow1Header, ASoundOneIsParsed) {
  const Result<Qcow1Header> header =
      parse({.backing_file_offset = 48, .backing_file_size = 5, .l1_offset = 56});
  ASSERT_TRUE(header) << header.error().message();
  EXPECT_EQ(header->size, 10 * MiB);
  EXPECT_EQ(header->cluster_size(), 4096u);
  EXPECT_EQ(header->l2_entries(), 512u);
  EXPECT_EQ(header->l2_covers(), 2 * MiB);
  EXPECT_EQ(header->l1_entries(), 5u);
  EXPECT_EQ(header->l1_offset.value, 56u);
  EXPECT_EQ(header->backing_file_size, 5u);
}

TEST(Qcow1Header, EveryCombinationOfBitsIsInBoundsOrRefused) {
  for (int cluster_bits = 0; cluster_bits < 256; ++cluster_bits) {
    for (int l2_bits = 0; l2_bits < 256; ++l2_bits) {
      const bool sound = cluster_bits >= 9 && cluster_bits <= 16 && l2_bits >= 6 && l2_bits <= 13;
      ASSERT_EQ(bool(parse({.cluster_bits = cluster_bits, .l2_bits = l2_bits})), sound);
    }
  }
}

TEST(Qcow1Header, WhatIsUnsoundIsRefused) {
  EXPECT_FALSE(parse_qcow1_header(Bytes(header_of({})).first(47)));
  EXPECT_EQ(refused({.magic = 1}), "no qcow image: the magic number is missing");
  EXPECT_EQ(parse({.version = 2}).error().code(), Errc::unsupported);
  const Result<Qcow1Header> encrypted = parse({.crypt_method = 1});
  ASSERT_TRUE(encrypted);
  EXPECT_TRUE(encrypted->encrypted);
  EXPECT_EQ(parse({.crypt_method = 2}).error().code(), Errc::corrupt);
  EXPECT_NE(refused({.size = 1}), "");
  EXPECT_EQ(refused({.size = 2}), "");
  EXPECT_NE(refused({.size = UINT64_MAX}), "");
  // As many L1 entries as there may be, and one more.
  EXPECT_EQ(refused({.size = kQcow1L1EntriesMax * 2 * MiB}), "");
  EXPECT_NE(refused({.size = kQcow1L1EntriesMax * 2 * MiB + 1}), "");
  EXPECT_NE(refused({.l1_offset = 0}), "");
  EXPECT_NE(refused({.l1_offset = INT64_MAX - 39}), "");
  EXPECT_NE(refused({.l1_offset = UINT64_MAX}), "");
  EXPECT_EQ(refused({.backing_file_offset = 48, .backing_file_size = 1023}), "");
  EXPECT_NE(refused({.backing_file_offset = 48, .backing_file_size = 1024}), "");
  EXPECT_NE(refused({.backing_file_offset = UINT64_MAX, .backing_file_size = 2}), "");
}

TEST(Qcow1Entries, AnL2EntryIsNowhereAClusterOrAStream) {
  using Kind = Qcow1Mapping::Kind;
  const Qcow1Header header{.cluster_bits = 12};
  const auto decoded = [&](uint64_t entry) {
    const Result<Qcow1Mapping> mapping = decode_qcow1_l2(entry, header);
    return mapping ? std::optional(*mapping) : std::nullopt;
  };
  EXPECT_EQ(decoded(0), Qcow1Mapping{});
  EXPECT_EQ(decoded(0x5200), (Qcow1Mapping{.kind = Kind::plain, .at = {0x5200}}));
  EXPECT_EQ(decoded(0x5201), std::nullopt);
  constexpr uint64_t kBit63 = uint64_t{1} << 63;
  EXPECT_EQ(decoded(kBit63 | uint64_t{4095} << 51 | 0x1234567),
            (Qcow1Mapping{.kind = Kind::compressed, .at = {0x1234567}, .stream_size = 4095}));
  EXPECT_EQ(decoded(kBit63 | 0x1234567), std::nullopt);               // Of no bytes.
  EXPECT_EQ(decoded(kBit63 | uint64_t{5} << 51 | 47), std::nullopt);  // In the header.
}

TEST(Qcow1Entries, AnL1EntryIsNowhereOrATable) {
  EXPECT_EQ(*decode_qcow1_l1(0), std::nullopt);
  EXPECT_EQ(*decode_qcow1_l1(48), HostOffset{48});
  EXPECT_FALSE(decode_qcow1_l1(47));
  EXPECT_FALSE(decode_qcow1_l1(uint64_t{1} << 63));
}

}  // namespace
}  // namespace byre
