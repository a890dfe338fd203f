// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/refcount_compare.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "format/refcount.h"

namespace byre {
namespace {

class RefcountCompare {
 public:
  explicit RefcountCompare(ScanContext& scan) : scan_(scan), result_(scan.result()) {}
  Task<void> run();

 private:
  const Geometry& geometry() const { return scan_.geometry(); }
  Task<bool> count_refcounts();
  void count_block(uint64_t index);
  Task<void> compare();
  std::vector<uint64_t> indices_to_compare(const std::vector<uint64_t>& regions) const;
  bool is_readable(uint64_t index) const {
    return result_.blocks[index] == BlockState::sound ||
           result_.blocks[index] == BlockState::suspect;
  }
  void compare_block(uint64_t index, Bytes block, const std::vector<uint64_t>& regions);
  void compare_cluster(HostCluster cluster, uint64_t refcount, bool writable);
  void add_too_small(HostCluster cluster, uint64_t refcount, uint64_t references, bool writable);
  void add_too_large(HostCluster cluster, uint64_t refcount, uint64_t references);
  void in_use(HostCluster cluster) { highest_ = std::max(highest_, cluster.value); }
  Task<void> check_behind_end();

  ScanContext& scan_;
  ScanResult& result_;
  uint64_t highest_ = 0;
};

Task<void> RefcountCompare::run() {
  if (co_await count_refcounts()) co_await compare();
  if (!result_.behind_end.empty()) co_await check_behind_end();
  result_.report.image_end_offset = (highest_ + 1) << geometry().cluster_bits;
}

/// The refcount table and its blocks, as owners of clusters.  False when the disk did not give the
/// table.
Task<bool> RefcountCompare::count_refcounts() {
  const uint64_t at = result_.head.header.refcount_table_offset.value;
  const uint64_t size = uint64_t{result_.head.header.refcount_table_clusters}
                        << geometry().cluster_bits;
  FindingPlace place{.kind = FindingKind::refcount_table, .structure = "refcount table", .at = at};
  if (const Result<void> sound = check_refcount_table(result_.head.header); !sound) {
    scan_.refcounts_unsound(place, sound.error().message());
    co_return true;
  }
  // Not damage: all that it could tell is counted here anyway.
  if (!within(at, size, round_up(result_.file_size(), geometry().cluster_size()))) {
    place.length = size;
    scan_.refcounts_unsound(place, "refcount table at ", hex(at),
                            " lies behind the end of the file");
    co_return true;
  }
  if (!scan_.count_range(at, size, Owner::refcounts, 0, 1, "refcount table")) {
    result_.refcounts_unsound = true;
    co_return true;
  }
  for (uint64_t i = 0; i < result_.head.header.refcount_table_clusters; ++i) {
    const HostCluster cluster = geometry().cluster_of(HostOffset{at}) + i;
    result_.refcount_clusters.push_back(cluster);
    if (result_.references.counts.find(cluster)->aliased) result_.refcounts_unsound = true;
  }
  std::vector<std::byte> table(size);
  Result<void> read = co_await scan_.read_padded(at, table, IoTag::refcount_table_load).result();
  if (!read) {
    scan_.unreadable(std::move(read).error().while_doing(cat("refcount table at ", hex(at))));
    co_return false;
  }
  for (uint64_t i = 0; i < size / 8; ++i) {
    result_.refcount_table.push_back(load_refcount_table_entry(table, i));
  }
  result_.blocks.assign(result_.refcount_table.size(), BlockState::none);
  for (uint64_t i = 0; i < result_.blocks.size(); ++i) {
    if (result_.refcount_table[i] != 0) count_block(i);
  }
  co_return true;
}

void RefcountCompare::count_block(uint64_t index) {
  const uint64_t entry = result_.refcount_table[index];
  const auto unsound = [&](BlockState block, const auto&... parts) {
    result_.blocks[index] = block;
    scan_.refcounts_unsound({.kind = FindingKind::refcount_block,
                             .structure = "refcount block",
                             .at = entry,
                             .length = geometry().cluster_size(),
                             .entry = entry},
                            "refcount block ", index, " at ", hex(entry), ": ", parts...);
  };
  if (const auto decoded = decode_refcount_table_entry(entry, geometry()); !decoded) {
    return unsound(BlockState::lost, decoded.error().message());
  }
  // Behind the end everything reads as zero.
  if (entry >= result_.file_size())
    return unsound(BlockState::none, "lies behind the end of the file");

  const HostCluster cluster = result_.block_at(index);
  const std::optional<Owner> other =
      result_.references.counts.add(cluster, Owner::refcounts, index + 1);
  result_.refcount_clusters.push_back(cluster);
  if (other || result_.references.counts.references(cluster) != 1) {
    result_.damaged = true;
    return unsound(BlockState::suspect, "lies in ", name_of(other.value_or(Owner::refcounts)));
  }
  result_.blocks[index] = BlockState::sound;
}

Task<void> RefcountCompare::compare() {
  const std::vector<uint64_t> regions = result_.references.counts.regions();
  const std::vector<uint64_t> indices = indices_to_compare(regions);
  TableReader reader(scan_.file(), geometry(), result_.file_size());
  // What has no block is read behind the end of the file: as zeros.
  const auto block_of = [&](uint64_t i) {
    return is_readable(indices[i]) ? result_.block_at(indices[i])
                                   : HostCluster{result_.references.clusters};
  };
  const auto compare_table = [&](uint64_t i, MutableBytes block) {
    compare_block(indices[i], is_readable(indices[i]) ? Bytes(block) : Bytes(), regions);
  };
  const auto failed = [&](uint64_t i, const Error& error) {
    const HostCluster at = block_of(i);
    result_.blocks[indices[i]] = BlockState::lost;
    compare_block(indices[i], {}, regions);
    scan_.unreadable(unreadable_table(error, "refcount block", at, geometry()));
  };
  co_await reader.each({.count = indices.size(), .cluster = block_of, .tag = IoTag::refcount_load},
                       compare_table, failed,
                       scan_.pace_of(indices.size(), kProgressOfCounting, 1));
  // What no table entry covers.
  const uint64_t covered = geometry().first_of_refcount_table(result_.blocks.size()).value;
  for (const uint64_t region : regions) {
    for (uint64_t i = 0; i < ReferenceCounts::kRegion; ++i) {
      const HostCluster cluster{region * ReferenceCounts::kRegion + i};
      if (cluster.value >= covered && cluster.value < result_.references.clusters)
        compare_cluster(cluster, 0, false);
    }
  }
}

/// Entries of the refcount table that have a block, or that count clusters which are referenced.
std::vector<uint64_t> RefcountCompare::indices_to_compare(
    const std::vector<uint64_t>& regions) const {
  std::vector<uint64_t> indices;
  auto region = regions.begin();
  for (uint64_t i = 0; i < result_.blocks.size(); ++i) {
    if (geometry().first_of_refcount_table(i).value >= result_.references.clusters) break;
    const uint64_t end = geometry().first_of_refcount_table(i + 1).value;
    const bool referenced = region != regions.end() && *region * ReferenceCounts::kRegion < end;
    while (region != regions.end() && *region * ReferenceCounts::kRegion < end) ++region;
    if (referenced || result_.blocks[i] != BlockState::none) indices.push_back(i);
  }
  return indices;
}

/// `block` is empty when there is none or it could not be read.
void RefcountCompare::compare_block(uint64_t index, Bytes block,
                                    const std::vector<uint64_t>& regions) {
  const bool lost = result_.blocks[index] == BlockState::lost;
  const bool writable = result_.blocks[index] == BlockState::sound;
  result_.references.each_used(index, block, regions, [&](HostCluster cluster, uint64_t refcount) {
    if (!lost) return compare_cluster(cluster, refcount, writable);
    if (result_.references.counts.references(cluster) != 0) in_use(cluster);
  });
}

void RefcountCompare::compare_cluster(HostCluster cluster, uint64_t refcount, bool writable) {
  ReferenceCounts::Cell* cell = result_.references.counts.find(cluster);
  if (cell && refcount != 0 && ReferenceCounts::is_exactly(*cell, refcount)) {  // As it should be.
    in_use(cluster);
    cell->set_on_disk(refcount);
    result_.copied_mismatch |= (refcount == 1 ? cell->copied_clear : cell->copied_set) != 0;
    return;
  }
  const uint64_t references = cell ? result_.references.counts.references_of(cluster, *cell) : 0;
  if (references != 0 || refcount != 0) in_use(cluster);
  if (cell) {
    cell->set_on_disk(refcount);
    if (refcount == 1 ? cell->copied_clear : cell->copied_set) result_.copied_mismatch = true;
  }
  if (refcount < references) {
    add_too_small(cluster, refcount, references, writable);
  } else if (refcount > references) {
    add_too_large(cluster, refcount, references);
  }
}

void RefcountCompare::add_too_small(HostCluster cluster, uint64_t refcount, uint64_t references,
                                    bool writable) {
  const Owner owner = result_.references.counts.find(cluster)->owner();
  ++result_.report.corruptions;
  result_.undercounted = true;
  if (references > refcount_max(geometry().refcount_order)) {
    result_.damaged = result_.overfull = true;
  }
  if (!writable) result_.refcounts_unsound = true;
  FindingPlace place = scan_.place_of(cluster);
  place.kind = FindingKind::refcount_too_small;
  place.structure = name_of(owner);
  place.repair = writable ? RepairKind::set_refcount : RepairKind::rewrite_counts;
  const bool second_of_region = geometry().refcount_block_index(cluster) == 1;
  if (refcount == 0 && owner == Owner::refcounts && second_of_region) {
    place.cause = Cause::vmd_refcount_block;
  }
  scan_.add_finding(Severity::corruption, place, "host cluster at ", geometry().start_of(cluster),
                    ": refcount is ", refcount, ", references are ", references, " (",
                    name_of(owner), ")");
}

void RefcountCompare::add_too_large(HostCluster cluster, uint64_t refcount, uint64_t references) {
  const ReferenceCounts::Cell* cell = result_.references.counts.find(cluster);
  ++result_.report.leaks;
  const bool is_orphan = references == 0;
  if (is_orphan) {
    std::vector<HostSpan>& orphans = result_.orphans;
    if (!orphans.empty() && orphans.back().end() == cluster) {
      ++orphans.back().count;
    } else {
      orphans.push_back({cluster, 1});
    }
  }
  const bool remembered = is_orphan && result_.kept.contains(cluster);
  if (remembered) ++result_.orphans_remembered;
  FindingPlace place = scan_.place_of(cluster);
  place.kind = FindingKind::refcount_too_large;
  place.structure = cell ? name_of(cell->owner()) : name_of(Owner::nobody);
  place.repair = result_.damaged || remembered
                     ? RepairKind::set_aside
                     : (is_orphan ? RepairKind::free_cluster : RepairKind::set_refcount);
  place.cause = result_.damaged ? Cause::unknown : Cause::cut_short;
  scan_.add_finding(Severity::leak, place, "host cluster at ", geometry().start_of(cluster),
                    ": refcount is ", refcount, ", references are ", references,
                    remembered ? "; an earlier repair has kept it" : "");
}

/// In the order of the clusters, so that each block is read once.
Task<void> RefcountCompare::check_behind_end() {
  std::vector<std::byte> block(geometry().cluster_size());
  uint64_t loaded = UINT64_MAX;
  for (auto& [cluster, counted_once] : result_.behind_end) {
    const uint64_t index = geometry().refcount_table_index(cluster);
    if (index >= result_.blocks.size()) co_return;
    if (!is_readable(index)) continue;
    if (index != loaded) {
      const Result<void> read = co_await read_block(scan_.file(), result_, index, block).result();
      if (!read) {
        scan_.unreadable(read.error());
        co_return;
      }
      loaded = index;
    }
    const uint64_t at = geometry().refcount_block_index(cluster);
    counted_once = get_refcount(block, at, geometry().refcount_order) == 1;
  }
}

}  // namespace

Task<void> read_block(Device& file, const ScanResult& found, uint64_t index, MutableBytes block) {
  const uint64_t at = found.geometry().start_of(found.block_at(index)).value;
  co_await read_padded(file, found.file_size(), at, block, IoTag::refcount_load)
      .doing("refcount block ", index, " at ", hex(at));
}

Task<void> compare_refcounts(ScanContext& scan) {
  RefcountCompare compare(scan);
  co_await compare.run();
}

}  // namespace byre
