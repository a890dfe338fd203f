// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/unshare_plan.h"

#include <algorithm>
#include <map>
#include <optional>

#include "format/l2.h"
#include "format/refcount.h"

namespace byre {

Task<std::vector<UnshareMove>> UnsharePlan::make() {
  std::vector<HostCluster> wanted = state_.references.counts.aliased();
  wanted.insert(wanted.end(), state_.found.overlapping.begin(), state_.found.overlapping.end());
  if (state_.found.overfull) add_overfull(wanted);
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  co_await owners_.find(wanted, UINT64_MAX);
  plan_tables();
  // The entries of a table that is about to become two are the next pass's.
  if (moves_.empty()) {
    for (const HostCluster cluster : wanted) plan_cluster(cluster);
  }
  co_return std::move(moves_);
}

const L2Use& UnsharePlan::use_of(uint64_t table) const {
  const L2Use* use = state_.found.find_use(table);
  BYRE_ASSERT(use);
  return *use;
}

/// Clusters with more references than a refcount holds.
void UnsharePlan::add_overfull(std::vector<HostCluster>& found) const {
  for (const uint64_t region : state_.references.counts.regions()) {
    for (uint64_t i = 0; i < ReferenceCounts::kRegion; ++i) {
      const HostCluster cluster{region * ReferenceCounts::kRegion + i};
      if (state_.references.counts.references(cluster) > references_max()) found.push_back(cluster);
    }
  }
}

void UnsharePlan::plan_tables() {
  for (const L2Use& use : state_.found.l2_uses) {
    if (use.shared) {
      plan_table(use);
    } else if (use.weight > references_max()) {
      plan_copies_of_table(use);
    }
  }
}

void UnsharePlan::add_l1_entry(UnshareMove& move, uint64_t table,
                               const Owners::L1Reference& reference) const {
  move.what = UnshareMove::What::table;
  move.from = geometry().start_of(HostCluster{table});
  move.length = geometry().cluster_size();
  move.guest = geometry().first_of_l1(reference.index);
  ++move.weight;
  move.active += state_.found.l1_tables[reference.table].active;
  move.l1_entries.push_back(reference);
}

void UnsharePlan::plan_move(UnshareMove move) {
  const bool writable =
      std::all_of(move.l1_entries.begin(), move.l1_entries.end(),
                  [&](const auto& entry) { return is_own(entry.at); }) &&
      std::all_of(move.entries.begin(), move.entries.end(), [&](const auto& entry) {
        return is_own(geometry().start_of(HostCluster{entry.l2_table}));
      });
  if (writable) moves_.push_back(std::move(move));
}

/// As many L1 entries as a refcount holds keep it, the active one among them; the others get
/// copies, for as many each.
void UnsharePlan::plan_copies_of_table(const L2Use& use) {
  std::vector<UnshareMove> moves;
  uint64_t index = 0;
  for (const Owners::L1Reference& reference : owners_.of_table(use.cluster)) {
    const uint64_t copy = index++ / references_max();
    if (copy == 0) continue;
    moves.resize(copy);
    add_l1_entry(moves.back(), use.cluster, reference);
  }
  for (UnshareMove& move : moves) plan_move(std::move(move));
}

void UnsharePlan::plan_table(const L2Use& use) {
  std::map<uint64_t, UnshareMove> by_index;
  for (const Owners::L1Reference& reference : owners_.of_table(use.cluster)) {
    doubt({.offset = geometry().start_of(geometry().first_of_l1(reference.index)).value,
           .length = geometry().l1_span()},
          state_.found.l1_tables[reference.table]);
    add_l1_entry(by_index[reference.index], use.cluster, reference);
  }
  if (by_index.empty()) return;
  by_index.erase(by_index.begin());  // Who keeps it.
  for (auto& [index, move] : by_index) plan_move(std::move(move));
}

/// A pointer that is no cluster's offset: what it should be is not known.
bool UnsharePlan::is_astray(const Owners::Reference& reference) const {
  return !reference.compressed() &&
         !geometry().aligned(HostOffset{reference.entry.descriptor & kOffsetMask});
}

void UnsharePlan::plan_cluster(HostCluster cluster) {
  const Owners::References& references = owners_.of(cluster);
  // Such an entry stays as it is, and so does what it may mean.
  if (std::any_of(references.kept.begin(), references.kept.end(),
                  [&](const auto& reference) { return is_astray(reference); })) {
    return;
  }
  const auto* cell = state_.references.counts.find(cluster);
  if (!(cell && cell->aliased) && !state_.found.overlapping.contains(cluster)) {
    plan_overfull(cluster, references.kept);
    return;
  }
  uint64_t counted = 0;
  bool compressed = false;
  for (const Owners::Reference& reference : references.kept) {
    counted += use_of(reference.l2_table).weight;
    compressed |= reference.compressed();
    Finding::Guest guest{.offset = geometry().start_of(reference.guest).value,
                         .length = geometry().cluster_size()};
    owners_.views_of(reference.l2_table, guest);
    log_.in_doubt.push_back(std::move(guest));
  }
  const bool metadata = state_.references.counts.references(cluster) > counted;
  const bool overlapping = state_.found.overlapping.contains(cluster);
  std::optional<GuestCluster> keeps;
  std::map<std::pair<uint64_t, uint64_t>, UnshareMove> moves;  // By guest cluster and descriptor.
  for (const Owners::Reference& reference : references.kept) {
    if (reference.compressed()) {
      // A stream that touches several such clusters is met in each.
      if ((metadata || overlapping) && !is_moved(reference)) {
        const uint64_t stream = reference.entry.descriptor & ~kCopied;
        add_stream(moves[{reference.guest.value, stream}], reference);
      }
      continue;
    }
    if (!metadata && !compressed) {
      if (!keeps) keeps = reference.guest;
      if (*keeps == reference.guest) continue;
    }
    add_data(moves[{reference.guest.value, 0}], cluster, reference);
  }
  // A copy with more references than a refcount holds is the next pass's.
  for (auto& [key, move] : moves) plan_move(std::move(move));
}

/// As many references as a refcount holds stay; the others get copies, for as many each.
void UnsharePlan::plan_overfull(HostCluster cluster,
                                const std::vector<Owners::Reference>& references) {
  uint64_t staying = 0;
  std::map<std::pair<uint64_t, uint64_t>, std::vector<UnshareMove>>
      copies;  // As in plan_cluster().
  for (const Owners::Reference& reference : references) {
    const uint64_t weight = use_of(reference.l2_table).weight;
    if (weight > references_max()) return;  // The table's copies come first.
    const bool compressed = reference.compressed();
    if (compressed && is_moved(reference)) continue;
    if (weight <= references_max() - staying) {
      staying += weight;
      continue;
    }
    const uint64_t stream = compressed ? reference.entry.descriptor & ~kCopied : 0;
    std::vector<UnshareMove>& of_this = copies[{reference.guest.value, stream}];
    if (of_this.empty() || of_this.back().weight > references_max() - weight) {
      of_this.emplace_back();
    }
    if (!compressed) {
      add_data(of_this.back(), cluster, reference);
    } else if (!add_stream(of_this.back(), reference)) {
      return;
    }
  }
  for (auto& [key, of_this] : copies) {
    for (UnshareMove& move : of_this) plan_move(std::move(move));
  }
}

bool UnsharePlan::is_moved(const Owners::Reference& reference) const {
  return moved_streams_.contains({reference.l2_table, reference.guest.value});
}

void UnsharePlan::add_data(UnshareMove& move, HostCluster cluster,
                           const Owners::Reference& reference) const {
  move.what = UnshareMove::What::data;
  move.from = geometry().start_of(cluster);
  move.length = geometry().cluster_size();
  add_entry(move, reference);
}

/// False: it is none.
bool UnsharePlan::add_stream(UnshareMove& move, const Owners::Reference& reference) {
  const Result<Mapping> mapping = decode_l2(reference.entry, geometry());
  if (!mapping) return false;
  moved_streams_.insert({reference.l2_table, reference.guest.value});
  move.what = UnshareMove::What::stream;
  move.from = mapping->compressed_at;
  move.length = mapping->compressed_size;
  move.clusters = hosts(*mapping, geometry()).count;
  add_entry(move, reference);
  return true;
}

void UnsharePlan::add_entry(UnshareMove& move, const Owners::Reference& reference) const {
  const L2Use& use = use_of(reference.l2_table);
  move.guest = reference.guest;
  move.weight += use.weight;
  move.active += use.active;
  move.entries.push_back(reference);
}

void UnsharePlan::doubt(Finding::Guest guest, const L1Table& l1) {
  guest.active = l1.active;
  if (!l1.active) guest.snapshots.push_back(l1.snapshot);
  log_.in_doubt.push_back(std::move(guest));
}

}  // namespace byre
