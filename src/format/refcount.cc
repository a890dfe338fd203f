// SPDX-License-Identifier: Apache-2.0
#include "format/refcount.h"

#include <algorithm>
#include <cstring>

namespace byre {

namespace {

constexpr uint64_t kReservedBits = 0x1ff;

/// The lowest bit of each refcount in eight bytes; byte order does not matter to "is it zero".
constexpr uint64_t kLowestBits[kRefcountOrderMax + 1] = {0xffff'ffff'ffff'ffff,
                                                         0x5555'5555'5555'5555,
                                                         0x1111'1111'1111'1111,
                                                         0x0101'0101'0101'0101,
                                                         0x0001'0001'0001'0001,
                                                         0x0000'0001'0000'0001,
                                                         1};

/// Are all refcounts in eight bytes zero?
bool all_zero(uint64_t word, uint32_t) { return word == 0; }

/// Is none of them?  Folds each onto its lowest bit.
bool none_zero(uint64_t word, uint32_t order) {
  for (uint32_t shift = 1; shift < 1u << order; shift <<= 1) word |= word >> shift;
  return (word & kLowestBits[order]) == kLowestBits[order];
}

/// The first index in [from, to) that is zero or not, as `zero` says; words for which `skip` holds
/// have none.
template <class Skip>
size_t find(Bytes block, size_t from, size_t to, uint32_t order, bool zero, Skip skip) {
  const size_t per_word = size_t{64} >> order;
  for (size_t index = from; index < to;) {
    if (index % per_word == 0 && to - index >= per_word) {
      uint64_t word;
      std::memcpy(&word, block.data() + (index / per_word) * 8, 8);
      if (skip(word, order)) {
        index += per_word;
        continue;
      }
    }
    const size_t stop = std::min(to, (index / per_word + 1) * per_word);
    for (; index < stop; ++index)
      if ((get_refcount(block, index, order) == 0) == zero) return index;
  }
  return to;
}

}  // namespace

void set_refcount(MutableBytes block, size_t index, uint32_t order, uint64_t count) {
  BYRE_ASSERT(count <= refcount_max(order));
  switch (order) {
    case 3:
      block[index] = static_cast<std::byte>(count);
      return;
    case 4:
      return store_be(block, index * 2, static_cast<uint16_t>(count));
    case 5:
      return store_be(block, index * 4, static_cast<uint32_t>(count));
    case 6:
      return store_be(block, index * 8, count);
    default: {
      const uint32_t per_byte_bits = 3 - order;
      const uint32_t shift = static_cast<uint32_t>(index & ((1u << per_byte_bits) - 1)) << order;
      std::byte& byte = block[index >> per_byte_bits];
      byte &= ~static_cast<std::byte>(refcount_max(order) << shift);
      byte |= static_cast<std::byte>(count << shift);
    }
  }
}

size_t find_zero_refcount(Bytes block, size_t from, size_t to, uint32_t order) {
  return find(block, from, to, order, true, none_zero);
}

size_t find_nonzero_refcount(Bytes block, size_t from, size_t to, uint32_t order) {
  return find(block, from, to, order, false, all_zero);
}

Result<std::optional<HostCluster>> decode_refcount_table_entry(uint64_t entry,
                                                               const Geometry& geometry) {
  if ((entry & kReservedBits) != 0)
    return corrupt("refcount table entry ", hex(entry), ": reserved bits are set");
  if (!geometry.aligned(HostOffset{entry}))
    return corrupt("refcount table entry ", hex(entry), ": not cluster aligned");
  if (entry > kFileSizeMax)
    return corrupt("refcount table entry ", hex(entry), ": beyond any file");
  if (entry == 0) return std::optional<HostCluster>();
  return std::optional(geometry.cluster_of(HostOffset{entry}));
}

uint64_t encode_refcount_table_entry(std::optional<HostCluster> block, const Geometry& geometry) {
  if (!block) return 0;
  const uint64_t offset = geometry.start_of(*block).value;
  BYRE_ASSERT(offset != 0 && offset <= kFileSizeMax);
  return offset;
}

}  // namespace byre
