// SPDX-License-Identifier: Apache-2.0
/// Owners: who refers to certain host clusters, down to the entry in the file.
///
/// A scan counts; it does not remember who it counted.  When something is wrong with some
/// clusters, this reads the tables once more for exactly those, and for the L1 tables, and
/// so the snapshots, that see them.
/// Invariant: of a cluster's references the first `references_max` are kept, in the order of the
/// L2 tables in the file; how many there are is counted.
/// Cost: one read of every L2 and L1 table; memory for what was asked for.
/// Not here: references of metadata to metadata other than L1 to L2 (a scan tells
/// those as it goes).
#pragma once

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "format/l2.h"
#include "qcow2/check/l2_tables.h"

namespace byre {

class Owners {
 public:
  /// An L2 entry that refers to a cluster.
  struct Reference {
    uint64_t l2_table = 0;  ///< The cluster of the table that it lies in.
    GuestCluster guest;
    L2Entry entry;
    bool compressed() const { return (entry.descriptor & kCompressed) != 0; }
  };
  struct References {
    std::vector<Reference> kept;
    uint64_t count = 0;
  };
  /// An L1 entry that points to an L2 table.
  struct L1Reference {
    HostOffset at;       ///< The entry, in the file.
    uint64_t index = 0;  ///< In its table,
    size_t table = 0;    ///< which is ScanResult::l1_tables[table].
  };

  Owners(Device& file, const ScanResult& found, ReadHooks hooks)
      : file_(file), found_(found), hooks_(std::move(hooks)) {}
  /// Finds the owners of `clusters`, and of the L2 tables among them and around them.
  Task<void> find(const std::vector<HostCluster>& clusters, uint64_t references_max);

  const References& of(HostCluster cluster) const;
  const std::vector<L1Reference>& of_table(uint64_t l2_table) const;
  /// Who sees what that table maps: fills active and snapshots.
  void views_of(uint64_t l2_table, Finding::Guest& guest) const;

 private:
  void visit_l2(const L2Use& use, Bytes table, uint64_t references_max);
  void add(uint64_t cluster, const Reference& reference, uint64_t references_max);
  Task<void> visit_l1(size_t index);

  Device& file_;
  const ScanResult& found_;
  const ReadHooks hooks_;
  std::unordered_map<uint64_t, References> references_;
  std::unordered_map<uint64_t, std::vector<L1Reference>> tables_;
};

}  // namespace byre
