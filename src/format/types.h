// SPDX-License-Identifier: Apache-2.0
/// The shape of an image: what the header fixes once, and the arithmetic that follows from it.
///
/// Invariant: a Geometry that came from geometry_of() or passed check() has cluster_bits 9 to 21
/// (14 with extended L2), refcount_order 0 to 6 and version 2 or 3; nothing here tests it again.
/// Cost: a few shifts; all of it is constexpr.
/// Not here: the header's other fields (header.h), what an entry says (l1.h, l2.h, refcount.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/error.h"
#include "base/units.h"
#include "format/limits.h"

namespace byre {

/// How compressed clusters are written; one way for a whole image (spec: compression_type).
enum class Compression : uint8_t { deflate = 0, zstd = 1 };

/// Spec: crypt_method.
enum class CryptMethod : uint32_t { none = 0, aes = 1, luks = 2 };

/// A run of host clusters; count may be 0.
struct HostSpan {
  HostCluster first;
  uint64_t count = 0;
  constexpr HostCluster end() const { return {first.value + count}; }
  friend bool operator==(const HostSpan&, const HostSpan&) = default;
};

struct Geometry {
  uint32_t version = 3;
  uint32_t cluster_bits = 16;
  uint32_t refcount_order = 4;
  bool extended_l2 = false;
  /// Guest data lie in an external file, each cluster at its guest offset, and are not refcounted.
  bool data_file = false;
  /// Guest data are encrypted; nothing may be compressed then (l2.h).
  bool encrypted = false;

  friend bool operator==(const Geometry&, const Geometry&) = default;

  /// Clusters.
  constexpr uint64_t cluster_size() const { return uint64_t{1} << cluster_bits; }
  constexpr bool aligned(HostOffset at) const { return (at.value & (cluster_size() - 1)) == 0; }
  constexpr uint64_t offset_in_cluster(GuestOffset at) const {
    return at.value & (cluster_size() - 1);
  }
  constexpr uint64_t offset_in_cluster(HostOffset at) const {
    return at.value & (cluster_size() - 1);
  }
  constexpr GuestCluster cluster_of(GuestOffset at) const { return {at.value >> cluster_bits}; }
  constexpr HostCluster cluster_of(HostOffset at) const { return {at.value >> cluster_bits}; }
  constexpr GuestOffset start_of(GuestCluster cluster) const {
    return {cluster.value << cluster_bits};
  }
  constexpr HostOffset start_of(HostCluster cluster) const {
    return {cluster.value << cluster_bits};
  }
  /// Clusters that `size` bytes need: for disks, tables and files.
  constexpr uint64_t clusters_for(uint64_t size) const {
    return (size >> cluster_bits) + ((size & (cluster_size() - 1)) != 0);
  }

  /// Units: the parts of a cluster that can be allocated or zero by themselves.  32 subclusters
  /// with extended L2 entries (spec: Extended L2 Entries), else the cluster itself.
  constexpr uint32_t units() const { return extended_l2 ? 32 : 1; }
  constexpr uint32_t unit_bits() const { return extended_l2 ? cluster_bits - 5 : cluster_bits; }
  constexpr uint64_t unit_size() const { return uint64_t{1} << unit_bits(); }
  /// The mask with a bit for each unit.
  constexpr uint32_t all_units() const { return extended_l2 ? ~uint32_t{0} : 1; }

  /// L2 tables are one cluster each.
  constexpr uint64_t l2_entry_size() const { return extended_l2 ? 16 : 8; }
  constexpr uint32_t l2_bits() const { return cluster_bits - (extended_l2 ? 4 : 3); }
  constexpr uint64_t l2_entries() const { return uint64_t{1} << l2_bits(); }
  constexpr uint64_t l2_index(GuestCluster cluster) const {
    return cluster.value & (l2_entries() - 1);
  }
  constexpr uint64_t l1_index(GuestCluster cluster) const { return cluster.value >> l2_bits(); }
  /// The first guest cluster of an L1 entry.
  constexpr GuestCluster first_of_l1(uint64_t index) const { return {index << l2_bits()}; }
  /// Bytes of the disk that one L1 entry covers.
  constexpr uint64_t l1_span() const { return uint64_t{1} << (cluster_bits + l2_bits()); }
  /// Where the part of the disk ends that the L2 table of `at` covers.
  constexpr GuestOffset end_of_table(GuestOffset at) const {
    return {(l1_index(cluster_of(at)) + 1) * l1_span()};
  }
  /// L1 entries that a disk of `size` bytes needs; VM state starts at the entry after them.
  constexpr uint64_t l1_entries_for(uint64_t size) const {
    return size / l1_span() + (size % l1_span() != 0);
  }
  /// The largest disk whose L1 table is not too large.
  constexpr uint64_t size_max() const { return kL1EntriesMax * l1_span(); }

  /// Refcount blocks are one cluster each.
  constexpr uint32_t refcount_bits() const { return 1u << refcount_order; }
  constexpr uint32_t refcount_block_bits() const { return cluster_bits + 3 - refcount_order; }
  constexpr uint64_t refcount_block_entries() const { return uint64_t{1} << refcount_block_bits(); }
  constexpr uint64_t refcount_table_index(HostCluster cluster) const {
    return cluster.value >> refcount_block_bits();
  }
  constexpr uint64_t refcount_block_index(HostCluster cluster) const {
    return cluster.value & (refcount_block_entries() - 1);
  }
  /// The first host cluster that a refcount table entry covers.
  constexpr HostCluster first_of_refcount_table(uint64_t index) const {
    return {index << refcount_block_bits()};
  }
  constexpr uint64_t refcount_table_entries_per_cluster() const { return cluster_size() / 8; }

  /// Host clusters below this one can be pointed to by L1 and L2 entries and be counted by the
  /// largest refcount table; an allocator stays below it.
  constexpr HostCluster host_cluster_limit() const {
    const uint64_t pointed = uint64_t{1} << (kHostOffsetBits - cluster_bits);
    const uint64_t counted = kRefcountTableEntriesMax << refcount_block_bits();
    return {pointed < counted ? pointed : counted};
  }
  /// Bits of the offset in a compressed descriptor (spec: Compressed Clusters Descriptor, x).
  constexpr uint32_t compressed_offset_bits() const { return 62 - (cluster_bits - 8); }
  /// A compressed stream starts below this offset: the field's width, or 56 bits.
  constexpr HostOffset compressed_offset_limit() const {
    const uint32_t bits = compressed_offset_bits();
    return {uint64_t{1} << (bits < kHostOffsetBits ? bits : kHostOffsetBits)};
  }
  /// Bytes of the longest stream a descriptor can hold when it starts on a sector: two clusters.
  constexpr uint64_t compressed_size_max() const { return 2 * cluster_size(); }

  /// Is it within the limits that the invariant names?  For geometries that a user chose.
  Result<void> check() const;
};

}  // namespace byre
