// SPDX-License-Identifier: Apache-2.0
/// The part of a scan that walks the snapshot table: is each entry one that readers take, and what
/// do its L1 table and the table itself refer to?
/// Invariant: the L1 table of an empty or broken entry is not followed.
/// Cost: one read of the snapshot table, and what its L1 tables take (l1_scan.h).
/// Not here: whether a snapshot can be applied (snapshot_check.h).
#pragma once

#include "qcow2/check/l1_scan.h"
#include "qcow2/check/scan_context.h"

namespace byre {

Task<void> scan_snapshots(ScanContext& scan, L1Scan& l1);

}  // namespace byre
