// SPDX-License-Identifier: Apache-2.0
/// Emptying a disk: from one moment on it has nothing of its own, and its backing disk shows
/// through everywhere.
///
///   1. What was staged is committed.  An L1 table without an entry is written to fresh clusters,
///      and synced.
///   2. One sector of the header leads to it, durably (docs/engine.md, O6, S10).
///   3. What the old tables led to is given up (give_up.h); clusters of snapshots stay.
///   4. The file is cut off behind the last cluster in use; in an external data file the places
///      that nothing leads to any more become holes.
/// So a power loss leaves the disk with all that it had, or with nothing; after step 2 with leaks.
/// That both read the same, durably, is the promise of whoever empties it (O9).
/// Invariant: before step 2 is durable nothing that the disk shows has changed.
/// Size, snapshots, bitmaps and the name of the backing file stay.  No bitmap records it: by that
/// promise the guest sees no change.
/// Cost: two syncs and an L1 table, while changes wait and reads go on; then a read of each L2
/// table. Not here: copying what the disk has into its backing disk (job/commit.h).
#pragma once

#include "coro/task.h"

namespace byre {

class GuestDisk;

/// Durable when it ends.  Refused where the external data file is the disk (data_file_raw), and
/// while parts of the disk are lost.
Task<void> empty_disk(GuestDisk& disk);

}  // namespace byre
