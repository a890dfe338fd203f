// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/copied_repair.h"

#include <vector>

#include "format/l1.h"
#include "format/l2.h"
#include "qcow2/check/copied_flags.h"
#include "qcow2/repair/table_change.h"

namespace byre {
namespace {

class CopiedRepair {
 public:
  CopiedRepair(RepairState& state, CopiedChange change)
      : state_(state), set_(change == CopiedChange::set) {}

  Task<void> run() {
    co_await change_l1();
    co_await change_each_l2(state_, [this](const L2Use& use, MutableBytes table) {
      if (use.active != 0) change_l2(use, table);
    });
  }

 private:
  const Geometry& geometry() const { return state_.geometry(); }

  /// What two things use is never said to be one's own, whatever its refcount is.
  bool is_to_change(HostOffset at, bool copied) const {
    if (copied == set_ || at.value >= state_.file_size()) return false;
    const HostCluster cluster = geometry().cluster_of(at);
    if (should_be_copied(state_.references.counts, cluster) != set_) return false;
    return !set_ || !state_.is_aliased(cluster);
  }

  Task<void> change_l1() {
    // A table that is something else, too, is left alone.
    const HostOffset at = state_.head.header.l1_offset;
    if (!state_.is_own(geometry().cluster_of(at))) co_return;

    std::vector<uint64_t>& l1 = state_.active_l1;
    std::vector<std::byte> before(l1.size() * 8);
    for (uint64_t i = 0; i < l1.size(); ++i) store_l1_entry(before, i, l1[i]);
    std::vector<std::byte> after = before;
    for (uint64_t i = 0; i < l1.size(); ++i) {
      const HostOffset l2{l1[i] & kOffsetMask};
      if (l2.value == 0 || !is_to_change(l2, (l1[i] & kCopied) != 0)) continue;
      l1[i] ^= kCopied;
      store_l1_entry(after, i, l1[i]);
    }
    co_await write_changes(state_.file, at, before, after, IoTag::l1_update);
  }

  void change_l2(const L2Use& use, MutableBytes table) const {
    if (state_.is_aliased(HostCluster{use.cluster})) return;
    for (uint64_t i = 0; i < geometry().l2_entries(); ++i) {
      L2Entry entry = load_l2(table, i, geometry());
      const HostOffset at{entry.descriptor & kOffsetMask};
      const bool copied = (entry.descriptor & kCopied) != 0;
      const bool has_host = at.value != 0 || (geometry().data_file && copied);
      if ((entry.descriptor & kCompressed) != 0 || !has_host) continue;

      // An external data file is the disk's alone.
      if (geometry().data_file ? copied || !set_ : !is_to_change(at, copied)) continue;
      entry.descriptor ^= kCopied;
      store_l2(table, i, entry, geometry());
    }
  }

  RepairState& state_;
  const bool set_;
};

}  // namespace

Task<void> change_copied(RepairState& state, CopiedChange change) {
  CopiedRepair repair(state, change);
  co_await repair.run();
}

Task<void> clear_meaningless(RepairState& state) {
  const Geometry& geometry = state.geometry();
  const VisitL2 visit = [&](const L2Use& use, MutableBytes table) {
    if (state.is_aliased(HostCluster{use.cluster})) return;
    for (uint64_t i = 0; i < geometry.l2_entries(); ++i) {
      L2Entry entry = load_l2(table, i, geometry);
      const HostOffset at{entry.descriptor & kOffsetMask};
      const bool compressed = (entry.descriptor & kCompressed) != 0;
      if (compressed && (entry.descriptor & kCopied) != 0) {
        entry.descriptor &= ~kCopied;
      } else if (!compressed && at.value != 0 && (entry.descriptor & kReadsZero) != 0 &&
                 !geometry.aligned(at) && geometry.version >= 3 && !geometry.extended_l2) {
        entry.descriptor = kReadsZero;
      } else {
        continue;
      }
      store_l2(table, i, entry, geometry);
    }
  };
  co_await change_each_l2(state, visit);
}

}  // namespace byre
