// SPDX-License-Identifier: Apache-2.0
#include "format/refcount.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/prng.h"

namespace byre {
namespace {

constexpr size_t kBlockSize = 512;

// Trap 66: every width against a plain array, with its neighbours left alone.
TEST(Refcount, EveryWidthIsAnArray) {
  Prng random(3);
  for (uint32_t order = 0; order <= kRefcountOrderMax; ++order) {
    std::vector<std::byte> block(kBlockSize);
    std::vector<uint64_t> model(kBlockSize * 8 >> order);
    for (int i = 0; i < 20'000; ++i) {
      const size_t index = random.below(model.size());
      const uint64_t count =
          random.one_in(3) ? refcount_max(order) : random.next() & refcount_max(order);
      set_refcount(block, index, order, count);
      model[index] = count;
      const size_t other = random.below(model.size());
      ASSERT_EQ(get_refcount(block, other, order), model[other]);
    }
    for (size_t i = 0; i < model.size(); ++i)
      ASSERT_EQ(get_refcount(block, i, order), model[i]) << order << " " << i;
  }
}

// Trap 66: narrow counts from the least significant bit, wide ones big-endian.
TEST(Refcount, TheLayoutByHand) {
  const std::byte bytes[8] = {std::byte{0b1110'0101}, std::byte{2}, std::byte{3}, std::byte{4},
                              std::byte{5},           std::byte{6}, std::byte{7}, std::byte{8}};
  EXPECT_EQ(get_refcount(bytes, 0, 0), 1u);
  EXPECT_EQ(get_refcount(bytes, 1, 0), 0u);
  EXPECT_EQ(get_refcount(bytes, 7, 0), 1u);
  EXPECT_EQ(get_refcount(bytes, 0, 1), 0b01u);
  EXPECT_EQ(get_refcount(bytes, 3, 1), 0b11u);
  EXPECT_EQ(get_refcount(bytes, 0, 2), 0b0101u);
  EXPECT_EQ(get_refcount(bytes, 1, 2), 0b1110u);
  EXPECT_EQ(get_refcount(bytes, 1, 3), 2u);
  EXPECT_EQ(get_refcount(bytes, 1, 4), 0x0304u);
  EXPECT_EQ(get_refcount(bytes, 1, 5), 0x05060708u);
  EXPECT_EQ(get_refcount(bytes, 0, 6), 0xe502030405060708u);
}

// Trap 48: what a width can hold.
TEST(Refcount, TheLargestCountOfEachWidth) {
  EXPECT_EQ(refcount_max(0), 1u);
  EXPECT_EQ(refcount_max(1), 3u);
  EXPECT_EQ(refcount_max(2), 15u);
  EXPECT_EQ(refcount_max(3), 255u);
  EXPECT_EQ(refcount_max(4), 65535u);
  EXPECT_EQ(refcount_max(5), UINT32_MAX);
  EXPECT_EQ(refcount_max(6), UINT64_MAX);
}

TEST(Refcount, SearchingFindsWhatLookingAtEachFinds) {
  Prng random(4);
  for (uint32_t order = 0; order <= kRefcountOrderMax; ++order) {
    const size_t entries = kBlockSize * 8 >> order;
    for (int round = 0; round < 200; ++round) {
      std::vector<std::byte> block(kBlockSize);
      const uint64_t density = random.below(4);
      for (size_t i = 0; i < entries; ++i) {
        const bool zero = density == 0 ? random.one_in(2) : random.one_in(entries) == (density > 1);
        set_refcount(block, i, order, zero ? 0 : 1 + random.below(refcount_max(order)));
      }
      for (int search = 0; search < 50; ++search) {
        const size_t from = random.below(entries + 1);
        const size_t to = random.between(from, entries);
        size_t zero = from;
        while (zero < to && get_refcount(block, zero, order) != 0) ++zero;
        size_t counted = from;
        while (counted < to && get_refcount(block, counted, order) == 0) ++counted;
        ASSERT_EQ(find_zero_refcount(block, from, to, order), zero);
        ASSERT_EQ(find_nonzero_refcount(block, from, to, order), counted);
      }
    }
  }
}

// Trap 28: offsets here have bits 9 to 63, unlike those of L1 and L2 entries.
TEST(RefcountTable, EveryBitByItself) {
  for (uint32_t bits = kClusterBitsMin; bits <= kClusterBitsMax; ++bits) {
    const Geometry geometry{.cluster_bits = bits};
    for (uint32_t bit = 0; bit < 64; ++bit) {
      const uint64_t entry = uint64_t{1} << bit;
      const auto block = decode_refcount_table_entry(entry, geometry);
      ASSERT_EQ(block.has_value(), bit >= bits && bit != 63) << bits << " " << bit;
      if (!block) continue;
      EXPECT_EQ(geometry.start_of(block->value()).value, entry);
      EXPECT_EQ(encode_refcount_table_entry(*block, geometry), entry);
    }
    EXPECT_EQ(*decode_refcount_table_entry(0, geometry), std::nullopt);
    EXPECT_EQ(encode_refcount_table_entry(std::nullopt, geometry), 0u);
  }
}

TEST(RefcountTable, EntriesAreBigEndian) {
  std::vector<std::byte> table(16);
  store_refcount_table_entry(table, 1, 0x0102030405060708);
  EXPECT_EQ(table[8], std::byte{1});
  EXPECT_EQ(load_refcount_table_entry(table, 1), 0x0102030405060708u);
}

}  // namespace
}  // namespace byre
