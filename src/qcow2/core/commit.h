// SPDX-License-Identifier: Apache-2.0
/// Committer: makes what is staged durable, in an order that any power loss may interrupt.
///
/// A generation goes down in three steps, each ended by a sync (docs/engine.md, M2):
///   1. what nobody points to yet: refcounts, new refcount blocks, new L2 tables, a new refcount
///   table;
///   2. pointers to new refcount blocks: refcount table entries, or the header's refcount table
///      fields (left out when there are none);
///   3. pointers to clusters: L2 entries and L1 entries.
/// Then the generation is durable; what it removed can leave limbo, and the decrements that follow
/// from that belong to a later generation. When step 1 fails, or the header could be written back
/// as it was, the generation is folded under the next.  When step 2 or 3 fails otherwise the
/// pointers on the disk are unknown: the generation stays and is written again, before any other
/// (M4). With lazy refcounts steps 1 and 2 leave the refcounts out while the dirty bit is set. An
/// external data file is synced once, before step 1 (O2, O8): what was written to it is durable
/// before any entry that leads there.  flush() serves everybody who asks: those who come during a
/// commit share the next (L4).
/// Invariant: a pointer is written only after a sync has made durable what it points to (O1, O2).
/// Cost: an empty commit is one sync.
/// Not here: what is staged (stages.h), how the header is written (header_state.h), when a commit
/// begins (engine.h).
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "block/device.h"
#include "coro/event.h"
#include "coro/scope.h"
#include "qcow2/core/allocator.h"
#include "qcow2/core/header_state.h"
#include "qcow2/core/map.h"

namespace byre {

class Committer {
 public:
  /// `external_data`: guest data lie in a file of their own.
  Committer(ReadyQueue& ready, Device& file, bool external_data, SyncLatch& latch,
            HeaderState& header, Stages& stages, Epochs& epochs, Map& map, Allocator& allocator,
            MetadataSet& metadata, bool lazy);

  /// Everything staged, and every write completed, before this call is durable when it ends.
  Task<void> flush(IoTag tag);
  /// flush(), and with lazy refcounts the refcounts too.
  Task<void> flush_all();
  /// flush_all(), then clears the dirty bit.
  Task<void> finish();
  /// Is there anything that a commit would write?
  bool has_work() const { return has_work(!lazy_); }
  /// Nothing is written any more; reads go on.
  const Error& latched() const { return latch_.error(); }
  /// Syncs the file.
  BYRE_CORO_WRAPPER Task<void> sync(IoTag tag) { return latch_.sync(tag); }
  /// Told when a generation has become durable.
  void set_on_durable(std::function<void()> callback) { on_durable_ = std::move(callback); }
  uint64_t commits() const { return commits_; }
  uint64_t failures() const { return failures_; }

 private:
  struct Job;
  struct Jobs;
  Task<void> run(IoTag tag);
  Task<void> step_unreferenced(IoTag tag);
  Task<void> switch_refcount_table();
  Task<void> step_refcount_pointers();
  Task<void> step_cluster_pointers(IoTag tag);
  void finish_generation();
  void postpone_refcounts();
  bool has_work(bool with_refcounts) const;
  bool writes_refcounts() const;

  Task<void> perform(Jobs& jobs);
  Task<void> worker(Jobs& jobs);
  Task<void> write_block_sectors(uint64_t index, uint64_t first, uint64_t count, IoTag tag);
  Task<void> write_table_sectors(HostSpan table, uint64_t first, uint64_t count, IoTag tag);
  Task<void> write_new_l2(uint64_t l1_index);
  Task<void> write_slice(HostOffset at, uint64_t first, uint64_t count);
  Task<void> write_l1_sector(uint64_t sector);

  ReadyQueue& ready_;
  Device& file_;
  const bool external_data_;
  SyncLatch& latch_;
  HeaderState& header_;
  const Geometry& geometry_;
  Stages& stages_;
  Epochs& epochs_;
  Map& map_;
  Allocator& allocator_;
  MetadataSet& metadata_;
  bool lazy_;
  uint64_t write_all_ = 0;  ///< flush_all() calls under way.

  uint64_t wanted_ = 0;  ///< The last flush that came.
  uint64_t done_ = 0;    ///< Flushes up to this one are served.
  bool running_ = false;
  Event finished_;
  /// The committing generation's entries, in order.
  std::vector<std::pair<GuestCluster, L2Entry>> sorted_;
  std::function<void()> on_durable_;
  uint64_t commits_ = 0;
  uint64_t failures_ = 0;
};

}  // namespace byre
