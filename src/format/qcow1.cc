// SPDX-License-Identifier: Apache-2.0
#include "format/qcow1.h"

#include "base/checked.h"
#include "format/limits.h"

namespace byre {
namespace {

struct Qcow1HeaderDisk {
  be32 magic;
  be32 version;
  be64 backing_file_offset;
  be32 backing_file_size;
  be32 backing_file_time;
  be64 size;
  uint8_t cluster_bits;
  uint8_t l2_bits;
  be16 padding;
  be32 crypt_method;
  be64 l1_offset;
};
static_assert(sizeof(Qcow1HeaderDisk) == kQcow1HeaderSize && alignof(Qcow1HeaderDisk) == 1);

constexpr uint64_t kQcow1Compressed = uint64_t{1} << 63;

}  // namespace

Result<Qcow1Header> parse_qcow1_header(Bytes bytes) {
  const auto* disk = view_as<Qcow1HeaderDisk>(bytes);
  if (!disk) return corrupt(bytes.size(), " bytes, too few for the header of a qcow image");
  if (disk->magic != kMagic) return corrupt("no qcow image: the magic number is missing");
  if (disk->version != 1)
    return unsupported("qcow version ", uint32_t{disk->version}, "; this is for version 1");
  Qcow1Header header{.size = disk->size,
                     .cluster_bits = disk->cluster_bits,
                     .l2_bits = disk->l2_bits,
                     .l1_offset = {disk->l1_offset},
                     .backing_file_offset = disk->backing_file_offset,
                     .backing_file_size = disk->backing_file_size,
                     .backing_file_time = disk->backing_file_time};
  if (header.cluster_bits < 9 || header.cluster_bits > 16)
    return corrupt("cluster_bits is ", header.cluster_bits, ", allowed 9 to 16");
  if (header.l2_bits < 6 || header.l2_bits > 13)
    return corrupt("l2_bits is ", header.l2_bits, ", allowed 6 to 13");
  if (header.size < 2) return corrupt("a disk of ", header.size, " bytes");
  if (header.size > kFileSizeMax || header.l1_entries() > kQcow1L1EntriesMax) {
    return corrupt("a disk of ", header.size, " bytes needs an L1 table of ", header.l1_entries(),
                   " entries, allowed ", kQcow1L1EntriesMax);
  }
  switch (disk->crypt_method) {
    case 0:
      break;
    case 1:
      header.encrypted = true;
      break;
    default:
      return corrupt("crypt_method is ", uint32_t{disk->crypt_method}, ", allowed 0 and 1");
  }
  if (header.l1_offset.value < kQcow1HeaderSize ||
      !within(header.l1_offset.value, header.l1_entries() * 8, kFileSizeMax))
    return corrupt("an L1 table at ", header.l1_offset);
  if (header.backing_file_offset != 0) {
    if (header.backing_file_size > kQcow1BackingFileSizeMax) {
      return corrupt("a backing file name of ", header.backing_file_size, " bytes, allowed ",
                     kQcow1BackingFileSizeMax);
    }
    if (!within(header.backing_file_offset, header.backing_file_size, kFileSizeMax))
      return corrupt("a backing file name at ", HostOffset{header.backing_file_offset});
  }
  return header;
}

Result<std::optional<HostOffset>> decode_qcow1_l1(uint64_t entry) {
  if (entry == 0) return std::optional<HostOffset>();
  if (entry < kQcow1HeaderSize || entry > kFileSizeMax)
    return corrupt("L1 entry ", hex(entry), ": no place for a table");
  return std::optional(HostOffset{entry});
}

Result<Qcow1Mapping> decode_qcow1_l2(uint64_t entry, const Qcow1Header& header) {
  if (entry == 0) return Qcow1Mapping{};
  if ((entry & kQcow1Compressed) == 0) {
    if (entry % kSectorSize != 0) return corrupt("L2 entry ", hex(entry), ": not sector aligned");
    return Qcow1Mapping{.kind = Qcow1Mapping::Kind::plain, .at = {entry}};
  }
  const uint32_t size_at = 63 - header.cluster_bits;
  const Qcow1Mapping mapping{.kind = Qcow1Mapping::Kind::compressed,
                             .at = {entry & ((uint64_t{1} << size_at) - 1)},
                             .stream_size = (entry & ~kQcow1Compressed) >> size_at};
  if (mapping.stream_size == 0) return corrupt("L2 entry ", hex(entry), ": a stream of 0 bytes");
  if (mapping.at.value < kQcow1HeaderSize)
    return corrupt("L2 entry ", hex(entry), ": a stream in the header");
  return mapping;
}

}  // namespace byre
