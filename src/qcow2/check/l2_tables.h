// SPDX-License-Identifier: Apache-2.0
/// Reads all L2 tables that a scan knows, in the order of the file.
/// Invariant: unless the reading is stopped, each table gets exactly one visit or one report.
/// Cost: one read of each table, many at once, and two windows of memory (table_reader.h).
/// Not here: how tables are read (table_reader.h), changing them (repair/table_change.h).
#pragma once

#include <functional>

#include "qcow2/check/scan_result.h"
#include "qcow2/check/table_reader.h"

namespace byre {

/// Runs on a worker thread, with nothing but reads beside it.
using VisitL2 = std::function<void(const L2Use& use, MutableBytes table)>;

/// What the reading of tables asks and reports; what is empty is not called.
struct ReadHooks {
  std::function<Result<void>()> go_on = {};
  std::function<void(const Error& error)> unreadable = {};
  std::function<void(uint64_t done)> progress = {};
};

/// A table that cannot be read is reported and not visited.
Task<void> each_l2(Device& file, const ScanResult& found, VisitL2 visit, ReadHooks hooks);

/// The error of a read with the table at `cluster` named.
Error unreadable_table(const Error& error, std::string_view what, HostCluster cluster,
                       const Geometry& geometry);

}  // namespace byre
