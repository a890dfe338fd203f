// SPDX-License-Identifier: Apache-2.0
/// A check of the internal snapshots as such: can each be opened, applied and told from the others?
///
/// Ids differ, the L1 table reaches over the disk that the snapshot had and the VM state behind it,
/// and the VM state has tables.
/// Invariant: it counts no reference and writes nothing.
/// Cost: one more read of the snapshot table and the L1 entries of VM states.
/// Not here: that tables are there, readable and counted (snapshot_scan.h); that compressed data
/// inflate (compressed_check.h).
#pragma once

#include "qcow2/check/scan_context.h"

namespace byre {

/// Adds findings to the scan's report.
Task<void> check_snapshots(ScanContext& scan);

}  // namespace byre
