// SPDX-License-Identifier: Apache-2.0
/// The part of a scan that walks the bitmap directory and the tables of the bitmaps.
///
/// Bitmaps count only while their feature bit says that they are consistent, as in QEMU: without
/// it their clusters are leaks.
/// Not here: the bits (bitmap_check.h).
#pragma once

#include "qcow2/check/scan_context.h"

namespace byre {

Task<void> scan_bitmaps(ScanContext& scan);

}  // namespace byre
