// SPDX-License-Identifier: Apache-2.0
/// L1Scan: walks L1 tables, the active one and those of snapshots, and collects the L2 tables that
/// they lead to, each once, with a weight: how many L1 entries point to it.
///
/// Invariant: nothing is followed twice, so the time follows what is really there.
/// Cost: one read of each L1 table, piece by piece; memory for an L2Use of each L2 table.
/// Not here: the L2 tables' contents (l2_counter.h).
#pragma once

#include <string>
#include <string_view>

#include "qcow2/check/scan_context.h"

namespace byre {

class L1Scan {
 public:
  explicit L1Scan(ScanContext& scan) : scan_(scan), result_(scan.result()) {}

  /// Of a table that the file has in part, the entries that are there count.
  Task<void> count_active();
  /// `identity`: of the table, as an owner.  `what` is put in front of findings.  False when the
  /// table cannot be used.
  Task<bool> count_of_snapshot(HostOffset at, uint64_t entries, uint64_t identity, std::string what,
                               std::string snapshot);
  /// When all tables are counted: the L2 tables themselves.
  void count_l2_tables();

 private:
  const Geometry& geometry() const { return scan_.geometry(); }
  Task<bool> count(L1Table l1, uint64_t identity, std::string what);
  void count_entry(uint64_t entry, uint64_t index, const L1Table& l1, std::string_view what);
  void merge_uses();
  void merge_use(const L2Use& use, L2Use& same);

  ScanContext& scan_;
  ScanResult& result_;
  size_t uses_merged_ = 0;
};

}  // namespace byre
