// SPDX-License-Identifier: Apache-2.0
/// The part of a scan that walks the bitmap directory and the tables of the bitmaps.
///
/// Bitmaps count only while their feature bit says that they are consistent, as in QEMU: without
/// it their clusters are leaks.
/// Invariant: a directory or table that ends behind the end of the file is a finding and is not
/// read.
/// Cost: the directory in one read, each table once, in pieces of 1 MiB.
/// Not here: the bits (bitmap_check.h).
#pragma once

#include "qcow2/check/scan_context.h"

namespace byre {

Task<void> scan_bitmaps(ScanContext& scan);

}  // namespace byre
