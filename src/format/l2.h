// SPDX-License-Identifier: Apache-2.0
/// L2 entries: what a guest cluster is, in one representation for standard and extended entries.
///
/// decode_l2() guarantees a sound Mapping:
///   - compressed: no host, no units, a stream that starts behind the first cluster and below
///     compressed_offset_limit(); never with an external data file.
///   - otherwise: `allocated` and `zero` are disjoint masks of units, `allocated` only with a host.
///     Units in neither mask read from the backing file, or as zeros without one.
///   - standard entries: Data is {host, allocated = 1}, Zero is {zero = 1} with or without a host,
///     Unallocated is {}.  A host without any unit exists only in extended entries.
///   - the host is not cluster 0, except in an external data file, where COPIED alone tells offset
///     0 from nowhere and every host is ours alone (copied is always set).
/// COPIED where the specification forbids it (compressed, without a host) is dropped, as QEMU does;
/// has_stray_copied() lets a checker report it.  Everything else that is out of order is
/// corruption. COPIED is accurate only in tables reachable from the active L1 table. Cost: a few
/// instructions for plain data and unallocated clusters; no allocation unless it fails. Not here:
/// masks of units for a byte range (extended_l2.h); whether hosts lie inside the file.
#pragma once

#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "base/error.h"
#include "format/l1.h"
#include "format/types.h"

namespace byre {

inline constexpr uint64_t kCompressed = uint64_t{1} << 62;
inline constexpr uint64_t kReadsZero = 1;

/// An entry as it lies in the table, in host byte order.
struct L2Entry {
  uint64_t descriptor = 0;
  uint64_t bitmap = 0;  ///< 0 unless entries are extended.
  friend bool operator==(const L2Entry&, const L2Entry&) = default;
};

struct Mapping {
  bool compressed = false;
  bool copied = false;              ///< The host is ours alone and may be overwritten in place.
  uint32_t allocated = 0;           ///< Units whose data lie in the host cluster.
  uint32_t zero = 0;                ///< Units that read as zeros.
  std::optional<HostCluster> host;  ///< Data, preallocation, or both.
  HostOffset compressed_at{};
  uint64_t compressed_size = 0;  ///< Bytes available to the stream, up to the end of a sector.
  friend bool operator==(const Mapping&, const Mapping&) = default;
};

/// Any entry; decode_l2() is this with a fast path in front.
Result<Mapping> decode_l2_any(L2Entry entry, const Geometry& geometry);

inline Result<Mapping> decode_l2(L2Entry entry, const Geometry& geometry) {
  const uint64_t offset = entry.descriptor & ~kCopied;
  const uint32_t allocated = geometry.extended_l2 ? static_cast<uint32_t>(entry.bitmap) : 1;
  const uint32_t zero = geometry.extended_l2 ? static_cast<uint32_t>(entry.bitmap >> 32) : 0;
  // Plain data: COPIED, an aligned offset, units that do not contradict each other; nothing else.
  if (offset != 0 && (offset & ~kOffsetMask) == 0 && geometry.aligned(HostOffset{offset}) &&
      (allocated & zero) == 0) [[likely]] {
    Mapping mapping;
    mapping.copied = geometry.data_file || (entry.descriptor & kCopied) != 0;
    mapping.allocated = allocated;
    mapping.zero = zero;
    mapping.host = geometry.cluster_of(HostOffset{offset});
    return mapping;
  }
  return decode_l2_any(entry, geometry);
}

/// The entry for a sound mapping; asserts what decode_l2() guarantees.
L2Entry encode_l2(const Mapping& mapping, const Geometry& geometry);

/// Every host cluster on which an entry with this mapping holds a reference, one each: none, one
/// (data or preallocation), or those that a compressed stream's sectors touch: one, two or three.
/// With an external data file hosts are not refcounted: none.
inline HostSpan hosts(const Mapping& mapping, const Geometry& geometry) {
  if (mapping.compressed) {
    const uint64_t first = mapping.compressed_at.value >> geometry.cluster_bits;
    const uint64_t last =
        (mapping.compressed_at.value + mapping.compressed_size - 1) >> geometry.cluster_bits;
    return {{first}, last - first + 1};
  }
  if (!mapping.host || geometry.data_file) return {};
  return {*mapping.host, 1};
}

/// Can a stream of `length` bytes at `at` be described at all?  The allocator asks before it places
/// one: large clusters leave fewer bits for the offset.  Never in an encrypted image: streams are
/// not encrypted, so it would show the guest's data.  Such entries of other writers decode and
/// encode all the same.
bool can_describe_compressed(HostOffset at, uint64_t length, const Geometry& geometry);
/// The mapping for a stream of `length` > 0 bytes at `at`, with the sectors it occupies.
Mapping compressed_mapping(HostOffset at, uint64_t length);
/// The entry for it; asserts can_describe_compressed().
L2Entry encode_compressed(HostOffset at, uint64_t length, const Geometry& geometry);

/// COPIED on an entry that must never have it.
bool has_stray_copied(L2Entry entry, const Geometry& geometry);

/// With an external data file a host cluster is at its guest cluster's own offset, or the entry is
/// corrupt.  True without a host.
inline bool at_own_offset(const Mapping& mapping, GuestCluster cluster) {
  return !mapping.host || mapping.host->value == cluster.value;
}

inline L2Entry load_l2(Bytes table, size_t index, const Geometry& geometry) {
  if (!geometry.extended_l2) return {load_be<uint64_t>(table, index * 8), 0};
  return {load_be<uint64_t>(table, index * 16), load_be<uint64_t>(table, index * 16 + 8)};
}
/// How many entries from `first` on, of `count`, go on as it does: the same, but that each has the
/// host cluster behind the one before, where `first` has a host.  At least 1.  `mapping` is what
/// decode_l2() made of `first`, and no stream; what is counted decodes as soundly as that.
size_t count_alike(Bytes table, size_t first, size_t count, const Mapping& mapping,
                   const Geometry& geometry);

inline void store_l2(MutableBytes table, size_t index, L2Entry entry, const Geometry& geometry) {
  if (!geometry.extended_l2) return store_be(table, index * 8, entry.descriptor);
  store_be(table, index * 16, entry.descriptor);
  store_be(table, index * 16 + 8, entry.bitmap);
}

}  // namespace byre
