// SPDX-License-Identifier: Apache-2.0
#include "format/header.h"

#include <algorithm>
#include <cstddef>

#include "base/checked.h"
#include "format/extension.h"

namespace byre {

namespace {

/// Spec: Header, what both versions have.
struct HeaderDiskV2 {
  be32 magic;
  be32 version;
  be64 backing_file_offset;
  be32 backing_file_size;
  be32 cluster_bits;
  be64 size;
  be32 crypt_method;
  be32 l1_entries;
  be64 l1_offset;
  be64 refcount_table_offset;
  be32 refcount_table_clusters;
  be32 snapshot_count;
  be64 snapshots_offset;
};
static_assert(sizeof(HeaderDiskV2) == kHeaderSizeV2 && alignof(HeaderDiskV2) == 1);

/// What version 3 adds at least.
struct HeaderDiskV3 {
  HeaderDiskV2 v2;
  be64 incompatible;
  be64 compatible;
  be64 autoclear;
  be32 refcount_order;
  be32 header_length;
};
static_assert(sizeof(HeaderDiskV3) == kHeaderSizeV3Min && alignof(HeaderDiskV3) == 1);

/// Spec: Additional fields.
constexpr uint32_t kCompressionTypeAt = 104;
constexpr uint32_t kUnknownFieldsAt = 105;

/// The stages of parse_header(); each looks only at what the one before has found to be there.
class HeaderParser {
 public:
  explicit HeaderParser(Bytes bytes) : bytes_(bytes) {}

  Result<Header> parse(OpenFor purpose) {
    BYRE_TRY(cluster_bits, parse_cluster_bits(bytes_));
    header_.cluster_bits = cluster_bits;
    const auto* disk = view_as<HeaderDiskV2>(bytes_);
    if (!disk) return corrupt(bytes_.size(), " bytes, too few for a header");
    header_.version = disk->version;
    take_common(*disk);
    if (Result<void> done = header_.version == 2 ? take_v2() : take_v3(); !done)
      return std::move(done).error();

    if (disk->crypt_method > static_cast<uint32_t>(CryptMethod::luks))
      return unsupported("encryption method ", uint32_t{disk->crypt_method}, " is not known");
    header_.crypt_method = static_cast<CryptMethod>(uint32_t{disk->crypt_method});

    using Check = Result<void> (HeaderParser::*)() const;
    for (const Check check : {&HeaderParser::check_features, &HeaderParser::check_backing_file,
                              &HeaderParser::check_l1, &HeaderParser::check_snapshots}) {
      if (Result<void> sound = (this->*check)(); !sound) return std::move(sound).error();
    }
    if (Result<void> sound = check_l1_size(); !sound && purpose != OpenFor::check)
      return std::move(sound).error();
    if (purpose == OpenFor::use) {
      if ((header_.autoclear & kRawDataFile) != 0 && !header_.has(kDataFile))
        return corrupt("raw external data without an external data file");
      if (Result<void> sound = check_refcount_table(header_); !sound)
        return std::move(sound).error();
    }
    return std::move(header_);
  }

 private:
  void take_common(const HeaderDiskV2& disk) {
    header_.backing_file_offset = disk.backing_file_offset;
    header_.backing_file_size = disk.backing_file_size;
    header_.size = disk.size;
    header_.l1_entries = disk.l1_entries;
    header_.l1_offset = {disk.l1_offset};
    header_.refcount_table_offset = {disk.refcount_table_offset};
    header_.refcount_table_clusters = disk.refcount_table_clusters;
    header_.snapshot_count = disk.snapshot_count;
    header_.snapshots_offset = {disk.snapshots_offset};
  }

  /// Byte 72 and what follows are extensions.
  Result<void> take_v2() {
    header_.refcount_order = kRefcountOrderV2;
    header_.header_length = kHeaderSizeV2;
    return {};
  }

  Result<void> take_v3() {
    const auto* disk = view_as<HeaderDiskV3>(bytes_);
    if (!disk) return corrupt(bytes_.size(), " bytes, too few for a version 3 header");
    header_.incompatible = disk->incompatible;
    header_.compatible = disk->compatible;
    header_.autoclear = disk->autoclear;
    header_.refcount_order = disk->refcount_order;
    header_.header_length = disk->header_length;
    const uint32_t length = header_.header_length;
    if (length < kHeaderSizeV3Min)
      return corrupt("header_length is ", length, ", at least ", kHeaderSizeV3Min);
    if (length > uint64_t{1} << header_.cluster_bits)
      return corrupt("header_length is ", length, ", more than a cluster");
    if (length > bytes_.size())
      return corrupt("header_length is ", length, ", only ", bytes_.size(), " bytes are there");

    uint32_t compression = 0;
    if (length > kCompressionTypeAt)
      compression = std::to_integer<uint32_t>(bytes_[kCompressionTypeAt]);
    if (length > kUnknownFieldsAt) {
      const Bytes unknown = bytes_.subspan(kUnknownFieldsAt, length - kUnknownFieldsAt);
      header_.unknown_fields.assign(unknown.begin(), unknown.end());
    }
    if (header_.has(kCompressionType) != (compression != 0))
      return corrupt("compression type ", compression, " contradicts its feature bit");
    if (compression > static_cast<uint32_t>(Compression::zstd))
      return unsupported("compression type ", compression, " is not known");
    header_.compression = static_cast<Compression>(compression);
    return {};
  }

  Result<void> check_features() const {
    if (header_.refcount_order > kRefcountOrderMax)
      return corrupt("refcount_order is ", header_.refcount_order, ", at most ", kRefcountOrderMax);
    if (header_.has(kExtendedL2) && header_.cluster_bits < kClusterBitsMinExtendedL2)
      return corrupt("extended L2 entries with clusters of ", cluster_size(), " bytes");
    return {};
  }

  Result<void> check_backing_file() const {
    const uint64_t offset = header_.backing_file_offset;
    if (offset == 0) return {};
    if (offset < header_.header_length)
      return corrupt("backing file name at ", hex(offset), " lies in the header");
    if (header_.backing_file_size > kBackingFileSizeMax)
      return corrupt("backing file name of ", header_.backing_file_size, " bytes, at most ",
                     kBackingFileSizeMax);
    if (!within(offset, header_.backing_file_size, cluster_size()))
      return corrupt("backing file name at ", hex(offset), " leaves the first cluster");
    return {};
  }

  Result<void> check_l1() const {
    const Geometry geometry = geometry_of(header_);
    const HostOffset at = header_.l1_offset;
    const uint64_t entries = header_.l1_entries;
    if (entries > kL1EntriesMax)
      return unsupported("L1 table of ", entries, " entries, at most ", kL1EntriesMax);
    if (!geometry.aligned(at)) return corrupt("L1 table at ", at, " is not cluster aligned");
    if (entries != 0 && at.value == 0) return corrupt("L1 table in the first cluster");
    if (!within(at.value, entries * 8, uint64_t{1} << kHostOffsetBits))
      return corrupt("L1 table at ", at, " is above 2^56");
    return {};
  }

  Result<void> check_l1_size() const {
    const uint64_t needed = geometry_of(header_).l1_entries_for(header_.size);
    if (header_.l1_entries >= needed) return {};
    return corrupt("L1 table of ", header_.l1_entries, " entries, a disk of ", header_.size,
                   " bytes needs ", needed);
  }

  Result<void> check_snapshots() const {
    const HostOffset at = header_.snapshots_offset;
    if (header_.snapshot_count > kSnapshotsMax)
      return unsupported(header_.snapshot_count, " snapshots, at most ", kSnapshotsMax);
    if (at.value % cluster_size() != 0)
      return corrupt("snapshot table at ", at, " is not cluster aligned");
    if (header_.snapshot_count != 0 && at.value == 0)
      return corrupt("snapshot table in the first cluster");
    if (!within(at.value, kSnapshotTableSizeMax, kFileSizeMax))
      return corrupt("snapshot table at ", at, " is beyond any file");
    return {};
  }

  uint64_t cluster_size() const { return uint64_t{1} << header_.cluster_bits; }

  Bytes bytes_;
  Header header_;
};

/// The length that a header is written with: as it was, but a multiple of 8 and long enough.
uint32_t written_length(const Header& header) {
  if (header.version == 2) return kHeaderSizeV2;
  uint64_t length = std::max(header.header_length, kHeaderSizeV3Min);
  if (header.compression != Compression::deflate)
    length = std::max<uint64_t>(length, kHeaderSizeV3);
  if (!header.unknown_fields.empty())
    length = std::max<uint64_t>(length, kUnknownFieldsAt + header.unknown_fields.size());
  return static_cast<uint32_t>(round_up(length, 8));
}

/// The header itself with its backing file fields; `bytes` has written_length() bytes of zeros.
void write_header(MutableBytes bytes, const Header& header, uint64_t backing_file_offset,
                  size_t backing_file_size) {
  const HeaderDiskV2 v2{.magic = kMagic,
                        .version = header.version,
                        .backing_file_offset = backing_file_offset,
                        .backing_file_size = static_cast<uint32_t>(backing_file_size),
                        .cluster_bits = header.cluster_bits,
                        .size = header.size,
                        .crypt_method = static_cast<uint32_t>(header.crypt_method),
                        .l1_entries = header.l1_entries,
                        .l1_offset = header.l1_offset.value,
                        .refcount_table_offset = header.refcount_table_offset.value,
                        .refcount_table_clusters = header.refcount_table_clusters,
                        .snapshot_count = header.snapshot_count,
                        .snapshots_offset = header.snapshots_offset.value};
  copy(bytes, bytes_of(v2));
  if (header.version == 2) return;

  copy(bytes, bytes_of(HeaderDiskV3{.v2 = v2,
                                    .incompatible = header.incompatible,
                                    .compatible = header.compatible,
                                    .autoclear = header.autoclear,
                                    .refcount_order = header.refcount_order,
                                    .header_length = static_cast<uint32_t>(bytes.size())}));
  if (bytes.size() > kCompressionTypeAt)
    bytes[kCompressionTypeAt] = static_cast<std::byte>(header.compression);
  if (bytes.size() > kUnknownFieldsAt) copy(bytes.subspan(kUnknownFieldsAt), header.unknown_fields);
}

/// The fields of the first sector that lie together; see the asserts.
template <class Int>
void store_field(MutableBytes sector, size_t at, Int value) {
  BYRE_ASSERT(sector.size() >= kSectorSize);
  store_be(sector, at, value);
}
static_assert(offsetof(HeaderDiskV2, l1_entries) == 36 && offsetof(HeaderDiskV2, l1_offset) == 40);
static_assert(offsetof(HeaderDiskV2, refcount_table_offset) == 48 &&
              offsetof(HeaderDiskV2, refcount_table_clusters) == 56);
static_assert(offsetof(HeaderDiskV2, snapshot_count) == 60 &&
              offsetof(HeaderDiskV2, snapshots_offset) == 64);

}  // namespace

Result<uint32_t> parse_cluster_bits(Bytes start_of_file) {
  if (start_of_file.size() < 24)
    return corrupt(start_of_file.size(), " bytes, too few for a header");
  if (load_be<uint32_t>(start_of_file, offsetof(HeaderDiskV2, magic)) != kMagic)
    return corrupt("not a qcow2 image: the magic number is missing");
  const auto version = load_be<uint32_t>(start_of_file, offsetof(HeaderDiskV2, version));
  if (version != 2 && version != 3)
    return unsupported("qcow2 version ", version, ", known are 2 and 3");
  const auto bits = load_be<uint32_t>(start_of_file, offsetof(HeaderDiskV2, cluster_bits));
  if (bits < kClusterBitsMin)
    return corrupt("cluster_bits is ", bits, ", at least ", kClusterBitsMin);
  if (bits > kClusterBitsMax)
    return unsupported("cluster_bits is ", bits, ", at most ", kClusterBitsMax);
  return bits;
}

Result<Header> parse_header(Bytes start_of_file, OpenFor purpose) {
  return HeaderParser(start_of_file).parse(purpose).doing("header");
}

Result<void> check_refcount_table(const Header& header) {
  const Geometry geometry = geometry_of(header);
  const HostOffset at = header.refcount_table_offset;
  const uint64_t clusters = header.refcount_table_clusters;
  if (clusters == 0) return corrupt("refcount table is missing");
  if (clusters > kRefcountTableSizeMax / geometry.cluster_size())
    return unsupported("refcount table of ", clusters, " clusters, at most ", kRefcountTableSizeMax,
                       " bytes");
  if (!geometry.aligned(at)) return corrupt("refcount table at ", at, " is not cluster aligned");
  if (at.value == 0) return corrupt("refcount table in the first cluster");
  if (!within(at.value, clusters << header.cluster_bits, kFileSizeMax))
    return corrupt("refcount table at ", at, " is beyond any file");
  return {};
}

Result<void> check_incompatible(const Header& header, const Extensions& extensions) {
  const uint64_t unknown = header.incompatible & ~kIncompatibleKnown;
  if (unknown == 0) return {};
  std::string names;
  for (uint32_t bit = 0; bit < 64; ++bit) {
    if ((unknown >> bit & 1) == 0) continue;
    if (!names.empty()) names += ", ";
    names += feature_name(extensions.feature_names, FeatureKind::incompatible, bit);
  }
  return unsupported("the image needs features that byre does not have: ", names);
}

std::vector<std::string> oddities(const Header& header, const Extensions& extensions) {
  std::vector<std::string> found;
  const auto note = [&](const auto&... parts) { found.push_back(cat(parts...)); };

  if (header.header_length % 8 != 0)
    note("header_length is ", header.header_length, ", not a multiple of 8");
  const size_t padding_size =
      std::min<size_t>(header.unknown_fields.size(), kHeaderSizeV3 - kUnknownFieldsAt);
  if (!is_zero(Bytes(header.unknown_fields).first(padding_size)))
    note("the padding of the header is not zero");
  if (header.size % kSectorSize != 0)
    note("the disk ends ", header.size % kSectorSize, " bytes into a sector; QEMU hides them");
  if ((header.autoclear & kRawDataFile) != 0 && !header.has(kDataFile))
    note("raw external data without an external data file");
  if ((header.autoclear & kRawDataFile) != 0 && header.backing_file_offset != 0)
    note("raw external data with a backing file");
  if (header.has(kDataFile) && header.snapshot_count != 0)
    note("internal snapshots with an external data file");
  if ((header.autoclear & kBitmaps) != 0 && !extensions.bitmaps)
    note("the bitmaps feature bit is set without bitmaps");
  if ((header.autoclear & kBitmaps) == 0 && extensions.bitmaps)
    note("the bitmaps are inconsistent: their feature bit is clear");
  for (const UnknownExtension& extension : extensions.unknown) {
    if (extension.type == kBitmapsExtension) note("the bitmaps extension is unsound and unused");
    if (extension.type == kDataFileNameExtension)
      note("a data file name without an external data file");
  }
  return found;
}

Geometry geometry_of(const Header& header) {
  return {.version = header.version,
          .cluster_bits = header.cluster_bits,
          .refcount_order = header.refcount_order,
          .extended_l2 = header.has(kExtendedL2),
          .data_file = header.has(kDataFile),
          .encrypted = header.crypt_method != CryptMethod::none};
}

Result<std::vector<std::byte>> serialize_header(const Header& header, const Extensions& extensions,
                                                std::string_view backing_file) {
  BYRE_ASSERT(bool(geometry_of(header).check()));
  BYRE_ASSERT(header.has(kCompressionType) == (header.compression != Compression::deflate));
  BYRE_ASSERT(header.version == 3 ||
              (header.incompatible | header.compatible | header.autoclear) == 0);
  if (backing_file.size() > kBackingFileSizeMax)
    return invalid("backing file name of ", backing_file.size(), " bytes, at most ",
                   kBackingFileSizeMax);
  if (backing_file.find('\0') != std::string_view::npos)
    return invalid("backing file name contains NUL");

  const uint64_t length = written_length(header);
  const uint64_t cluster_size = geometry_of(header).cluster_size();
  std::vector<std::byte> area = serialize(extensions);
  if (length + area.size() + backing_file.size() > cluster_size &&
      !extensions.feature_names.empty()) {
    Extensions without_names = extensions;
    without_names.feature_names.clear();
    area = serialize(without_names);
  }
  const uint64_t name_at = length + area.size();
  if (name_at + backing_file.size() > cluster_size)
    return Error(Errc::no_space, cat("header, extensions and backing file name take ",
                                     name_at + backing_file.size(),
                                     " bytes, the first cluster has ", cluster_size));

  std::vector<std::byte> bytes(name_at + backing_file.size());
  const MutableBytes all = bytes;
  write_header(all.first(length), header, backing_file.empty() ? 0 : name_at, backing_file.size());
  copy(all.subspan(length), area);
  copy(all.subspan(name_at), bytes_of(backing_file));
  return bytes;
}

void store_size(MutableBytes sector, uint64_t size) {
  store_field(sector, offsetof(HeaderDiskV2, size), size);
}
void store_l1(MutableBytes sector, HostOffset offset, uint32_t entries) {
  store_field(sector, offsetof(HeaderDiskV2, l1_entries), entries);
  store_field(sector, offsetof(HeaderDiskV2, l1_offset), offset.value);
}
void store_refcount_table(MutableBytes sector, HostOffset offset, uint32_t clusters) {
  store_field(sector, offsetof(HeaderDiskV2, refcount_table_offset), offset.value);
  store_field(sector, offsetof(HeaderDiskV2, refcount_table_clusters), clusters);
}
void store_snapshots(MutableBytes sector, uint32_t count, HostOffset offset) {
  store_field(sector, offsetof(HeaderDiskV2, snapshot_count), count);
  store_field(sector, offsetof(HeaderDiskV2, snapshots_offset), offset.value);
}
uint64_t backing_file_offset_of(Bytes sector) {
  return load_be<uint64_t>(sector, offsetof(HeaderDiskV2, backing_file_offset));
}
void store_refcount_order(MutableBytes sector, uint32_t order) {
  store_field(sector, offsetof(HeaderDiskV3, refcount_order), order);
}
void store_incompatible(MutableBytes sector, uint64_t features) {
  store_field(sector, offsetof(HeaderDiskV3, incompatible), features);
}
void store_compatible(MutableBytes sector, uint64_t features) {
  store_field(sector, offsetof(HeaderDiskV3, compatible), features);
}
void store_autoclear(MutableBytes sector, uint64_t features) {
  store_field(sector, offsetof(HeaderDiskV3, autoclear), features);
}

}  // namespace byre
