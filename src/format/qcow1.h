// SPDX-License-Identifier: Apache-2.0
/// The first version of the format (magic QFI\xfb, version 1): header, L1 and L2 entries.
///
/// All integers are big-endian.  An L1 entry is the offset of an L2 table of 2^l2_bits entries, an
/// L2 entry the offset of a cluster, or with bit 63 a raw deflate stream: its size in bytes lies in
/// the cluster_bits bits below bit 63, its offset in the bits below those.  0 is nowhere: the
/// backing file says, or it reads as zeros.  There are neither refcounts nor snapshots. Invariant:
/// a Qcow1Header that was parsed has cluster_bits 9 to 16, l2_bits 6 to 13, a size whose L1 table
/// has fewer than 2^28 entries. Cost: a few shifts.  Not here: decryption, whether tables
/// and clusters lie inside the file (qcow1/image.h), the streams themselves (codec.h), version 2
/// and later (header.h, l2.h).
#pragma once

#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "base/error.h"
#include "base/units.h"

namespace byre {

inline constexpr uint32_t kQcow1HeaderSize = 48;
inline constexpr uint32_t kQcow1BackingFileSizeMax = 1023;
/// QEMU's: entries of an L1 table.
inline constexpr uint64_t kQcow1L1EntriesMax = INT32_MAX / 8;

struct Qcow1Header {
  uint64_t size = 0;
  uint32_t cluster_bits = 12;
  uint32_t l2_bits = 9;
  HostOffset l1_offset{};
  uint64_t backing_file_offset = 0;  ///< 0: there is none.
  uint32_t backing_file_size = 0;
  bool encrypted = false;          ///< With AES; its clusters mean nothing without the key.
  uint32_t backing_file_time = 0;  ///< When it was changed last; nobody checks it any more.

  friend bool operator==(const Qcow1Header&, const Qcow1Header&) = default;

  constexpr uint64_t cluster_size() const { return uint64_t{1} << cluster_bits; }
  constexpr uint64_t l2_entries() const { return uint64_t{1} << l2_bits; }
  constexpr uint64_t l2_size() const { return l2_entries() * 8; }
  /// Bytes of the disk that one L2 table covers.
  constexpr uint64_t l2_covers() const { return uint64_t{1} << (cluster_bits + l2_bits); }
  constexpr uint64_t l1_entries() const { return div_ceil(size, l2_covers()); }
};

/// `bytes` starts where the file does.
Result<Qcow1Header> parse_qcow1_header(Bytes bytes);

/// The L2 table that an L1 entry leads to; none for 0.
Result<std::optional<HostOffset>> decode_qcow1_l1(uint64_t entry);

/// What an L2 entry says of a cluster.
struct Qcow1Mapping {
  enum class Kind : uint8_t {
    unallocated,
    plain,
    compressed,
  };
  Kind kind = Kind::unallocated;
  HostOffset at{};           ///< A multiple of 512, of a plain cluster.
  uint64_t stream_size = 0;  ///< Of a compressed one: 1 to the size of a cluster less 1.
  friend bool operator==(const Qcow1Mapping&, const Qcow1Mapping&) = default;
};
Result<Qcow1Mapping> decode_qcow1_l2(uint64_t entry, const Qcow1Header& header);

}  // namespace byre
