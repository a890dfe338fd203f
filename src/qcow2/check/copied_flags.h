// SPDX-License-Identifier: Apache-2.0
/// COPIED flags: where an entry of the active disk points to a cluster, is its flag set exactly
/// when the cluster's refcount is 1?
///
/// Invariant: where a refcount is not known, no flag is called wrong.
/// Cost: one more read of the L2 tables; a scan pays it only when a refcount contradicts a flag
/// that it has met.
/// Not here: changing flags (repair/copied_repair.h).
#pragma once

#include <optional>

#include "qcow2/check/scan_context.h"

namespace byre {

/// What COPIED should be in an entry that points to this cluster of the file; none: not known.
std::optional<bool> should_be_copied(const ReferenceCounts& counts, HostCluster cluster);

Task<void> report_copied_flags(ScanContext& scan);

}  // namespace byre
