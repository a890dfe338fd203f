// SPDX-License-Identifier: Apache-2.0
/// A lost L1 table: the active one lies behind the end of the file, as a whole or in part, and is
/// written anew with the entries that are left, where the user accepts the loss (loss.h).
///
///   1. The header counts only the entries that the file has.  From here on nothing leads to where
///      the others were, so the file may grow; every reader refuses the image, and a repair can be
///      run again.
///   2. Entries that lead nowhere are given up (loss.h).
///   3. A whole table is written where nothing is in use and counted, durably; then one sector
///      of the header switches to it (docs/engine.md, O6).  An entry that is lost is zero; with a
///      backing file it leads nowhere, and the next pass puts a table of zeros there.
///
/// Invariant: the header leads to the new table only once that is written, counted and durable
/// (O6).
/// Cost: memory for the whole new table, and one write of it; the header is written in steps 1 and
/// 3.
/// Not here: the L1 tables of snapshots (structure_repair.h).
#pragma once

#include "qcow2/repair/repair.h"

namespace byre {

bool has_lost_l1(const RepairState& state);

/// Step 1 or step 3; step 2 is the caller's.  The state is stale afterwards.  The reason, when it
/// is not possible; then the tables are as they were.
Task<std::string> give_up_l1(RepairState& state, RepairLog& log);

}  // namespace byre
