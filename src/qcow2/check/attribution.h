// SPDX-License-Identifier: Apache-2.0
/// Completes the findings of a scan: guest ranges, snapshots, causes that need to know both.
///
/// Invariant: it completes findings; it adds none and counts nothing.
/// Cost: another read of the L2 and L1 tables (owners.h), when a finding is about a cluster.
/// Not here: finding what is wrong (metadata_scan.h), the owners of a cluster (owners.h).
#pragma once

#include "qcow2/check/scan_context.h"

namespace byre {

Task<void> attribute(ScanContext& scan);

}  // namespace byre
