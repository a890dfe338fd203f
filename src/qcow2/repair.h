// SPDX-License-Identifier: Apache-2.0
/// Repair: makes refcounts and COPIED flags what a survey has counted.
///
/// Counts are raised, and flags cleared, before anything is freed; nothing is freed while the
/// survey is damaged, that is, while references may be missing.  Refcount structures that cannot be
/// believed are written anew into space that nobody uses, synced, and entered by one sector of the
/// header (docs/engine.md, O1, O3, O6).  Stopped at any write, it can be run again.
/// Not here: what to do about entries that lead nowhere; they are left as they are.
#pragma once

#include "qcow2/survey.h"

namespace byre {

/// Would repair_image() change something?
bool can_repair(const Survey& survey, Repair repair);
/// One round of it; the survey is stale afterwards.
Task<void> repair_image(Survey& survey, Repair repair);
/// Clears, in L2 entries, what means nothing and hides nothing; the survey is stale afterwards.
bool can_fix_entries(const Survey& survey, Repair repair);
Task<void> fix_entries(Survey& survey);
/// Clears the dirty and the corrupt bit, when they are set.
Task<void> clear_repaired_bits(Device& file);

}  // namespace byre
