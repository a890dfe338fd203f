// SPDX-License-Identifier: Apache-2.0
/// Before an image changes its shape: every cluster of metadata has a refcount.
///
/// An allocator hands out what has no refcount.  It knows the tables of the disk (docs/engine.md,
/// M5), but not those that only snapshots lead to, and it meets the others one by one, when other
/// changes are on the disk already.  So whoever changes more than one thing asks here first.
/// Invariant: the check writes nothing.
/// Cost: one read of the L1 tables and of the refcount blocks that count metadata.
/// Not here: data clusters without a refcount.
#pragma once

#include <cstdint>
#include <vector>

#include "qcow2/core/allocator.h"
#include "qcow2/core/image_header.h"

namespace byre {

/// Fails with Errc::corrupt, and says which; writes nothing.  `l1` is the disk's.
Task<void> check_metadata_is_counted(Device& file, const ImageHeader& head,
                                     const std::vector<Snapshot>& snapshots,
                                     std::vector<uint64_t> l1, Allocator& allocator);

}  // namespace byre
