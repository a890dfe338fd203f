// SPDX-License-Identifier: Apache-2.0
/// A look at the persistent bitmaps themselves: does each table fit the disk, is every cluster of
/// bits there to be read, are the bits behind the disk's end zero, and may the bitmap be used?
///
/// That their clusters are counted once, that tables and names are well formed, is the scan's
/// (metadata_scan.h), as is what a table entry that breaks the format costs.
/// Cost: reads every cluster of bitmap data: 4 MiB for each TiB at granularity 64 KiB.
/// Not here: whether the bits tell the truth, which nobody can know afterwards.
#pragma once

#include "qcow2/check/metadata_scan.h"

namespace byre {

/// Adds findings to the scan's report.
Task<void> check_bitmaps(MetadataScan& scan);

}  // namespace byre
