// SPDX-License-Identifier: Apache-2.0
/// Recovery: a repair that is planned before a byte is written, and loses nothing.
///
/// plan_recovery() carries the whole repair out on an overlay in memory and checks the result; so
/// what it says is what would happen.  An image is accepted when no corruption would be left, and
/// nothing lost unless that was accepted; the others are refused, with the first thing that stands
/// against them, and are not touched.  recover() plans, and if that is accepted does the same to
/// the file.  Orphans stay where they are until everything else is sound; then they are catalogued,
/// saved if there is somewhere to save them, and freed only when they cannot be the last copy of
/// anything: no damage was met, or they were saved, or the caller says so.
/// Invariant: plan_recovery() writes nothing to the file.
/// Cost: recover() makes every scan of the repair twice, once for the plan; the plan keeps what it
/// writes in memory.
/// Not here: undo (undo.h goes below), words for people (cli/repair.cc).
#pragma once

#include "base/progress.h"
#include "qcow2/repair/orphans.h"
#include "qcow2/repair/repair.h"

namespace byre {

struct RecoverOptions {
  /// Where orphans are saved to; none: they are not.
  Device* save_orphans_to = nullptr;
  /// Free them although damage was met and they were not saved.
  bool free_orphans = false;
  /// Give up what leads nowhere (loss.h).
  bool accept_loss = false;
  /// Inflate every compressed cluster.
  bool decode = false;
  Progress* progress = nullptr;  ///< Null: nobody asks.
};

struct Recovery {
  bool needed = false;  ///< Something is to be done.
  std::string refused;  ///< Why not; empty when it is accepted.
  CheckReport found;
  CheckReport left;
  RepairLog log;
  /// What nothing refers to once all else is sound; the first of them with their looks.
  std::vector<Orphan> orphans;
  uint64_t orphan_clusters = 0;
  uint64_t orphans_saved = 0;  ///< Clusters.
  bool orphans_freed = false;
};

/// Reads; writes nothing.
Task<Recovery> plan_recovery(Device& file, RecoverOptions options);
/// Carries out a plan that was accepted and is needed.  Everything is durable when it returns.
Task<Recovery> apply_recovery(Device& file, RecoverOptions options);
/// Both: repairs, if the plan is accepted.
Task<Recovery> recover(Device& file, RecoverOptions options);

}  // namespace byre
