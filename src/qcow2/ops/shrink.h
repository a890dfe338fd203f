// SPDX-License-Identifier: Apache-2.0
/// Making a disk smaller (docs/engine.md, S3).
///
/// A power loss leaves the old disk or the new one, never something between (C6):
///   1. Requests behind the new end are refused, those under way are waited for.
///   2. A new L1 table without the entries behind the end, a new copy of the last L2 table without
///      those, and a new copy of the last cluster with zeros behind the end, so that a disk that
///      grows again never shows old bytes, whoever makes it grow (trap 120), are written to fresh
///      clusters and synced.
///   3. One sector of the header says the new size and the new table (O6); it is synced.
///   4. Nobody can reach what the old tables lead to.  Its references go to limbo: clusters that a
///      snapshot holds stay, the others become free once all I/O to them has ended.
///   5. The new tables, which were made while the old ones filled the file, move down into what
///      became free.
///   6. The file is cut off behind the last cluster in use.
/// Stopped between 3 and 6 the image has leaks, nothing else.  Refused or failed before 3, the disk
/// is what it was; but in an external data file, where clusters cannot move, the end of the last
/// one is zeroed in place, before 2.
/// Invariant: but for that end, nothing that the old disk shows is changed or freed before step 3
/// is durable.
/// Cost: steps 2 and 3 hold up all requests for four syncs and the writing of the L1 table; step 4
/// reads the L2 tables that were cut off, 128 MiB for each TiB at 64 KiB clusters.
/// Not here: making a disk larger (resize.h).
#pragma once

#include "block/device.h"

namespace byre {

class GuestDisk;
class ShapeChange;

/// `size` is smaller than the disk.  The caller holds the mutex of shape changes.
Task<void> shrink(GuestDisk& disk, const ShapeChange& change, uint64_t size);
/// Everything that the tables have behind the end of the disk goes.
Task<void> forget_behind_end(GuestDisk& disk, const ShapeChange& change);
/// The new tables move down into what is free, and the file ends behind the last cluster in use.
Task<void> truncate_file(GuestDisk& disk, const ShapeChange& change);

}  // namespace byre
