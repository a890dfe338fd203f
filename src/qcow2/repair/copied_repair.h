// SPDX-License-Identifier: Apache-2.0
/// Repair of flags and offsets in entries: COPIED where a refcount contradicts it, and what means
/// nothing where it is.
///
/// Invariant: a table that has another owner as well is not changed.
/// Cost: one read of every L2 table; one write for each table that changes.
/// Not here: finding them (check/copied_flags.h), the order against refcounts (repair.h).
#pragma once

#include "qcow2/repair/repair_state.h"

namespace byre {

enum class CopiedChange : uint8_t { clear, set };
/// Makes COPIED clear, or set, in the active disk's entries where the refcounts, as they are known
/// in `state`, say so.
Task<void> change_copied(RepairState& state, CopiedChange change);

/// Clears flags and offsets that mean nothing where they are: COPIED on compressed entries, hosts
/// of zero clusters that are not aligned.  No guest sees a difference.
Task<void> clear_meaningless(RepairState& state);

}  // namespace byre
