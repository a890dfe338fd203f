// SPDX-License-Identifier: Apache-2.0
#include "format/types.h"

namespace byre {

Result<void> Geometry::check() const {
  if (version != 2 && version != 3)
    return invalid("qcow2 version ", version, ", known are 2 and 3");
  if (cluster_bits < kClusterBitsMin || cluster_bits > kClusterBitsMax)
    return invalid("clusters of 2^", cluster_bits, " bytes, allowed are 512 bytes to 2 MiB");
  if (extended_l2 && cluster_bits < kClusterBitsMinExtendedL2)
    return invalid("extended L2 entries need clusters of at least 16 KiB");
  if (refcount_order > kRefcountOrderMax)
    return invalid("refcounts of 2^", refcount_order, " bits, at most 64 bits are allowed");
  if (version == 2 && (extended_l2 || data_file || refcount_order != kRefcountOrderV2))
    return invalid(
        "version 2 has neither extended L2 entries nor data files, and 16-bit refcounts only");
  return {};
}

}  // namespace byre
