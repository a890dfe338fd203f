// SPDX-License-Identifier: Apache-2.0
#include "format/l1.h"

#include <gtest/gtest.h>

namespace byre {
namespace {

// Trap 28, trap 29: every bit by itself, at every cluster size.
TEST(DecodeL1, EveryBitByItself) {
  for (uint32_t bits = kClusterBitsMin; bits <= kClusterBitsMax; ++bits) {
    const Geometry geometry{.cluster_bits = bits};
    const uint64_t plain = kCopied | geometry.cluster_size();
    for (uint32_t bit = 0; bit < 64; ++bit) {
      const Result<L1Entry> entry = decode_l1(plain ^ uint64_t{1} << bit, geometry);
      const bool sound = bit == 63 || (bit >= bits && bit < 56);
      EXPECT_EQ(entry.has_value(), sound) << "cluster bits " << bits << ", bit " << bit;
      if (entry) {
        EXPECT_EQ(encode_l1(*entry, geometry), entry->l2 ? plain ^ uint64_t{1} << bit : 0);
      }
    }
  }
}

TEST(DecodeL1, ATableIsSharedOrOursAlone) {
  const Geometry geometry;
  EXPECT_EQ(*decode_l1(0x50000, geometry), (L1Entry{HostCluster{5}, false}));
  EXPECT_EQ(*decode_l1(kCopied | 0x50000, geometry), (L1Entry{HostCluster{5}, true}));
  EXPECT_EQ(*decode_l1(0, geometry), L1Entry{});
}

TEST(DecodeL1, CopiedWithoutATableMeansNothing) {
  EXPECT_EQ(*decode_l1(kCopied, Geometry{}), L1Entry{});
}

TEST(L1Table, EntriesAreBigEndian) {
  std::vector<std::byte> table(24);
  store_l1_entry(table, 1, 0x0102030405060708);
  EXPECT_EQ(table[8], std::byte{1});
  EXPECT_EQ(table[15], std::byte{8});
  EXPECT_EQ(load_l1_entry(table, 1), 0x0102030405060708u);
  EXPECT_EQ(load_l1_entry(table, 0) | load_l1_entry(table, 2), 0u);
}

}  // namespace
}  // namespace byre
