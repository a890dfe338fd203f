// SPDX-License-Identifier: Apache-2.0
/// Unshare: a cluster that two things use becomes two.
///
/// Two L2 entries on one host cluster, data in a cluster of metadata, two L1 entries on one L2
/// table, compressed streams that overlap: whoever writes there next harms the other.  Which of the
/// owners is right cannot be known; so one keeps the place (metadata first, then compressed data,
/// then the lowest guest cluster), and each of the others gets a copy of what is there.  What the
/// guests read does not change; their ranges are in doubt, and named (RepairLog::in_doubt).
///
/// The same for a cluster, or an L2 table, with more references than a refcount holds: as many as
/// it holds stay, and the others get copies.  Nothing of that is in doubt.
///
/// Order, in each pass: copies into space that nothing uses; refcounts for them, together with all
/// others that are too small; sync; the entries; sync (docs/engine.md, O1, O2).  Nothing is freed:
/// what an owner had before is an orphan that may be the only copy of its data (orphans.h).
/// An entry in a table that something else uses as well waits for the next pass, when that is
/// settled.
/// Invariant: stopped anywhere, every entry leads to the old place or to a whole copy.
/// Cost: one read of the tables to find the owners; the copies, which may not be more than the file
/// holds already, or the image is refused.
/// Not here: the refcounts (repair.h), the choice of who gets a copy (unshare_plan.h), the order of
/// passes (passes.cc).
#pragma once

#include "qcow2/repair/repair.h"

namespace byre {

/// Is something used twice, or too often, and may it be unshared?
bool can_unshare(const RepairState& state, Repair repair);

/// One pass; the state is stale afterwards.  Gives the reason when there is no room for the
/// copies; then nothing was written.  `copy_data` false: for a plan that is only tried, the
/// contents of data clusters are not copied.
Task<std::string> unshare(RepairState& state, RepairLog& log, bool copy_data);

}  // namespace byre
