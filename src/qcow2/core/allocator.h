// SPDX-License-Identifier: Apache-2.0
/// Allocation of host clusters, and their refcounts.
///
/// A cluster goes round like this (docs/engine.md, H):
///   free      refcount 0 in memory; only these are handed out (H4).
///   reserved  reserve() raised its refcount in memory; nobody points to it.  The increase belongs
///   to
///             the open generation, so a commit writes it before any pointer (O1).
///   live      staged: an L2 entry (or a table) points to it.
///   limbo     release(): a reference went away.  It still counts until the removal of the pointer
///             is durable and all I/O that may have resolved to it has ended (H2, H3); then the
///             reference is taken off, and at the last one the cluster is punched, if the policy
///             says so, and becomes free.
/// A Reservation that is dropped goes to limbo like any other: its write may still land (H6).
///
/// Refcounts in memory are what the disk will say once everything staged is committed.  They are
/// kept by region, the clusters that one refcount block counts: a byte for each, a map for the few
/// above 254.  A region is loaded when it is first needed and stays. A region without a refcount
/// block gets one in its own first cluster, which therefore counts itself; when the refcount table
/// is too short, a larger one is planned to a fixpoint together with the blocks that count it (A1,
/// A2).  So no block is ever uncounted.
/// One class with many methods, because reserving, releasing, planning and composing what a commit
/// writes must change the same counts in one step, without a wait in between.
/// Invariant: only clusters whose refcount in memory is 0 are handed out (H4).
/// Cost: reserve() is a memchr from the hint.
/// Memory: one byte for each cluster of loaded regions.
/// Not here: who points to what (map.h), when refcounts are written (commit.cc).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "block/device.h"
#include "coro/event.h"
#include "coro/semaphore.h"
#include "format/types.h"
#include "qcow2/core/epochs.h"
#include "qcow2/core/metadata_set.h"
#include "qcow2/core/refcount_changes.h"
#include "qcow2/core/stages.h"

namespace byre {

class Allocator;

/// Clusters that were taken and are not pointed to yet.
class [[nodiscard]] Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation() { drop(); }

  HostSpan span() const { return span_; }
  HostCluster first() const { return span_.first; }
  uint64_t count() const { return span_.count; }
  /// Does cluster `index` read as zeros on the host?  Then it counts as initialised (A4, M3b).
  bool zero(uint64_t index) const { return zero_.empty() ? all_zero_ : zero_[index]; }
  /// The first `count` are pointed to from here on (they were staged).
  void keep(uint64_t count);
  void keep() { keep(span_.count); }
  explicit operator bool() const { return span_.count != 0; }

 private:
  friend class Allocator;
  Reservation(Allocator& allocator, HostSpan span) : allocator_(&allocator), span_(span) {}
  void drop();
  Allocator* allocator_ = nullptr;
  HostSpan span_;
  uint64_t times_ = 1;  ///< References to each.
  bool all_zero_ = false;
  std::vector<bool> zero_;
};

class Allocator {
 public:
  struct Options {
    bool punch = false;
    uint64_t host_size_max = UINT64_MAX;
    uint64_t growth_step = 16 * MiB;
    bool reuse_freed = true;  ///< Off: only after reuse_freed() was called.
  };
  /// `table` is the refcount table as it is on the disk.
  Allocator(ReadyQueue& ready, Device& file, const Geometry& geometry, Stages& stages,
            Epochs& epochs, MetadataSet& metadata, Options options, std::vector<uint64_t> table,
            HostSpan table_at);
  Allocator(const Allocator&) = delete;
  ~Allocator();

  enum class Use : uint8_t { data, metadata };
  /// Takes a run of 1 to `count` free clusters.  Metadata has host blocks when this returns.
  /// Errc::no_space when the file can neither grow nor has room.  Awaits I/O: hold no pin.
  Task<Reservation> reserve(uint64_t count, Use use);
  /// Takes one cluster for data: the one behind `cluster` if it is free and the file need not grow
  /// for it, else the first that is.
  Task<Reservation> reserve_behind(HostCluster cluster);
  /// `times` more references to a cluster that has one; its refcount stays within the maximum.
  Reservation share(HostCluster cluster, uint64_t times = 1);
  /// The cluster that compressed streams are packed into (P1, compressed_packer.h), until the last
  /// reference to it that is not in limbo goes away.
  std::optional<HostCluster> packing() const { return packing_; }
  void set_packing(HostCluster cluster) { packing_ = cluster; }
  /// Takes exactly `count` clusters in a row, for tables.
  Task<Reservation> reserve_run(uint64_t count);

  /// Loads the regions of `span`, so that release() may be called; a cluster whose refcount is
  /// already 0 is corruption.
  Task<void> load(HostSpan span);
  bool loaded(HostSpan span) const;
  /// Loads every region that has a refcount block.
  Task<void> load_all();
  /// Calls visit(cluster, refcount) for each cluster of the loaded regions that has one, in order.
  template <class Visit>
  void each_count(const Visit& visit) const {
    for (uint64_t index = 0; index < regions_.size(); ++index) {
      if (!regions_[index]) continue;
      const HostCluster first = geometry_.first_of_refcount_table(index);
      for (uint64_t i = 0; i < regions_[index]->counts.size(); ++i) {
        if (regions_[index]->counts[i] != 0) visit(first + i, refcount(first + i));
      }
    }
  }
  /// `table` is the copy of an L2 table that is counted more than once: COPIED goes from each entry
  /// whose cluster is shared as well, whatever it says (O5).  Usually all are; but what counts the
  /// table once more may be a leak that a cut has left.
  Task<void> clear_shared(MutableBytes table);
  /// One reference to each cluster of `span` goes away with the open generation.  A reference that
  /// the refcount does not cover (the image is damaged) is passed over: the cluster would be freed
  /// twice.
  void release(HostSpan span);
  /// All references but one of a cluster that nothing leads to go away.
  void keep_one_reference(HostCluster cluster);
  /// In memory, of a loaded region.
  uint64_t refcount(HostCluster cluster) const;

  /// Large steps (snapshots), made while nothing is in limbo and nobody else changes references:
  /// all at once in memory, written by the next commit.  Regions are loaded. Would every count
  /// still fit its width (A5)?
  Result<void> can_raise(const RefcountChanges& changes) const;
  void raise(const RefcountChanges& changes);
  /// Healing (V), before anything else changes references: the count of `cluster` becomes at least
  /// `references`, for the next commit.  What is more than a refcount holds is never freed. Regions
  /// without a refcount block get one first: make_region().
  Task<void> raise_to(HostCluster cluster, uint64_t references);
  /// Likewise, but only once the region of `cluster` is loaded or made: something leads there that
  /// nobody can read, behind the end of the file, and it must never be somebody else's.
  void keep_out_of_use(HostCluster cluster);
  bool keeps_out(HostSpan span) const;
  bool has_region(uint64_t index) const { return index < table_.size() && table_[index] != 0; }
  /// Gives region `index`, which has clusters in use and no refcount block, a block at `at`, which
  /// nothing refers to; without one, wherever there is room at the end of the file.
  Task<void> make_region(uint64_t index, std::optional<HostCluster> at);
  /// Does every count cover what it is to lose?
  Result<void> can_lower(const RefcountChanges& changes) const;
  /// Takes back a raise(), or references whose removal is durable (O3) and that no I/O uses (H3).
  /// What nobody refers to any more is free.
  void lower(const RefcountChanges& changes);
  /// Before that lower(): holes for the clusters that it will free, if the policy wants them (D2).
  Task<void> punch_freed(const RefcountChanges& changes);
  std::unordered_set<HostCluster> refcount_blocks() const;

  /// The host is full: what was freed and not handed out again may be, from here on.
  void reuse_freed();
  /// Moves on what may leave limbo: called when a commit or an epoch has ended.
  void reclaim();
  /// Has the cluster a reference in limbo?
  bool in_limbo(HostCluster cluster) const {
    const auto found = limbo_references_.find(cluster);
    return found != limbo_references_.end() && found->second != 0;
  }
  /// Is anything in limbo, or being punched?
  bool limbo_empty() const { return limbo_.empty() && punching_ == 0; }
  /// Waits until everything whose removal is durable by now has left limbo: for I/O and punches
  /// only.
  Task<void> drain_limbo();
  /// A folded generation: what waits for it waits for the next one.
  void refold(uint64_t number);

  // For the commit.
  /// The 512-byte sector `sector` of region `index`'s block as the committing generation makes it.
  void compose_block(uint64_t index, uint64_t sector, MutableBytes out) const;
  /// The refcount table's sector likewise; pointers to blocks of later generations are left out.
  void compose_table(uint64_t sector, MutableBytes out) const;
  HostCluster block_at(uint64_t index) const { return {table_[index] >> geometry_.cluster_bits}; }
  /// Where the table is on the disk; a larger one may be staged.
  HostSpan durable_table_at() const { return durable_table_at_; }
  void set_durable_table_at(HostSpan at) { durable_table_at_ = at; }

  /// Starts punches.
  void set_spawner(std::function<void(Task<void>)> spawn) { spawn_ = std::move(spawn); }
  /// Cuts the file off behind the last cluster in use, limbo included; returns its length then.
  Task<uint64_t> truncate_file();
  /// Told of each cluster that becomes free.
  void set_on_free(std::function<void(HostCluster)> callback) { on_free_ = std::move(callback); }
  /// The end of the highest cluster in use among those known; the file is cut there at close.
  uint64_t end_of_use() const { return end_of_use_; }
  uint64_t clusters_allocated() const { return clusters_allocated_; }
  uint64_t clusters_freed() const { return clusters_freed_; }
  uint64_t clusters_peak() const { return clusters_peak_; }

 private:
  friend class Reservation;
  static constexpr uint8_t kMany = 255;  ///< The count is in `many`.
  struct Region {
    std::vector<uint8_t> counts;
    std::unordered_map<uint64_t, uint64_t> many;  ///< By index in the region.
    bool backed = false;  ///< Its block has space on the host, so that a commit can write it (A1).
    std::vector<bool> zeroed;  ///< Punched since its last owner; empty until used.
  };
  struct Limbo {
    HostSpan span;
    uint64_t epoch;
    uint64_t generation;
  };

  Task<void> load_region(uint64_t index, bool healing = false);
  void count_kept_out(uint64_t index);
  Task<void> back_region(uint64_t index);
  Task<uint64_t> find_end_of_use();
  Task<void> add_region(uint64_t index);
  Task<void> grow_table(uint64_t index, uint64_t entries_min);
  Task<void> prepare_space(HostSpan span, Use use);
  void register_block(uint64_t index, HostCluster at);
  Region& region_of(HostCluster cluster) const;
  void set_count(HostCluster cluster, uint64_t count);
  void change_count(HostCluster cluster, int64_t change);
  Reservation take(HostSpan span);
  Result<void> check_space(HostSpan span) const;
  Task<void> punch(std::vector<HostSpan> runs);
  void free_now(HostCluster cluster, bool zeroed);
  void lower_hint(HostCluster freed);
  void drop_limbo_reference(HostCluster cluster);
  Result<void> check_no_metadata(HostSpan span) const;
  void mark_for_commit(HostCluster cluster);
  Task<bool> make_hole(HostSpan run);

  Device& file_;
  const Geometry& geometry_;
  Stages& stages_;
  Epochs& epochs_;
  MetadataSet& metadata_;
  Options options_;
  std::vector<uint64_t> table_;  ///< With what is staged.
  HostSpan table_at_;            ///< With what is staged.
  HostSpan durable_table_at_;
  std::vector<std::unique_ptr<Region>> regions_;
  std::optional<HostCluster> packing_;
  Mutex mutex_;                                  ///< Held by whoever takes clusters.
  Mutex load_mutex_;                             ///< Held while a region is loaded.
  std::unordered_set<HostCluster> never_freed_;  ///< More references than a refcount holds.
  std::set<HostCluster> kept_out_;               ///< See keep_out_of_use().
  uint64_t hint_ = 0;    ///< No cluster below is free in a loaded region (H5).
  uint64_t never_used_;  ///< No cluster from here on was ever handed out: they read as zeros (A4).
  uint64_t end_of_use_ = 0;
  bool fresh_is_zero_;
  std::deque<Limbo> limbo_;
  std::unordered_map<HostCluster, uint64_t> limbo_references_;  ///< In limbo, by cluster.
  uint64_t punching_ = 0;
  bool reclaiming_ = false;
  Event limbo_moved_;
  std::function<void(Task<void>)> spawn_;
  std::function<void(HostCluster)> on_free_;
  uint64_t clusters_allocated_ = 0;
  uint64_t clusters_freed_ = 0;
  uint64_t clusters_peak_ = 0;
};

}  // namespace byre
