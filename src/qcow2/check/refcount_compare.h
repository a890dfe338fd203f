// SPDX-License-Identifier: Apache-2.0
/// The part of a scan that reads the refcount table and blocks and compares every refcount with the
/// references that were counted.
///
/// Invariant: all other references are counted before: then a block that lies in something else is
/// known to be suspect before its counts are believed.
/// Cost: one read of each refcount block; time follows what is referenced or has a refcount.
/// Not here: COPIED flags (copied_flags.h), writing refcounts (repair/repair.h).
#pragma once

#include "qcow2/check/scan_context.h"

namespace byre {

/// How much of a scan's progress lies before the comparison.
constexpr double kProgressOfCounting = 0.8;

Task<void> compare_refcounts(ScanContext& scan);
/// The bytes of refcount block `index`, which must be sound or suspect.
Task<void> read_block(Device& file, const ScanResult& found, uint64_t index, MutableBytes block);

}  // namespace byre
