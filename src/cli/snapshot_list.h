// SPDX-License-Identifier: Apache-2.0
/// The table of snapshots that `info` and `snapshot -l` print, as qemu-img lays it out.
#pragma once

#include <string>
#include <vector>

#include "cli/json.h"
#include "format/snapshot.h"

namespace byre {

/// With its headings; names are made printable.
std::string snapshot_list(const std::vector<Snapshot>& snapshots);

/// One of them, with qemu-img's keys.
Json to_json_value(const Snapshot& snapshot);

}  // namespace byre
