// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/owners.h"

#include <algorithm>

#include "format/l1.h"

namespace byre {
namespace {

constexpr uint64_t kPiece = MiB;
}  // namespace

Task<void> Owners::find(const std::vector<HostCluster>& clusters, uint64_t references_max) {
  for (const HostCluster cluster : clusters) references_[cluster.value];
  const VisitL2 visit = [&](const L2Use& use, MutableBytes table) {
    if (references_.contains(use.cluster)) tables_[use.cluster];
    visit_l2(use, table, references_max);
  };
  co_await each_l2(file_, found_, visit, hooks_);
  if (tables_.empty()) co_return;
  for (size_t i = 0; i < found_.l1_tables.size(); ++i) co_await visit_l1(i);
}

void Owners::visit_l2(const L2Use& use, Bytes table, uint64_t references_max) {
  const Geometry& geometry = found_.geometry();
  const uint64_t entries = geometry.l2_entries();
  for (uint64_t i = 0; i < entries; ++i) {
    const L2Entry entry = load_l2(table, i, geometry);
    if (entry.descriptor == 0) continue;
    const Reference reference{
        .l2_table = use.cluster, .guest = geometry.first_of_l1(use.l1_index) + i, .entry = entry};
    if (!reference.compressed()) {
      const HostOffset at{entry.descriptor & kOffsetMask};
      if (at.value == 0 || geometry.data_file) continue;
      const uint64_t cluster = geometry.cluster_of(at).value;
      add(cluster, reference, references_max);
      // What is not aligned lies in two.
      if (!geometry.aligned(at)) add(cluster + 1, reference, references_max);
      continue;
    }
    const Result<Mapping> mapping = decode_l2(entry, geometry);
    if (!mapping) continue;
    const HostSpan touched = hosts(*mapping, geometry);
    for (uint64_t j = 0; j < touched.count; ++j) {
      add(touched.first.value + j, reference, references_max);
    }
  }
}

void Owners::add(uint64_t cluster, const Reference& reference, uint64_t references_max) {
  const auto found = references_.find(cluster);
  if (found == references_.end()) return;
  References& references = found->second;
  ++references.count;
  if (references.kept.size() >= references_max) return;
  references.kept.push_back(reference);
  tables_[reference.l2_table];
}

Task<void> Owners::visit_l1(size_t index) {
  const L1Table& l1 = found_.l1_tables[index];
  std::vector<std::byte> piece;
  for (uint64_t done = 0; done < l1.entries;) {
    const uint64_t count = std::min(l1.entries - done, kPiece / 8);
    piece.resize(count * 8);
    co_await read_padded(file_, found_.file_size(), l1.at.value + done * 8, piece, IoTag::l1_load);
    for (uint64_t i = 0; i < count; ++i) {
      const HostOffset at{load_l1_entry(piece, i) & kOffsetMask};
      if (at.value == 0 || !found_.geometry().aligned(at)) continue;
      const auto found = tables_.find(found_.geometry().cluster_of(at).value);
      if (found == tables_.end()) continue;
      found->second.push_back(
          {.at = {l1.at.value + (done + i) * 8}, .index = done + i, .table = index});
    }
    done += count;
  }
}

const Owners::References& Owners::of(HostCluster cluster) const {
  static const References kNone;
  const auto found = references_.find(cluster.value);
  return found == references_.end() ? kNone : found->second;
}

const std::vector<Owners::L1Reference>& Owners::of_table(uint64_t l2_table) const {
  static const std::vector<L1Reference> kNone;
  const auto found = tables_.find(l2_table);
  return found == tables_.end() ? kNone : found->second;
}

void Owners::views_of(uint64_t l2_table, Finding::Guest& guest) const {
  guest.active = false;
  guest.snapshots.clear();
  for (const L1Reference& reference : of_table(l2_table)) {
    const L1Table& l1 = found_.l1_tables[reference.table];
    if (l1.active) {
      guest.active = true;
    } else if (guest.snapshots.size() < Finding::kGuestsMax) {
      guest.snapshots.push_back(l1.snapshot);
    }
  }
}

}  // namespace byre
