// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/repair_state.h"

#include <algorithm>
#include <utility>

#include "qcow2/check/refcount_compare.h"

namespace byre {

RepairState::RepairState(Device& scanned_file, const CheckOptions& wanted, ScanResult scanned)
    : file(scanned_file),
      options(wanted),
      head(scanned.head),
      references(std::move(scanned.references)),
      active_l1(scanned.active_l1),
      refcount_clusters(scanned.refcount_clusters),
      kept(scanned.kept),
      damaged(scanned.damaged),
      undercounted(scanned.undercounted),
      refcounts_unsound(scanned.refcounts_unsound),
      found(std::move(scanned)) {}

uint64_t RepairState::orphans_kept() const {
  if (keep_orphans) return found.orphan_clusters();
  return kept.empty() ? 0 : found.orphans_remembered;
}

void RepairState::count_new(HostCluster cluster, Owner owner, uint64_t identity, uint64_t weight) {
  references.counts.add(cluster, owner, identity, weight);
  const uint64_t index = geometry().refcount_table_index(cluster);
  if (index >= found.blocks.size() || found.blocks[index] != BlockState::sound) {
    refcounts_unsound = true;
  }
}

Task<std::vector<std::byte>> RepairState::read_block(uint64_t index) {
  std::vector<std::byte> block(geometry().cluster_size());
  co_await byre::read_block(file, found, index, block);
  co_return block;
}

ReadHooks RepairState::hooks() {
  return {.go_on = [this] { return options.go_on(); },
          .unreadable = [this](const Error&) { damaged = true; }};
}

}  // namespace byre
