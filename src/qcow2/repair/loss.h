// SPDX-License-Identifier: Apache-2.0
/// Loss: entries that lead nowhere are given up, where the user accepts that.
///
/// An entry that is not aligned, has reserved bits, leads behind the end of the file or to a stream
/// that does not inflate: what it led to is not known, so a repair without loss refuses the image.
/// Given up, its guest range reads as zeros, in the disk and in the snapshots that see it, whatever
/// a backing file has there; RepairLog::lost names the range.  What the entry may have led to
/// stays, as an orphan (R1).  The same for whole L2 tables, for snapshots and for bitmaps.
///
///   version 3                  the zero flag
///   extended L2                zero bits for the subclusters that had data; the others stay
///   version 2                  nothing, or with a backing file a cluster of zeros
///   a raw external data file   the cluster's own place in it, which is what the disk shows: no
///                              loss
///   L1 entries                 nothing, or with a backing file a table of zero flags; in version 2
///                              one that leads to clusters of zeros, which are holes where the
///                              file can grow
///
/// Order: new clusters and their refcounts are durable before an entry leads to them (O1, O2); no
/// refcount sinks before the entries are durable, in a later pass (O3).
/// Invariant: an entry that a scan does not complain of is not touched.
/// Cost: one read of every L2 table, and a cluster of zeros or a table for each that is needed.
/// Not here: an L1 table that is lost itself (lost_l1.h), snapshots and bitmaps
/// (structure_repair.h), what can be repaired without loss (unshare.h, repair.h).
#pragma once

#include "qcow2/repair/repair.h"

namespace byre {

/// Are there entries to give up?
bool can_give_up_entries(const RepairState& state);

/// Clusters that hide a backing file where something is given up.
struct ZerosNeeded {
  uint64_t tables = 0;
  uint64_t clusters = 0;  ///< Of zeros, that are written.
  uint64_t holes = 0;     ///< Of zeros, that are written only where the file cannot grow.
};
/// Why there cannot be so many; empty: there can.
std::string why_no_zeros(const RepairState& state, const ZerosNeeded& needed);

/// One pass; the state is stale afterwards.  The reason, when that is not possible; then nothing
/// was written.  `tables` as well gives up L1 entries to tables that lie in other metadata, which
/// no repair can unshare.
Task<std::string> give_up_entries(RepairState& state, RepairLog& log, bool tables);

}  // namespace byre
