// SPDX-License-Identifier: Apache-2.0
/// A check of the persistent bitmaps themselves: does each table fit the disk, is every cluster of
/// bits there to be read, are the bits behind the disk's end zero, and may the bitmap be used?
///
/// Invariant: it counts no reference and writes nothing.
/// Cost: reads every cluster of bitmap data: 4 MiB for each TiB at granularity 64 KiB.
/// Not here: that their clusters are counted once, that tables and names are well formed
/// (bitmap_scan.h); whether the bits tell the truth, which cannot be known afterwards.
#pragma once

#include "qcow2/check/scan_context.h"

namespace byre {

/// Adds findings to the scan's report.
Task<void> check_bitmaps(ScanContext& scan);

}  // namespace byre
