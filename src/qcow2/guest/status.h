// SPDX-License-Identifier: Apache-2.0
/// What the ranges of a disk are: data, zeros, unallocated, and where they lie.
///
/// The tables are walked in runs (Map::find_run): clusters that go on alike are one step, and only
/// a slice of a table that is not in memory is waited for.  Every entry is checked as for a read.
/// Invariant: an extent is what the map said at one moment for each of its runs; nothing is
/// changed. Cost: an answer looks at kStepsMax runs at most, so it may be shorter than what is
/// alike; for a full table a comparison for each entry. Not here: whether data are zeros
/// (job/holes.h), the bytes (read.h).
#pragma once

#include "block/device.h"
#include "format/types.h"

namespace byre {

class GuestDisk;

/// What the first part of the range is.
Task<Extent> status_of_disk(GuestDisk& disk, GuestOffset offset, uint64_t length);

}  // namespace byre
