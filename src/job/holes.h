// SPDX-License-Identifier: Apache-2.0
/// Holes under data clusters.
///
/// A cluster that was preallocated, or written as zeros, may be a hole in its file: the image's
/// tables call it data, and it reads as zeros.
#pragma once

#include "job/open.h"

namespace byre {

/// `extent`, which disk.device's status() gave, begins in a data cluster of the image itself: marks
/// it as zeros where the file has a hole, or is not that long, and cuts it off where that ends.
Task<void> look_for_holes(const Disk& disk, Extent& extent);

}  // namespace byre
