// SPDX-License-Identifier: Apache-2.0
/// Stages: what requests have changed in memory and no commit has made durable yet.
///
/// Changes belong to generations (docs/engine.md, M1, M2).  Requests stage into `open`; a commit
/// takes it as `committing` and begins the next.  A lookup asks open, then committing, then the
/// tables.
/// If a commit fails before any pointer was written, fold() puts its generation under the open one
/// (M4): the newer entry wins, and every refcount it touched is written again.
/// Invariant: an entry is here only after its data I/O has completed (M3).
/// Cost: one hash lookup for each generation that is not empty.
/// Not here: writing them (commit.cc), committed entries (map.h, table_cache.h).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/units.h"
#include "format/l2.h"

namespace byre {

/// A new L2 table: its cluster, and the table whose entries it begins with.
struct NewL2Table {
  HostCluster at;
  std::optional<HostCluster> base;
};

/// The refcount table's new place.
struct NewRefcountTable {
  HostCluster at;
  uint64_t clusters = 0;
};

struct Generation {
  uint64_t number = 0;
  std::unordered_map<GuestCluster, L2Entry> entries;
  std::unordered_map<uint64_t, NewL2Table> l2_tables;  ///< By L1 index.
  /// Changes of refcounts.  An entry of 0 still has to be written: an earlier try may have
  /// left something else on the disk.
  std::unordered_map<HostCluster, int64_t> refcounts;
  std::map<uint64_t, HostCluster> refcount_blocks;  ///< New ones, by refcount table index.
  std::optional<NewRefcountTable> refcount_table;
  bool links_data = false;    ///< An entry points to data that a sync must make durable first (O2).
  bool data_durable = false;  ///< That sync has been made.

  bool empty() const {
    return entries.empty() && l2_tables.empty() && refcounts.empty() && refcount_blocks.empty() &&
           !refcount_table;
  }
};

struct Stages {
  Generation open;
  std::optional<Generation> committing;
  /// Generations below this one are durable.
  uint64_t durable_end = 0;

  struct Staged {
    const L2Entry* entry = nullptr;
    const Generation* generation = nullptr;
  };
  /// The newest staged entry, or null.
  Staged find(GuestCluster cluster) const {
    if (!open.entries.empty()) {
      const auto it = open.entries.find(cluster);
      if (it != open.entries.end()) return {&it->second, &open};
    }
    if (committing && !committing->entries.empty()) {
      const auto it = committing->entries.find(cluster);
      if (it != committing->entries.end()) return {&it->second, &*committing};
    }
    return {};
  }
  bool no_entries() const {
    return open.entries.empty() && (!committing || committing->entries.empty());
  }
  bool has_new_l2_table(uint64_t l1_index) const {
    return open.l2_tables.contains(l1_index) ||
           (committing && committing->l2_tables.contains(l1_index));
  }

  /// Takes the open generation for a commit and begins the next.
  Generation& rotate() {
    const uint64_t number = open.number;
    committing.emplace(std::move(open));
    open = Generation{.number = number + 1};
    return *committing;
  }
  void committed() {
    durable_end = committing->number + 1;
    committing.reset();
  }
  /// Puts the committing generation under the open one.
  void fold() {
    Generation& old = *committing;
    for (auto& [cluster, entry] : old.entries) open.entries.emplace(cluster, entry);
    for (auto& [index, table] : old.l2_tables) open.l2_tables.emplace(index, table);
    for (auto& [cluster, change] : old.refcounts) open.refcounts[cluster] += change;
    open.refcount_blocks.merge(old.refcount_blocks);
    if (!open.refcount_table) open.refcount_table = old.refcount_table;
    open.links_data |= old.links_data;
    committing.reset();
  }
};

}  // namespace byre
