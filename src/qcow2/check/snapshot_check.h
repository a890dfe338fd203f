// SPDX-License-Identifier: Apache-2.0
/// A look at the internal snapshots as such: can each be opened, applied and told from the others?
///
/// Ids differ, the L1 table reaches over the disk that the snapshot had and the VM state behind it,
/// and the VM state has tables.  That tables are there, readable and counted is the scan's
/// (metadata_scan.h); that compressed data inflate, compressed_check.h's.
/// Cost: one more look at the snapshot table and the L1 entries of VM states.
#pragma once

#include "qcow2/check/metadata_scan.h"

namespace byre {

/// Adds findings to the scan's report.
Task<void> check_snapshots(MetadataScan& scan);

}  // namespace byre
