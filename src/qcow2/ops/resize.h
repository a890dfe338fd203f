// SPDX-License-Identifier: Apache-2.0
/// Another size of the disk, and a longer L1 table.
///
/// What a larger disk shows reads as zeros: the tail of the last cluster, what a longer backing
/// file would show, and what entries behind the disk hold, are zeroed, durably, before the size
/// changes. The header says the new size last, in one write (docs/engine.md, S3, O6), together with
/// the bitmaps that follow the disk.  Failed before that, the disk is what it was.
/// Invariant: the header says the new size only once all that the larger disk shows is durable.
/// Cost: a new L1 table where the old one is too short, and zeros where the new part would show
/// something; with preallocation an L2 entry for each cluster.
/// Not here: a smaller disk (shrink.h).
#pragma once

#include "block/device.h"
#include "qcow2/ops/preallocate.h"

namespace byre {

class GuestDisk;
class ShapeChange;

/// Durable when it ends; what is added gets clusters as `mode` says.
Task<void> resize_disk(GuestDisk& disk, uint64_t size, Preallocation mode);
/// What keeps the disk from having `size` bytes.
Result<void> check_resize(const GuestDisk& disk, uint64_t size);
/// A longer L1 table: filled and durable before the header points to it (O6).  With the length that
/// it has, the table moves.  The caller holds the mutex of shape changes.
Task<void> grow_l1(GuestDisk& disk, const ShapeChange& change, uint64_t entries);

}  // namespace byre
