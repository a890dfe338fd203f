// SPDX-License-Identifier: Apache-2.0
/// RepairState: what one pass of a repair works on: what a scan has found, the image as it is after
/// what the pass has written, and what the repair has decided.
///
/// Invariant: `found` never changes, except that its references have moved to `references`; after a
/// pass has written, the state is stale and another scan makes the next one.
/// Cost: the memory of the scan's result, with a second copy of the active L1 table.
/// Not here: which passes there are (passes.h).
#pragma once

#include <vector>

#include "qcow2/check/l2_tables.h"
#include "qcow2/check/scan_result.h"

namespace byre {

struct RepairState {
  RepairState(Device& file, const CheckOptions& options, ScanResult scanned);
  RepairState(const RepairState&) = delete;

  Device& file;
  const CheckOptions& options;

  /// The image as it is now.
  ImageHeader head;
  References references;                       ///< With those that the pass has added.
  std::vector<uint64_t> active_l1;             ///< The entries of the active L1 table.
  std::vector<HostCluster> refcount_clusters;  ///< The refcount table's and the blocks'.
  KeptClusters kept;                           ///< Free none of these (keep.h).

  /// What is known of it, or was decided.
  bool damaged = false;            ///< References may be missing or wrong: free nothing.
  bool undercounted = false;       ///< A refcount is too small.
  bool refcounts_unsound = false;  ///< They can only be written anew.
  bool keep_orphans = false;       ///< Free nothing that may be the only copy of lost data.
  bool promise = false;            ///< The next write is preceded by the promise to keep all.

  const ScanResult found;

  const Geometry& geometry() const { return found.geometry(); }
  uint64_t file_size() const { return found.file_size(); }
  /// Orphans that must not be freed.
  uint64_t orphans_kept() const;
  /// May a cluster that nothing refers to not be freed?
  bool keeps(HostCluster cluster) const { return keep_orphans || kept.contains(cluster); }
  /// Adds references to a cluster that the pass gives to `owner`.
  void count_new(HostCluster cluster, Owner owner, uint64_t identity, uint64_t weight = 1);
  bool is_aliased(HostCluster cluster) const {
    const ReferenceCounts::Cell* cell = references.counts.find(cluster);
    return cell && cell->aliased;
  }
  /// Metadata there may be changed: the cluster is known, and has no other owner.
  bool is_own(HostCluster cluster) const {
    const ReferenceCounts::Cell* cell = references.counts.find(cluster);
    return cell && !cell->aliased;
  }

  /// Reads; what lies behind the end of the file that was scanned is zeros.
  BYRE_CORO_WRAPPER Task<void> read_padded(uint64_t offset, MutableBytes data, IoTag tag) {
    return byre::read_padded(file, file_size(), offset, data, tag);
  }
  /// The bytes of refcount block `index`, which must be sound or suspect.
  Task<std::vector<std::byte>> read_block(uint64_t index);
  /// For reading all L2 tables: where one cannot be read, references may be missing.
  ReadHooks hooks();
};

}  // namespace byre
