// SPDX-License-Identifier: Apache-2.0
/// Changing tables in place, one after another, with as few sectors written as have changed.
///
/// Invariant: nothing before the first sector that differs, or behind the last, is written.
/// Cost: all L2 tables are read; one write for each that changes.
/// Not here: order and durability, which are the callers'.
#pragma once

#include "qcow2/repair/repair_state.h"

namespace byre {

/// Writes those sectors of a table that differ from what was read.
Task<void> write_changes(Device& file, HostOffset at, Bytes before, Bytes after, IoTag tag);
/// Reads every L2 table, in the order of the file; what visit() changes is written back.
Task<void> change_each_l2(RepairState& state, VisitL2 visit);

}  // namespace byre
