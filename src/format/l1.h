// SPDX-License-Identifier: Apache-2.0
/// L1 table entries (spec: L1 table entry).
///
/// decode_l1() gives an entry that points to a cluster other than the first, or nowhere.  Reserved
/// bits and unaligned offsets are corruption.  COPIED without a table means nothing and is dropped.
/// COPIED is accurate only in the active L1 table.
/// Not here: whether the table lies inside the file, and who else points to it (the engine).
#pragma once

#include <optional>

#include "base/bytes.h"
#include "base/error.h"
#include "format/types.h"

namespace byre {

/// Bits of L1 and L2 entries.
inline constexpr uint64_t kCopied = uint64_t{1} << 63;
inline constexpr uint64_t kOffsetMask = 0x00ff'ffff'ffff'fe00;  ///< Bits 9 to 55.

struct L1Entry {
  std::optional<HostCluster> l2;
  bool copied = false;  ///< The table is ours alone and may be changed in place.
  friend bool operator==(const L1Entry&, const L1Entry&) = default;
};

Result<L1Entry> decode_l1(uint64_t entry, const Geometry& geometry);
uint64_t encode_l1(const L1Entry& entry, const Geometry& geometry);

/// Entry `index` of a table in file byte order.
inline uint64_t load_l1_entry(Bytes table, size_t index) {
  return load_be<uint64_t>(table, index * 8);
}
inline void store_l1_entry(MutableBytes table, size_t index, uint64_t entry) {
  store_be(table, index * 8, entry);
}

}  // namespace byre
