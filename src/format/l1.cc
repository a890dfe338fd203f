// SPDX-License-Identifier: Apache-2.0
#include "format/l1.h"

namespace byre {

Result<L1Entry> decode_l1(uint64_t entry, const Geometry& geometry) {
  const uint64_t offset = entry & kOffsetMask;
  if ((entry & ~(kCopied | kOffsetMask)) != 0)
    return corrupt("L1 entry ", hex(entry), ": reserved bits are set");
  if (!geometry.aligned(HostOffset{offset}))
    return corrupt("L1 entry ", hex(entry), ": not cluster aligned");
  if (offset == 0) return L1Entry{};
  return L1Entry{.l2 = geometry.cluster_of(HostOffset{offset}), .copied = (entry & kCopied) != 0};
}

uint64_t encode_l1(const L1Entry& entry, const Geometry& geometry) {
  if (!entry.l2) return 0;
  const uint64_t offset = geometry.start_of(*entry.l2).value;
  BYRE_ASSERT(offset != 0 && (offset & ~kOffsetMask) == 0);
  return offset | (entry.copied ? kCopied : 0);
}

}  // namespace byre
