// SPDX-License-Identifier: Apache-2.0
/// Checking a disk while it is served and written.
///
///   1. A moment of rest, as for a snapshot (docs/engine.md, S1): every lock is taken, what is
///      staged is committed with all refcounts, limbo is drained.  So the file and the memory
///      agree.  The roots (header, L1 tables, snapshot table, bitmap tables) are read, and the file
///      is frozen (block/point_in_time.h): what its metadata held stays readable.  Then the guest's
///      writes go on; its reads never stopped.
///   2. The scan of an offline image (metadata_scan.h) reads the file as it was then.  So it
///      finds what an offline check would have found, in the same words, and nothing that happens
///      meanwhile (commits that fail, snapshots, resizes, tables that move and are reused) can
///      disturb it.
///   3. With Repair::leaks, and when nothing but leaks was found: what had a refcount and no
///      reference goes to limbo, if it still has that refcount and nothing in limbo.  No writer can
///      hold it: only free clusters are handed out (H4).
///
/// Invariant: on a sound image there is no finding, at any load.  Nothing but step 3 writes.
/// Cost: step 1 holds up the guest's writes for two small commits, the I/O that runs, and the
/// reading of the L1 tables; what was staged before went down in a commit of its own.  Memory: that
/// of a check, and the metadata that change while it runs, 4 KiB a piece; beyond kKeptMax of them
/// it ends with Errc::busy.
/// Not here: corruptions are repaired with the image offline (repair.h);
/// compressed streams are not inflated, since their clusters may be rewritten.
#pragma once

#include "coro/task.h"
#include "qcow2/check/report.h"

namespace byre {

class GuestDisk;

/// Checks the disk while it is used.  Repair::leaks is the only repair.
Task<CheckReport> check_online(GuestDisk& disk, CheckOptions options);
/// What may be repaired or asked for while the image is in use.
Result<void> check_online_options(const CheckOptions& options);

}  // namespace byre
