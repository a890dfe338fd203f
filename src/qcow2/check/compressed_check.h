// SPDX-License-Identifier: Apache-2.0
/// A check of all compressed data of an image: do streams overlap, and do they inflate?
///
/// A stream is known by its first byte and the sector in which it ends.  The next one may begin in
/// that sector; one that begins before it has overwritten the first, or was overwritten (the stale
/// packing cursor: R-C in docs/peers.md).  The same stream for the same guest cluster, in the disk
/// and in snapshots, is one.
/// Invariant: it counts no reference and writes nothing.
/// Cost: 32 bytes a stream; inflating reads all of them, on the worker threads, kInFlight at once.
/// Not here: whether data of guests or tables lie in their clusters (l2_counter.h).
#pragma once

#include "qcow2/check/scan_context.h"

namespace byre {

/// Adds findings to the scan's report, and to ScanResult::overlapping the clusters where streams
/// overlap.
Task<void> check_streams(ScanContext& scan, bool inflate);

}  // namespace byre
