// SPDX-License-Identifier: Apache-2.0
/// Checking an image that is offline: counts every reference by itself, compares with the
/// refcounts, and repairs on request.
///
/// What is counted: header, refcount table and blocks, L1 and L2 tables (active and each
/// snapshot's), data, one reference per host cluster that a compressed stream touches, snapshot
/// table, bitmap directory, tables and data, the LUKS header.
/// Leaks are not repaired while corruptions remain.
/// Invariant: repair never frees before all owners are known, and writes new structures into fresh
/// space before it switches the header to them (docs/engine.md, O1 to O6).
/// Cost: memory follows what is allocated, not the file's length: counts are kept by region, and
/// only for regions that have references or a refcount block.
/// Not here: a check while the image is served (online_check.h).
#pragma once

#include "block/device.h"
#include "qcow2/check/report.h"

namespace byre {

/// Checks, and with options.repair repairs, the image in `file`.  Errors are failures of the disk
/// or an image that cannot be walked at all; everything found is in the report.
Task<CheckReport> check_image(Device& file, CheckOptions options);

/// Makes the refcounts and COPIED flags of a dirty image true, then clears the dirty bit: what a
/// writable open does with an image that was not closed.
Task<CheckReport> rebuild_refcounts(Device& file);

}  // namespace byre
