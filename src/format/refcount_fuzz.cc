// SPDX-License-Identifier: Apache-2.0
/// The first byte chooses a width, the next four a search, the rest is a refcount block.  Counts
/// that are read and written one by one give the same block; searching agrees with looking.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "format/refcount.h"

using namespace byre;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 13) return 0;
  const uint32_t order = data[0] % (kRefcountOrderMax + 1);
  const Bytes block = bytes_at(data + 5, (size - 5) / 8 * 8);
  const size_t entries = block.size() * 8 >> order;

  std::vector<std::byte> again(block.size(), std::byte{0xa5});
  for (size_t i = entries; i-- > 0;) set_refcount(again, i, order, get_refcount(block, i, order));
  BYRE_ASSERT(equal(again, block));

  const Bytes search = bytes_at(data + 1, 4);
  const size_t to = load_be<uint16_t>(search, 2) % (entries + 1);
  const size_t from = std::min<size_t>(load_be<uint16_t>(search, 0), to);
  size_t zero = from;
  while (zero < to && get_refcount(block, zero, order) != 0) ++zero;
  size_t counted = from;
  while (counted < to && get_refcount(block, counted, order) == 0) ++counted;
  BYRE_ASSERT(find_zero_refcount(block, from, to, order) == zero);
  BYRE_ASSERT(find_nonzero_refcount(block, from, to, order) == counted);

  for (size_t at = 0; at + 8 <= block.size(); at += 8) {
    const Geometry geometry{.cluster_bits = 9u + data[0] % 13u};
    const uint64_t entry = load_refcount_table_entry(block, at / 8);
    const auto pointed = decode_refcount_table_entry(entry, geometry);
    if (pointed) BYRE_ASSERT(encode_refcount_table_entry(*pointed, geometry) == entry);
  }
  return 0;
}
