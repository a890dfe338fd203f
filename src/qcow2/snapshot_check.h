// SPDX-License-Identifier: Apache-2.0
/// A look at the internal snapshots as such: can each be opened, applied and told from the others?
/// And mending of their table.
///
/// Ids differ, the L1 table reaches over the disk that the snapshot had and the VM state behind it,
/// and the VM state has tables.  That tables are there, readable and counted is the survey's
/// (survey.h); that compressed data inflate, streams.h's.
/// Cost: one more look at the snapshot table and the L1 entries of VM states.
#pragma once

#include "qcow2/repair.h"

namespace byre {

/// Zeros where an entry should be: the header counts more than there are, or one was lost.
bool is_phantom(const Snapshot& snapshot);

/// Adds findings to the survey's report.
Task<void> check_snapshots(Survey& survey);
/// Takes phantoms out of the table, and completes entries that do not say how large their disk is
/// with what readers take then: the size of the disk.  The table is written anew, the header's
/// sector switches to it (O6); where the old one's first entries are all that is wanted, only the
/// header changes.  False: there is no room.  The survey is stale afterwards.
Task<bool> mend_snapshots(Survey& survey, RepairLog& log);

}  // namespace byre
