// SPDX-License-Identifier: Apache-2.0
/// Repair of the tables of snapshots and bitmaps: what no reader takes is completed or taken out
/// (docs/engine.md, R8).
///
/// A new table is written where nothing is in use and counted, durably; then one sector of the
/// header switches to it (O6, B4).  A power loss leaves the old table or the new one, and leaks.
/// The state is stale afterwards.
/// Invariant: the header leads to a new table only once that is written, counted and durable (O6).
/// Cost: memory for the snapshot table or the bitmap directory; one write of it, and of a sector of
/// the header.
/// Not here: what is wrong with them (check/snapshot_scan.h, check/bitmap_scan.h), refcounts and
/// entries (repair.h).
#pragma once

#include "qcow2/repair/repair.h"

namespace byre {

/// Puts right what other readers refuse of the header and its extensions.  False: there is no room.
Task<bool> repair_header(RepairState& state, RepairLog& log);

/// What may be taken out.
enum class RepairBroken : uint8_t {
  useless,  ///< Only what no reader can use.
  broken,   ///< Also what leads nowhere, or into other metadata: RepairLog::lost_things names it.
};

/// Is there something that only RepairBroken::broken takes out?
bool has_broken_snapshots(const RepairState& state);
bool has_broken_bitmaps(const RepairState& state);

/// Takes empty entries out of the snapshot table, and completes those that do not say how large
/// their disk is with what readers take then: the size of the disk.  Where the old table's first
/// entries are all that is wanted, only the header changes.  False: there is no room.
Task<bool> repair_snapshots(RepairState& state, RepairLog& log, RepairBroken what);
/// Takes bitmaps that are invalid out of the directory, and marks in_use what does not fit the disk
/// (of a table that is too long, what would lie behind the disk goes): no reader can use either.
/// False: there is no room.
Task<bool> repair_bitmaps(RepairState& state, RepairLog& log, RepairBroken what);

}  // namespace byre
