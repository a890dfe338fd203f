// SPDX-License-Identifier: Apache-2.0
/// The header: parsed in stages, written whole once, changed by fields ever after.
///
/// parse_header() reads 72 bytes, then 104, then header_length, and interprets nothing that the
/// version or the length does not cover.  A Header that it returned is sound: known version, sizes
/// and alignments within the limits, no table in the first cluster, compression_type in agreement
/// with its feature bit.  It may still have incompatible features that byre does not know: call
/// check_incompatible() before anything else, before any write above all.
/// The order at open: parse_cluster_bits, read the first cluster, parse_header, parse_extensions,
/// check_incompatible, parse_backing_file.
///
/// The store_ functions change fields in the first 512 bytes of the file; each group lies in that
/// one sector, so that writing it back is atomic.  serialize_header() is for creation and for
/// amending, where more than a sector changes.
/// Not here: the extensions (extension.h), the order of the writes (the engine).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "format/types.h"

namespace byre {

struct Extensions;

/// Incompatible features (spec: incompatible_features).
inline constexpr uint64_t kDirty = 1u << 0;
inline constexpr uint64_t kCorrupt = 1u << 1;
inline constexpr uint64_t kDataFile = 1u << 2;
inline constexpr uint64_t kCompressionType = 1u << 3;
inline constexpr uint64_t kExtendedL2 = 1u << 4;
inline constexpr uint64_t kIncompatibleKnown =
    kDirty | kCorrupt | kDataFile | kCompressionType | kExtendedL2;

/// Compatible features (spec: compatible_features).
inline constexpr uint64_t kLazyRefcounts = 1u << 0;

/// Autoclear features (spec: autoclear_features).  Unknown ones are cleared before the first write.
inline constexpr uint64_t kBitmaps = 1u << 0;
inline constexpr uint64_t kRawDataFile = 1u << 1;
inline constexpr uint64_t kAutoclearKnown = kBitmaps | kRawDataFile;

struct Header {
  uint32_t version = 3;
  /// Where the backing file's name lies; 0 when there is none.  serialize_header() ignores both.
  uint64_t backing_file_offset = 0;
  uint32_t backing_file_size = 0;
  uint32_t cluster_bits = 16;
  uint64_t size = 0;  ///< Of the disk, in bytes; not always a multiple of 512.
  CryptMethod crypt_method = CryptMethod::none;
  uint32_t l1_entries = 0;  ///< At least what the size needs; more when VM state was kept.
  HostOffset l1_offset;
  HostOffset refcount_table_offset;
  uint32_t refcount_table_clusters = 0;
  uint32_t snapshot_count = 0;
  HostOffset snapshots_offset;
  uint64_t incompatible = 0;
  uint64_t compatible = 0;
  uint64_t autoclear = 0;
  uint32_t refcount_order = 4;
  uint32_t header_length = kHeaderSizeV3;  ///< 72 in version 2.
  Compression compression = Compression::deflate;
  /// Bytes from 105 to header_length: padding, or fields that byre does not know.
  std::vector<std::byte> unknown_fields;

  bool has(uint64_t incompatible_bit) const { return (incompatible & incompatible_bit) != 0; }
  friend bool operator==(const Header&, const Header&) = default;
};

/// What the image is opened for.  `repair` lets pass what a repair can put right without losing
/// anything: an unusable refcount table (ask check_refcount_table()), and raw external data without
/// an external data file.  `check` also lets pass an L1 table with fewer entries than the disk
/// needs: who reads through it must know that the others are lost.
enum class OpenFor : uint8_t { use, repair, check };

/// How much of the file to read before the rest can be parsed: needs the first 24 bytes, checks
/// magic, version and the bounds of cluster_bits.
Result<uint32_t> parse_cluster_bits(Bytes start_of_file);

/// `start_of_file` is the first cluster, or the whole file if that is shorter.
Result<Header> parse_header(Bytes start_of_file, OpenFor purpose = OpenFor::use);

/// Is the refcount table present, aligned, within the limits, outside the first cluster?
Result<void> check_refcount_table(const Header& header);

/// Refuses features that byre does not know, by the names the image gives them.
Result<void> check_incompatible(const Header& header, const Extensions& extensions);

/// What a checker should mention although every reader accepts it: header_length that is no
/// multiple of 8, padding that is not zero, a disk that ends inside a sector, ...
std::vector<std::string> oddities(const Header& header, const Extensions& extensions);

Geometry geometry_of(const Header& header);

/// The first part of the file: header, extensions, and the backing file's name when it is not
/// empty; backing_file_offset, backing_file_size and header_length are computed.  The rest of the
/// first cluster is to be zeros.  The feature name table, which is optional, is left out when there
/// is no room for it; Errc::no_space when the rest does not fit in the first cluster.
Result<std::vector<std::byte>> serialize_header(const Header& header, const Extensions& extensions,
                                                std::string_view backing_file = {});

/// Fields in the first sector.  `sector` is the first 512 bytes of the file, or more.
void store_size(MutableBytes sector, uint64_t size);
void store_l1(MutableBytes sector, HostOffset offset, uint32_t entries);
void store_refcount_table(MutableBytes sector, HostOffset offset, uint32_t clusters);
void store_snapshots(MutableBytes sector, uint32_t count, HostOffset offset);
/// Where the backing file's name lies; 0 when there is none.
uint64_t backing_file_offset_of(Bytes sector);
/// Version 3 only, like those that follow: in version 2 the extensions lie there.
void store_refcount_order(MutableBytes sector, uint32_t order);
void store_incompatible(MutableBytes sector, uint64_t features);
void store_compatible(MutableBytes sector, uint64_t features);
void store_autoclear(MutableBytes sector, uint64_t features);

}  // namespace byre
