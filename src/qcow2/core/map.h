// SPDX-License-Identifier: Apache-2.0
/// Map: what each guest cluster is.
///
/// Committed entries are in the L1 table (in memory) and the L2 tables (table_cache.h); over them
/// lies what is staged (stages.h).  A lookup asks both in one step without a wait; if it had to
/// wait for a slice it starts again.  Whoever looks up holds an epoch pin, so that a table that is
/// replaced meanwhile is not reused under the lookup. stage() changes what the next lookup sees;
/// the disk learns of it with the next commit.
/// Invariant: every entry that is handed out has been checked against the format and the file's
/// size, by the lookup or, once set_ends_known() was called, by the scan before it.
/// Cost: a lookup in memory is two or three hash probes and one decode; a run of plain entries
/// costs that once for each slice, and a comparison for each entry. Not here: reference counts
/// (allocator.h), who may change what (image.h).
#pragma once

#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "block/device.h"
#include "coro/semaphore.h"
#include "format/l1.h"
#include "format/l2.h"
#include "qcow2/core/allocator.h"
#include "qcow2/core/lost_ranges.h"
#include "qcow2/core/metadata_set.h"
#include "qcow2/core/stages.h"
#include "qcow2/core/table_cache.h"

namespace byre {

class Map {
 public:
  /// `data_size` gives the size of the file that data clusters lie in.
  Map(ReadyQueue& ready, Device& file, const Geometry& geometry, Stages& stages,
      MetadataSet& metadata, uint64_t cache_bytes, std::vector<uint64_t> l1);

  struct Found {
    Mapping mapping;
    bool durable = true;       ///< The entry is on the disk, not only staged.
    bool data_durable = true;  ///< Its data were synced since it was staged.
  };
  /// The entry if it is in memory: an empty optional means that find() would have to load it.
  Result<std::optional<Found>> find_now(GuestCluster cluster);
  /// Awaits table loads only.
  Task<Found> find(GuestCluster cluster);
  /// A cluster and those behind it that go on as it does: the same mapping, but for the host, which
  /// is the one behind that of the cluster before.
  struct Run {
    Mapping mapping;
    uint64_t clusters = 1;
  };
  /// The run at `cluster`, of `count` clusters at most.  It may be cut short anywhere: at the end
  /// of a slice, and to one cluster where something is staged or lost.  Loads ahead in its table.
  Task<Run> find_run(GuestCluster cluster, uint64_t count);
  /// True when the whole table of `cluster` is missing, so that everything in it is unallocated.
  bool table_missing(GuestCluster cluster) const;

  /// Makes sure that entries of the L2 table `l1_index` can be staged: reserves a table if there is
  /// none of our own.  Awaits space: hold no pin.
  Task<void> prepare(uint64_t l1_index, Allocator& allocator);
  /// Stages a copy of the L2 table `l1_index`, if there is one, in the first free cluster.
  Task<void> move_table(uint64_t l1_index, Allocator& allocator);
  /// Parts of the disk that fail (V); staging new contents of a cluster takes it out.
  LostRanges& lost() { return lost_; }
  /// All entries that lead behind the end of the file are among lost(); no lookup need ask again.
  void set_ends_known() { ends_known_ = true; }
  const LostRanges& lost() const { return lost_; }
  /// From here on `cluster` is `mapping`.  Its table was prepared; its data, if any, are down (M3).
  void stage(GuestCluster cluster, const Mapping& mapping);

  // For the commit and for resize.
  const std::vector<uint64_t>& l1() const { return l1_; }
  void set_l1(uint64_t index, const L1Entry& entry);
  void grow_l1(uint64_t entries) { l1_.resize(entries); }
  /// The table as it is on the disk now, after a switch.
  void replace_l1(std::vector<uint64_t> l1);
  /// Another L1 table, or other COPIED flags: everything known of the tables is forgotten, all
  /// slices of them (S2).  Nothing is staged.
  void reset_l1(std::vector<uint64_t> l1);
  TableCache& cache() { return cache_; }
  /// Where entry `cluster` lies, given its table.
  HostOffset slice_of(HostCluster table, GuestCluster cluster) const;
  size_t index_in_slice(GuestCluster cluster) const;

 private:
  Result<L1Entry> table_of(uint64_t l1_index) const;
  /// None: the slice is not in memory.
  Result<std::optional<Run>> find_run_now(GuestCluster cluster, uint64_t count);
  Task<void> stage_copy(uint64_t l1_index, const L1Entry& old, Allocator& allocator);
  Result<Mapping> decode(GuestCluster cluster, L2Entry entry, bool copied) const;

  Device& file_;
  const Geometry& geometry_;
  Stages& stages_;
  MetadataSet& metadata_;
  TableCache cache_;
  LostRanges lost_;
  bool ends_known_ = false;
  std::vector<uint64_t> l1_;               ///< As committed.
  std::unordered_set<uint64_t> verified_;  ///< L1 entries whose table's refcount was found to be 1.
  Mutex prepare_mutex_;
};

}  // namespace byre
