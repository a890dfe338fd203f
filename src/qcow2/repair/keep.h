// SPDX-License-Identifier: Apache-2.0
/// What a repair keeps, other processes keep as well: the header remembers the leaked clusters that
/// may be the only copy of lost data (docs/engine.md, R1), until they are saved or freed.
///
/// Before the first write of a repair that met damage the header says that all leaked clusters are
/// kept; in the end, which.  So whoever repairs next, in whatever mode and wherever the first
/// repair was cut off, frees none of them.
/// Invariant: what the header lists after remember_orphans() covers all orphans of the scan.
/// Cost: a change of the header (header_repair.h); half as many ranges are tried where there is no
/// room.
/// Not here: the list itself (format/kept_clusters.h), freeing (repair.h, online_check.h).
#pragma once

#include "format/kept_clusters.h"
#include "qcow2/repair/repair_state.h"

namespace byre {

/// Makes the header say `kept`, durably, in one write of its first sector.  Fails with
/// Errc::no_space when that has no room; then nothing is written.
Task<void> remember_kept(RepairState& state, const KeptClusters& kept);

/// The clusters of `state.found.orphans` that are kept, in as many ranges as the header has room
/// for.
Task<void> remember_orphans(RepairState& state);

}  // namespace byre
