// SPDX-License-Identifier: Apache-2.0
/// ScanResult: everything that one scan of an image's metadata has found, as a value.
///
/// A scan makes it (metadata_scan.h); whoever reads it afterwards gets it const.  A repair moves
/// `references` out and counts on in a state of its own (repair/repair_state.h).
/// Invariant: l2_uses is in the order of the file, each table once; l1_tables has the active table
/// first, if that could be walked.
/// Cost: memory for ReferenceCounts (reference_counts.h), 32 bytes an L2 table, the refcount table.
/// Not here: making it (metadata_scan.h), what a repair changes (repair/repair_state.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "format/kept_clusters.h"
#include "format/snapshot.h"
#include "qcow2/check/references.h"
#include "qcow2/check/report.h"
#include "qcow2/core/image_header.h"

namespace byre {

/// An L1 table that could be walked.
struct L1Table {
  HostOffset at;
  uint64_t entries = 0;
  bool active = false;
  std::string snapshot;  ///< Its name, unless active.
};

/// An L2 table and the L1 entries that point to it.
struct L2Use {
  uint64_t cluster = 0;
  uint64_t weight = 0;        ///< L1 entries that point to it, of all L1 tables.
  uint32_t active = 0;        ///< Those of the active one.
  uint32_t l1_index = 0;      ///< Of the first of them.
  bool copied_set = false;    ///< An active entry that points to it has COPIED,
  bool copied_clear = false;  ///< or one has not.
  bool shared = false;        ///< By different places of the disk.
};

/// What is known of the refcount block of an entry of the refcount table.
enum class BlockState : uint8_t {
  none,     ///< All counts are zero.
  sound,    ///< May be written in place.
  suspect,  ///< Its counts are readable, but something else may own the cluster.
  lost,     ///< Its counts are not known.
};

struct ScanResult {
  ImageHeader head;
  KeptClusters kept;  ///< Clusters that an earlier repair has kept (repair/keep.h).
  References references;
  CheckReport report;

  // Mappings.
  std::vector<uint64_t> active_l1;  ///< The entries of the active L1 table, as far as it is there.
  std::vector<L1Table> l1_tables;
  std::vector<L2Use> l2_uses;
  /// Clusters behind the end that the active disk points to, and whether their refcount is 1: it
  /// may be there all the same.
  std::map<HostCluster, bool> behind_end;
  /// Clusters in which compressed streams overlap; known only when that was asked for.
  std::set<HostCluster> overlapping;
  /// Compressed streams that do not inflate, by offset and size; known only when that was asked
  /// for.
  std::set<std::pair<uint64_t, uint64_t>> bad_streams;

  // Refcounts.
  std::vector<uint64_t> refcount_table;        ///< As it is in the file.
  std::vector<BlockState> blocks;              ///< For each entry of it.
  std::vector<HostCluster> refcount_clusters;  ///< The table's and the blocks', one reference each.
  /// Runs of clusters that have a refcount and no reference, ascending.
  std::vector<HostSpan> orphans;
  uint64_t orphans_remembered = 0;  ///< Clusters of them that an earlier repair has kept.

  // Snapshots, bitmaps.
  std::vector<Snapshot> snapshots;  ///< As their table says, which may be less than is right.
  /// Indices of those whose tables cannot be used.
  std::set<uint64_t> broken_snapshots;
  std::set<uint64_t> broken_bitmaps;

  // What stands against a repair.
  bool damaged = false;            ///< References may be missing or wrong: free nothing.
  bool undercounted = false;       ///< A refcount is too small.
  bool overfull = false;           ///< More references than a refcount holds.
  bool refcounts_unsound = false;  ///< They can only be written anew.
  bool snapshots_lost = false;     ///< Their table may lie anywhere: no place is sure to be free.
  bool bitmaps_lost = false;       ///< Their directory cannot be read.
  bool foreign_bitmaps = false;    ///< Of a type that no reader knows.
  bool l1_behind_end = false;      ///< A part of the active L1 table is not there,
  bool l1_too_short = false;       ///< or the header does not count it (repair/lost_l1.h).
  bool lost_entries = false;       ///< Entries lead nowhere (repair/loss.h).
  bool copied_mismatch = false;    ///< COPIED flags may contradict refcounts.

  // What a repair has to do, besides.
  bool repairable_entries = false;
  bool repairable_snapshots = false;
  bool repairable_bitmaps = false;
  bool repairable_header = false;
  uint64_t copied_wrong = 0;  ///< Corruptions that are COPIED flags.
  uint64_t format_only = 0;   ///< Corruptions that change no reference.

  const Geometry& geometry() const { return head.geometry; }
  uint64_t file_size() const { return references.file_size; }
  HostCluster block_at(uint64_t index) const {
    return geometry().cluster_of(HostOffset{refcount_table[index]});
  }
  uint64_t orphan_clusters() const {
    uint64_t count = 0;
    for (const HostSpan& span : orphans) count += span.count;
    return count;
  }
  /// Null when no L1 entry leads to a table there.
  const L2Use* find_use(uint64_t cluster) const {
    const auto at =
        std::lower_bound(l2_uses.begin(), l2_uses.end(), cluster,
                         [](const L2Use& use, uint64_t wanted) { return use.cluster < wanted; });
    return at != l2_uses.end() && at->cluster == cluster ? &*at : nullptr;
  }
};

}  // namespace byre
