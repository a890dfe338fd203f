// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/l1_scan.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "format/l1.h"

namespace byre {
namespace {

/// Tables are read in pieces of this size.
constexpr uint64_t kPiece = MiB;

}  // namespace

Task<void> L1Scan::count_active() {
  const HostOffset at = result_.head.header.l1_offset;
  const uint64_t entries = result_.head.header.l1_entries;
  const uint64_t needed = geometry().l1_entries_for(result_.head.header.size);
  result_.l1_behind_end = entries != 0 && result_.references.is_behind_end(at.value, entries * 8);
  result_.l1_too_short = entries < needed;
  const FindingPlace place{.kind = FindingKind::behind_end,
                           .structure = "L1 table",
                           .at = at.value,
                           .length = entries * 8,
                           .cause = Cause::truncated_file};
  if (result_.l1_behind_end) {
    result_.references.note_behind_end(at.value);
    scan_.damage(1, place, "L1 table at host offset ", at, ": ", entries * 8,
                 " bytes are not all there: the file ends before");
  }
  if (result_.l1_too_short) {
    scan_.damage(1, place, "L1 table of ", entries, " entries: a disk of ",
                 result_.head.header.size, " bytes needs ", needed);
  }
  const uint64_t there = at.value < result_.file_size() ? (result_.file_size() - at.value) / 8 : 0;
  L1Table l1{.at = at, .entries = result_.l1_behind_end ? there : entries, .active = true};
  co_await count(std::move(l1), 0, "");
}

Task<bool> L1Scan::count_of_snapshot(HostOffset at, uint64_t entries, uint64_t identity,
                                     std::string what, std::string snapshot) {
  L1Table l1{.at = at, .entries = entries, .snapshot = std::move(snapshot)};
  co_return co_await count(std::move(l1), identity, std::move(what));
}

Task<bool> L1Scan::count(L1Table l1, uint64_t identity, std::string what) {
  const uint64_t size = l1.entries * 8;
  if (!scan_.count_range(l1.at.value, size, Owner::l1, identity, 1, what + "L1 table")) {
    co_return false;
  }
  result_.l1_tables.push_back(l1);
  std::vector<std::byte> piece;
  for (uint64_t done = 0; done < l1.entries;) {
    const uint64_t count = std::min(l1.entries - done, kPiece / 8);
    piece.resize(count * 8);
    const Result<void> read =
        co_await scan_.read_padded(l1.at.value + done * 8, piece, IoTag::l1_load).result();
    if (!read) {
      scan_.unreadable(read.error());
      co_return false;
    }
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t entry = load_l1_entry(piece, i);
      if (l1.active) result_.active_l1.push_back(entry);
      if (entry != 0) count_entry(entry, done + i, l1, what);
    }
    done += count;
  }
  co_return true;
}

void L1Scan::count_entry(uint64_t entry, uint64_t index, const L1Table& l1, std::string_view what) {
  FindingPlace place{.structure = "L1 entry",
                     .at = l1.at.value + index * 8,
                     .length = 8,
                     .guest = geometry().first_of_l1(index),
                     .guest_clusters = geometry().l2_entries(),
                     .l1 = &l1,
                     .entry = entry};
  const auto broken = [&](FindingKind kind, const auto&... parts) {
    place.kind = kind;
    scan_.lost(1, place, what, "L1 entry ", index, ": ", parts...);
  };
  if ((entry & ~(kCopied | kOffsetMask)) != 0) {
    broken(FindingKind::reserved_bits, hex(entry), ": reserved bits are set");
  }
  const HostOffset at{entry & kOffsetMask};
  if (at.value == 0) {
    // There was one: what it pointed to is still there, as a leak.
    if (entry == kCopied) broken(FindingKind::stray_flag, "COPIED, but no L2 table");
    return;
  }
  if (!geometry().aligned(at)) {
    broken(FindingKind::misaligned, "L2 table at ", at, " is not cluster aligned");
    scan_.count_range(at.value, geometry().cluster_size(), Owner::l2, index, 1, "L2 table");
    if (l1.active)
      result_.behind_end[geometry().cluster_of(at)] = false;  // Its flag is looked at, too.
    result_.copied_mismatch |= l1.active;
    return;
  }
  if (at.value >= result_.file_size()) {
    result_.references.note_behind_end(at.value);
    place.cause = Cause::truncated_file;
    broken(FindingKind::behind_end, "L2 table at ", at, " lies behind the end of the file");
    if (l1.active) result_.behind_end[geometry().cluster_of(at)] = false;
    result_.copied_mismatch |= l1.active;
    return;
  }
  const bool copied = (entry & kCopied) != 0;
  result_.l2_uses.push_back({.cluster = geometry().cluster_of(at).value,
                             .weight = 1,
                             .active = l1.active,
                             .l1_index = static_cast<uint32_t>(index),
                             .copied_set = l1.active && copied,
                             .copied_clear = l1.active && !copied});
  // Snapshots share most of their tables: keep the list as short as the tables are many.
  if (result_.l2_uses.size() >= std::max<size_t>(1 << 16, 2 * uses_merged_)) merge_uses();
}

/// Sorts the uses by place in the file, and makes one of those of the same table.
void L1Scan::merge_uses() {
  std::vector<L2Use>& uses = result_.l2_uses;
  std::sort(uses.begin(), uses.end(), [](const L2Use& a, const L2Use& b) {
    return a.cluster != b.cluster ? a.cluster < b.cluster : a.l1_index < b.l1_index;
  });
  size_t count = 0;
  for (const L2Use& use : uses) {
    if (count == 0 || uses[count - 1].cluster != use.cluster) {
      uses[count++] = use;
    } else {
      merge_use(use, uses[count - 1]);
    }
  }
  uses.resize(count);
  uses_merged_ = count;
}

void L1Scan::merge_use(const L2Use& use, L2Use& same) {
  if (same.l1_index != use.l1_index && !same.shared) {
    same.shared = true;
    FindingPlace place = scan_.place_of(HostCluster{use.cluster});
    place.kind = FindingKind::shared_table;
    place.structure = "L2 table";
    place.cause = Cause::failed_l1_update;
    scan_.damage_beyond_qemu(1, place, "L1 entries ", same.l1_index, " and ", use.l1_index,
                             " point to the same L2 table at ",
                             geometry().start_of(HostCluster{use.cluster}));
  }
  same.weight += use.weight;
  same.active += use.active;
  same.copied_set |= use.copied_set;
  same.copied_clear |= use.copied_clear;
  same.shared |= use.shared;
}

void L1Scan::count_l2_tables() {
  merge_uses();
  ReferenceCounts& counts = result_.references.counts;
  for (const L2Use& use : result_.l2_uses) {
    const HostCluster cluster{use.cluster};
    const std::optional<Owner> other = counts.add(cluster, Owner::l2, use.l1_index, use.weight);
    if (other) {
      FindingPlace place = scan_.place_of(cluster);
      place.structure = "L2 table";
      place.guest = geometry().first_of_l1(use.l1_index);
      place.guest_clusters = geometry().l2_entries();
      place.use = &use;
      scan_.damage_beyond_qemu(1, place, "host cluster at ", geometry().start_of(cluster),
                               ": L2 table ", use.l1_index, " lies in ", name_of(*other));
    }
    ReferenceCounts::Cell& cell = *counts.find(cluster);
    if (use.shared) counts.set_aliased(cell);
    if (use.copied_set) cell.see_copied(true);
    if (use.copied_clear) cell.see_copied(false);
  }
}

}  // namespace byre
