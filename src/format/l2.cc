// SPDX-License-Identifier: Apache-2.0
#include "format/l2.h"

#include <algorithm>

namespace byre {

namespace {

constexpr uint64_t kLow32 = 0xffff'ffff;

Result<Mapping> decode_compressed(L2Entry entry, const Geometry& geometry) {
  const uint32_t offset_bits = geometry.compressed_offset_bits();
  const uint64_t field = entry.descriptor & ~(kCopied | kCompressed);
  const uint64_t at = field & ((uint64_t{1} << offset_bits) - 1);
  const uint64_t more_sectors = field >> offset_bits;

  if (geometry.data_file)
    return corrupt("L2 entry ", hex(entry.descriptor), ": compressed, in an external data file");
  if (entry.bitmap != 0)
    return corrupt("L2 entry ", hex(entry.descriptor), ": compressed, with subclusters ",
                   hex(entry.bitmap));
  if (at >= geometry.compressed_offset_limit().value)
    return corrupt("L2 entry ", hex(entry.descriptor), ": compressed, above 2^56");
  if (at < geometry.cluster_size())
    return corrupt("L2 entry ", hex(entry.descriptor), ": compressed, in the first cluster");

  Mapping mapping;
  mapping.compressed = true;
  mapping.compressed_at = {at};
  mapping.compressed_size = (more_sectors + 1) * kSectorSize - at % kSectorSize;
  return mapping;
}

/// Does the stream fit into the fields of a descriptor?
bool fits(HostOffset at, uint64_t length, const Geometry& geometry) {
  const uint64_t limit = geometry.compressed_offset_limit().value;
  if (geometry.data_file || at.value < geometry.cluster_size() || at.value >= limit) return false;
  if (length == 0 || length > geometry.compressed_size_max()) return false;
  const uint64_t more_sectors = (at.value + length - 1) / kSectorSize - at.value / kSectorSize;
  return more_sectors >> (62 - geometry.compressed_offset_bits()) == 0;
}

}  // namespace

Result<Mapping> decode_l2_any(L2Entry entry, const Geometry& geometry) {
  const uint64_t descriptor = entry.descriptor;
  if ((descriptor & kCompressed) != 0) return decode_compressed(entry, geometry);

  const HostOffset at{descriptor & kOffsetMask};
  const bool reads_zero = (descriptor & kReadsZero) != 0;
  if ((descriptor & ~(kCopied | kOffsetMask | kReadsZero)) != 0)
    return corrupt("L2 entry ", hex(descriptor), ": reserved bits are set");
  if (!geometry.aligned(at)) return corrupt("L2 entry ", hex(descriptor), ": not cluster aligned");
  if (reads_zero && geometry.version < 3)
    return corrupt("L2 entry ", hex(descriptor), ": zero flag, which version 2 does not have");
  if (reads_zero && geometry.extended_l2)
    return corrupt("L2 entry ", hex(descriptor), ": zero flag, which extended entries do not have");

  const bool copied = geometry.data_file || (descriptor & kCopied) != 0;
  Mapping mapping;
  if (at.value != 0 || (geometry.data_file && (descriptor & kCopied) != 0)) {
    mapping.host = geometry.cluster_of(at);
    mapping.copied = copied;
  }
  if (geometry.extended_l2) {
    mapping.allocated = static_cast<uint32_t>(entry.bitmap & kLow32);
    mapping.zero = static_cast<uint32_t>(entry.bitmap >> 32);
    if ((mapping.allocated & mapping.zero) != 0)
      return corrupt("L2 entry ", hex(descriptor), ": subclusters ", hex(entry.bitmap),
                     " are allocated and zero at once");
    if (mapping.allocated != 0 && !mapping.host)
      return corrupt("L2 entry ", hex(descriptor), ": subclusters ", hex(entry.bitmap),
                     " are allocated nowhere");
  } else if (reads_zero) {
    mapping.zero = 1;
  } else if (mapping.host) {
    mapping.allocated = 1;
  }
  return mapping;
}

L2Entry encode_l2(const Mapping& mapping, const Geometry& geometry) {
  if (mapping.compressed) {
    const uint64_t at = mapping.compressed_at.value;
    BYRE_ASSERT(!mapping.host && mapping.allocated == 0 && mapping.zero == 0);
    BYRE_ASSERT(fits(mapping.compressed_at, mapping.compressed_size, geometry));
    const uint64_t last_sector = (at + mapping.compressed_size - 1) / kSectorSize;
    const uint64_t more_sectors = last_sector - at / kSectorSize;
    return {kCompressed | more_sectors << geometry.compressed_offset_bits() | at, 0};
  }

  BYRE_ASSERT((mapping.allocated & mapping.zero) == 0);
  BYRE_ASSERT(((mapping.allocated | mapping.zero) & ~geometry.all_units()) == 0);
  L2Entry entry;
  if (mapping.host) {
    const uint64_t offset = geometry.start_of(*mapping.host).value;
    BYRE_ASSERT((offset & ~kOffsetMask) == 0 && (offset != 0 || geometry.data_file));
    entry.descriptor = offset | (mapping.copied || geometry.data_file ? kCopied : 0);
  } else {
    BYRE_ASSERT(mapping.allocated == 0);
  }
  if (geometry.extended_l2) {
    entry.bitmap = uint64_t{mapping.zero} << 32 | mapping.allocated;
  } else if (mapping.zero != 0) {
    BYRE_ASSERT(geometry.version >= 3);
    entry.descriptor |= kReadsZero;
  } else {
    BYRE_ASSERT(mapping.host.has_value() == (mapping.allocated != 0));
  }
  return entry;
}

bool can_describe_compressed(HostOffset at, uint64_t length, const Geometry& geometry) {
  return !geometry.encrypted && fits(at, length, geometry);
}

Mapping compressed_mapping(HostOffset at, uint64_t length) {
  Mapping mapping;
  mapping.compressed = true;
  mapping.compressed_at = at;
  mapping.compressed_size = round_up(at.value + length, kSectorSize) - at.value;
  return mapping;
}

L2Entry encode_compressed(HostOffset at, uint64_t length, const Geometry& geometry) {
  BYRE_ASSERT(can_describe_compressed(at, length, geometry));
  return encode_l2(compressed_mapping(at, length), geometry);
}

size_t count_alike(Bytes table, size_t first, size_t count, const Mapping& mapping,
                   const Geometry& geometry) {
  BYRE_ASSERT(count > 0 && !mapping.compressed);
  L2Entry expected = load_l2(table, first, geometry);
  const uint64_t step = mapping.host ? geometry.cluster_size() : 0;
  if (step != 0) {
    // Behind the last offset that an entry can hold a sum would carry into its flags.
    const uint64_t offset = expected.descriptor & kOffsetMask;
    count = std::min<uint64_t>(count, (kOffsetMask - offset) / step + 1);
  }
  size_t found = 1;
  while (found < count) {
    expected.descriptor += step;
    if (load_l2(table, first + found, geometry) != expected) break;
    ++found;
  }
  return found;
}

bool has_stray_copied(L2Entry entry, const Geometry& geometry) {
  if ((entry.descriptor & kCopied) == 0) return false;
  if ((entry.descriptor & kCompressed) != 0) return true;
  return (entry.descriptor & kOffsetMask) == 0 && !geometry.data_file;
}

}  // namespace byre
