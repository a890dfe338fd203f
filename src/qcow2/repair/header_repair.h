// SPDX-License-Identifier: Apache-2.0
/// Changing fields and extensions of the header during a repair: one write of the first sector.
/// Invariant: nothing is written but the first sector, and before it the name of a backing file
/// where that moves.
/// Cost: a read of the first cluster, and a write and a flush for each of these.
/// Not here: what may change so (format/header_change.h).
#pragma once

#include <functional>

#include "qcow2/repair/repair_state.h"

namespace byre {

using HeadEdit = std::function<void(Header&, Extensions&)>;

/// Durable when it returns.  Fails with Errc::no_space when the first sector has no room; then
/// nothing is written.
Task<void> change_head(RepairState& state, HeadEdit edit);

}  // namespace byre
