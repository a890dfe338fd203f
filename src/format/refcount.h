// SPDX-License-Identifier: Apache-2.0
/// Refcount blocks and refcount table entries (spec: Host cluster management).
///
/// A refcount is 1 << order bits wide, order 0 to 6.  Narrower than a byte they are packed from the
/// least significant bit; wider ones are big-endian.
/// Cost: one load or store.
/// Not here: growing the structures, and what a count should be (the engine).
#pragma once

#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "base/error.h"
#include "format/types.h"

namespace byre {

/// The largest count that fits.
constexpr uint64_t refcount_max(uint32_t order) {
  return order >= 6 ? ~uint64_t{0} : (uint64_t{1} << (1u << order)) - 1;
}

inline uint64_t get_refcount(Bytes block, size_t index, uint32_t order) {
  switch (order) {
    case 4:
      return load_be<uint16_t>(block, index * 2);
    case 3:
      return std::to_integer<uint64_t>(block[index]);
    case 5:
      return load_be<uint32_t>(block, index * 4);
    case 6:
      return load_be<uint64_t>(block, index * 8);
    default: {
      const uint32_t per_byte_bits = 3 - order;
      const auto byte = std::to_integer<uint32_t>(block[index >> per_byte_bits]);
      const uint32_t shift = static_cast<uint32_t>(index & ((1u << per_byte_bits) - 1)) << order;
      return (byte >> shift) & refcount_max(order);
    }
  }
}
/// `count` is at most refcount_max(order); asserted.
void set_refcount(MutableBytes block, size_t index, uint32_t order, uint64_t count);

/// The first index in [from, to) whose count is zero, or `to`.  Skips runs of counted clusters
/// eight bytes at a time where it can.
size_t find_zero_refcount(Bytes block, size_t from, size_t to, uint32_t order);
/// The first index in [from, to) whose count is not zero, or `to`.
size_t find_nonzero_refcount(Bytes block, size_t from, size_t to, uint32_t order);

/// The refcount block of a table entry; none when all its counts are zero.  Bits 0 to 8 set, an
/// unaligned offset, or one beyond any file are corruption.  Unlike L1 and L2 entries it may point
/// above 2^56.
Result<std::optional<HostCluster>> decode_refcount_table_entry(uint64_t entry,
                                                               const Geometry& geometry);
uint64_t encode_refcount_table_entry(std::optional<HostCluster> block, const Geometry& geometry);

/// Entry `index` of a refcount table in file byte order.
inline uint64_t load_refcount_table_entry(Bytes table, size_t index) {
  return load_be<uint64_t>(table, index * 8);
}
inline void store_refcount_table_entry(MutableBytes table, size_t index, uint64_t entry) {
  store_be(table, index * 8, entry);
}

}  // namespace byre
