// SPDX-License-Identifier: Apache-2.0
#include "format/types.h"

#include <gtest/gtest.h>

#include <bit>
#include <vector>

namespace byre {
namespace {

/// Every geometry that check() accepts.
std::vector<Geometry> all_geometries() {
  std::vector<Geometry> all;
  for (uint32_t bits = 0; bits < 32; ++bits)
    for (uint32_t order = 0; order < 9; ++order)
      for (uint32_t version = 1; version < 5; ++version)
        for (const bool extended : {false, true})
          for (const bool data_file : {false, true}) {
            const Geometry geometry{version, bits, order, extended, data_file};
            if (geometry.check()) all.push_back(geometry);
          }
  return all;
}

TEST(Geometry, OnlyKnownShapesPassTheCheck) {
  size_t v2 = 0;
  for (const Geometry& geometry : all_geometries()) {
    EXPECT_GE(geometry.cluster_bits, geometry.extended_l2 ? 14u : 9u);
    EXPECT_LE(geometry.cluster_bits, 21u);
    EXPECT_LE(geometry.refcount_order, 6u);
    v2 += geometry.version == 2;
  }
  EXPECT_EQ(v2, 13u);
  // 13 cluster sizes, 8 of them with extended L2 as well; 7 refcount widths; with and without data
  // file.
  EXPECT_EQ(all_geometries().size() - v2, (13u + 8u) * 7u * 2u);
}

TEST(Geometry, IndicesAndOffsetsAreInverse) {
  for (const Geometry& geometry : all_geometries()) {
    const uint64_t size = geometry.cluster_size();
    EXPECT_EQ(geometry.units() * geometry.unit_size(), size);
    EXPECT_EQ(std::popcount(geometry.all_units()), static_cast<int>(geometry.units()));
    EXPECT_EQ(geometry.l2_entries() * geometry.l2_entry_size(), size);
    EXPECT_EQ(geometry.refcount_block_entries() * geometry.refcount_bits(), size * 8);
    EXPECT_EQ(geometry.l1_span(), geometry.l2_entries() * size);
    for (const uint64_t n : {uint64_t{0}, uint64_t{1}, geometry.l2_entries() - 1,
                             geometry.l2_entries(), geometry.l2_entries() * 7 + 3}) {
      const GuestCluster guest{n};
      EXPECT_EQ(geometry.cluster_of(geometry.start_of(guest)), guest);
      EXPECT_EQ(geometry.cluster_of(geometry.start_of(guest) + (size - 1)), guest);
      EXPECT_EQ(geometry.first_of_l1(geometry.l1_index(guest)) + geometry.l2_index(guest), guest);
    }
    for (const uint64_t n : {uint64_t{0}, geometry.refcount_block_entries() - 1,
                             geometry.refcount_block_entries() * 5 + 1}) {
      const HostCluster host{n};
      EXPECT_EQ(geometry.first_of_refcount_table(geometry.refcount_table_index(host)) +
                    geometry.refcount_block_index(host),
                host);
    }
    EXPECT_TRUE(geometry.aligned(HostOffset{size}));
    EXPECT_FALSE(geometry.aligned(HostOffset{size - 1}));
    EXPECT_EQ(geometry.clusters_for(0), 0u);
    EXPECT_EQ(geometry.clusters_for(1), 1u);
    EXPECT_EQ(geometry.clusters_for(size), 1u);
    EXPECT_EQ(geometry.clusters_for(UINT64_MAX), (UINT64_MAX >> geometry.cluster_bits) + 1);
  }
}

// Trap 22: both ceilings are known before anything is created.
TEST(Geometry, TheL1TableBoundsTheDisk) {
  EXPECT_EQ((Geometry{.cluster_bits = 9}.size_max()), 128 * GiB);
  EXPECT_EQ((Geometry{.cluster_bits = 16}.size_max()), 2048 * TiB);
  EXPECT_EQ((Geometry{.cluster_bits = 16, .extended_l2 = true}.size_max()), 1024 * TiB);
  for (const Geometry& geometry : all_geometries()) {
    EXPECT_EQ(geometry.l1_entries_for(geometry.size_max()), kL1EntriesMax);
    EXPECT_EQ(geometry.l1_entries_for(geometry.size_max() + 1), kL1EntriesMax + 1);
    EXPECT_EQ(geometry.l1_entries_for(0), 0u);
    EXPECT_EQ(geometry.l1_entries_for(1), 1u);
  }
}

// Trap 22, trap 65: the largest refcount table, or 56 bits, whichever is less.
TEST(Geometry, TheRefcountTableBoundsTheFile) {
  const Geometry narrow{.cluster_bits = 9, .refcount_order = 6};
  EXPECT_EQ(narrow.start_of(narrow.host_cluster_limit()).value, 32 * GiB);
  const Geometry wide{.cluster_bits = 21, .refcount_order = 4};
  EXPECT_EQ(wide.start_of(wide.host_cluster_limit()).value, uint64_t{1} << 56);
}

// Trap 44, trap 53: the offset field is 61 bits wide at 512 bytes and 49 at 2 MiB.
TEST(Geometry, CompressedOffsetsAreAsWideAsTheSpecificationSays) {
  EXPECT_EQ((Geometry{.cluster_bits = 9}.compressed_offset_bits()), 61u);
  EXPECT_EQ((Geometry{.cluster_bits = 16}.compressed_offset_bits()), 54u);
  EXPECT_EQ((Geometry{.cluster_bits = 21}.compressed_offset_bits()), 49u);
  EXPECT_EQ((Geometry{.cluster_bits = 9}.compressed_offset_limit().value), uint64_t{1} << 56);
  EXPECT_EQ((Geometry{.cluster_bits = 14}.compressed_offset_limit().value), uint64_t{1} << 56);
  EXPECT_EQ((Geometry{.cluster_bits = 15}.compressed_offset_limit().value), uint64_t{1} << 55);
  EXPECT_EQ((Geometry{.cluster_bits = 21}.compressed_offset_limit().value), uint64_t{1} << 49);
}

}  // namespace
}  // namespace byre
