// SPDX-License-Identifier: Apache-2.0
/// The part of a scan that checks the header and its extensions by themselves: what other readers
/// refuse, and what is odd.
/// Invariant: it counts no reference.
/// Cost: no I/O; it looks at what load_image_header() has read.
/// Not here: what byre itself refuses (image_header.h).
#pragma once

#include "qcow2/check/scan_context.h"

namespace byre {

void check_header(ScanContext& scan);

}  // namespace byre
