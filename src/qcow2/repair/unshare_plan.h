// SPDX-License-Identifier: Apache-2.0
/// UnsharePlan: which owners of a cluster that two things use, or that too many use, get a copy.
///
/// Metadata keeps the place first, then compressed data, then the first guest cluster; unshare.h
/// says why.  Where an entry that would have to change lies in a table that something else uses as
/// well, nothing is planned.
/// Invariant: making a plan writes nothing to the image.
/// Cost: one read of the L2 and L1 tables to find the owners.
/// Not here: where copies go, and making them (unshare.cc).
#pragma once

#include <set>
#include <utility>
#include <vector>

#include "qcow2/check/owners.h"
#include "qcow2/repair/repair.h"

namespace byre {

/// Something that gets a place of its own.
struct UnshareMove {
  enum class What : uint8_t { table, data, stream } what = What::data;
  HostOffset from;
  uint64_t length = 0;
  uint64_t clusters = 1;                        ///< That it touches.
  HostOffset to;                                ///< Once it is placed.
  uint64_t weight = 0;                          ///< References that go with it,
  uint32_t active = 0;                          ///< those of the active disk among them.
  GuestCluster guest;                           ///< Of a table the first.
  std::vector<Owners::Reference> entries;       ///< L2 entries to change,
  std::vector<Owners::L1Reference> l1_entries;  ///< or L1 entries.
};

class UnsharePlan {
 public:
  UnsharePlan(RepairState& state, RepairLog& log)
      : state_(state), log_(log), owners_(state.file, state.found, state.hooks()) {}

  /// What to move; the parts of the disk that may not hold what was last written there go to the
  /// log.
  Task<std::vector<UnshareMove>> make();

 private:
  const Geometry& geometry() const { return state_.geometry(); }
  const L2Use& use_of(uint64_t table) const;
  /// May this byte of metadata be written?  Not when its cluster has another owner, too.
  bool is_own(HostOffset at) const { return state_.is_own(geometry().cluster_of(at)); }
  uint64_t references_max() const { return refcount_max(geometry().refcount_order); }
  void add_overfull(std::vector<HostCluster>& found) const;
  void plan_tables();
  void add_l1_entry(UnshareMove& move, uint64_t table, const Owners::L1Reference& reference) const;
  void plan_move(UnshareMove move);
  void plan_copies_of_table(const L2Use& use);
  void plan_table(const L2Use& use);
  bool is_astray(const Owners::Reference& reference) const;
  void plan_cluster(HostCluster cluster);
  void plan_overfull(HostCluster cluster, const std::vector<Owners::Reference>& references);
  bool is_moved(const Owners::Reference& reference) const;
  void add_data(UnshareMove& move, HostCluster cluster, const Owners::Reference& reference) const;
  bool add_stream(UnshareMove& move, const Owners::Reference& reference);
  void add_entry(UnshareMove& move, const Owners::Reference& reference) const;
  void doubt(Finding::Guest guest, const L1Table& l1);

  const RepairState& state_;
  RepairLog& log_;
  Owners owners_;
  std::vector<UnshareMove> moves_;
  std::set<std::pair<uint64_t, uint64_t>> moved_streams_;  ///< By table and guest cluster.
};

}  // namespace byre
