// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/map.h"

#include "base/checked.h"

namespace byre {

Map::Map(ReadyQueue& ready, Device& file, const Geometry& geometry, Stages& stages,
         MetadataSet& metadata, uint64_t cache_bytes, std::vector<uint64_t> l1)
    : file_(file),
      geometry_(geometry),
      stages_(stages),
      metadata_(metadata),
      cache_(ready, file, geometry.cluster_size(), cache_bytes),
      l1_(std::move(l1)),
      prepare_mutex_(ready) {}

Result<L1Entry> Map::table_of(uint64_t l1_index) const {
  if (l1_index >= l1_.size()) return L1Entry{};
  Result<L1Entry> entry = decode_l1(l1_[l1_index], geometry_);
  if (!entry) return std::move(entry).error().while_doing(cat("L1 entry ", l1_index));
  if (entry->l2 && !ends_known_) {
    const uint64_t at = geometry_.start_of(*entry->l2).value;
    if (!within(at, geometry_.cluster_size(), file_.size())) {
      return corrupt("L1 entry ", l1_index, ": L2 table at ", hex(at),
                     " passes the end of the file at ", hex(file_.size()));
    }
  }
  return entry;
}

Result<Mapping> Map::decode(GuestCluster cluster, L2Entry entry, bool copied) const {
  Result<Mapping> mapping = decode_l2(entry, geometry_);
  if (!mapping) {
    return std::move(mapping).error().while_doing(
        cat("guest offset ", geometry_.start_of(cluster)));
  }
  // An L2 table that is shared with a snapshot shares its clusters, whatever its entries say.
  if (!copied && !geometry_.data_file) mapping->copied = false;
  if (geometry_.data_file) {
    if (!at_own_offset(*mapping, cluster)) {
      return corrupt("guest offset ", geometry_.start_of(cluster), ": points to ",
                     geometry_.start_of(*mapping->host),
                     " in the data file instead of its own offset");
    }
    return mapping;
  }
  if (ends_known_) return mapping;
  const HostSpan span = hosts(*mapping, geometry_);
  if (span.count != 0 && geometry_.start_of(span.first).value >= file_.size()) {
    return corrupt("guest offset ", geometry_.start_of(cluster), ": host cluster at ",
                   geometry_.start_of(span.first), " lies behind the end of the file at ",
                   hex(file_.size()), "; the image was truncated");
  }
  return mapping;
}

HostOffset Map::slice_of(HostCluster table, GuestCluster cluster) const {
  const uint64_t at = geometry_.l2_index(cluster) * geometry_.l2_entry_size();
  return geometry_.start_of(table) + round_down(at, cache_.slice_size());
}

size_t Map::index_in_slice(GuestCluster cluster) const {
  return (geometry_.l2_index(cluster) * geometry_.l2_entry_size() % cache_.slice_size()) /
         geometry_.l2_entry_size();
}

Result<std::optional<Map::Found>> Map::find_now(GuestCluster cluster) {
  if (const Stages::Staged staged = stages_.find(cluster); staged.entry) {
    BYRE_TRY(mapping, decode(cluster, *staged.entry, true));
    return std::optional(Found{mapping, false, staged.generation->data_durable});
  }
  if (const LostRanges::Range* range = lost_.find(cluster))
    return lost_.error(*range, cluster, geometry_);
  BYRE_TRY(table, table_of(geometry_.l1_index(cluster)));
  if (!table.l2) return std::optional(Found{});
  const TableCache::Ref slice = cache_.find(slice_of(*table.l2, cluster));
  if (!slice) return std::optional<Found>();
  BYRE_TRY(mapping, decode(cluster, load_l2(slice.bytes(), index_in_slice(cluster), geometry_),
                           table.copied));
  return std::optional(Found{mapping});
}

Task<Map::Found> Map::find(GuestCluster cluster) {
  for (;;) {
    Result<std::optional<Found>> found = find_now(cluster);
    if (!found) co_return std::move(found).error();
    if (*found) co_return **found;
    // find_now() got as far as the L1 entry, so it is sound.
    const Result<L1Entry> table = table_of(geometry_.l1_index(cluster));
    const TableCache::Ref slice = co_await cache_.get(slice_of(*table->l2, cluster));
    // Look again while the slice is held: the staged entries may have changed during the load.
    found = find_now(cluster);
    if (!found) co_return std::move(found).error();
    if (*found) co_return **found;
  }
}

/// What a walk over the tables reads of one at a time.
static constexpr uint64_t kReadAhead = 64 * KiB;

Result<std::optional<Map::Run>> Map::find_run_now(GuestCluster cluster, uint64_t count) {
  BYRE_TRY(found, find_now(cluster));
  if (!found) return std::optional<Run>();
  Run run{found->mapping};
  // What is staged lies over the entries, and what is lost over both: those go one by one.
  const bool is_plain = stages_.no_entries() && lost_.empty() && !run.mapping.compressed;
  if (!is_plain || count <= 1) return std::optional(run);
  BYRE_TRY(table, table_of(geometry_.l1_index(cluster)));
  if (!table.l2) return std::optional(run);
  const TableCache::Ref slice = cache_.find(slice_of(*table.l2, cluster));
  const size_t first = index_in_slice(cluster);
  count = std::min(count, cache_.slice_size() / geometry_.l2_entry_size() - first);
  if (run.mapping.host && !geometry_.data_file && !ends_known_) {
    // Those that lead behind the end of the file are asked for by themselves, and refused.
    const uint64_t there = file_.size() - geometry_.start_of(*run.mapping.host).value;
    count = std::min(count, geometry_.clusters_for(there));
  }
  run.clusters = count_alike(slice.bytes(), first, count, run.mapping, geometry_);
  return std::optional(run);
}

Task<Map::Run> Map::find_run(GuestCluster cluster, uint64_t count) {
  for (;;) {
    Result<std::optional<Run>> run = find_run_now(cluster, count);
    if (!run) co_return std::move(run).error();
    if (*run) co_return **run;
    // As in find().
    const Result<L1Entry> table = table_of(geometry_.l1_index(cluster));
    const HostOffset at = slice_of(*table->l2, cluster);
    const uint64_t left = geometry_.start_of(*table->l2) + geometry_.cluster_size() - at;
    const uint64_t asked =
        (index_in_slice(cluster) + std::min(count, left)) * geometry_.l2_entry_size();
    const TableCache::Ref slice = co_await cache_.get(at, std::min({left, asked, kReadAhead}));
    run = find_run_now(cluster, count);
    if (!run) co_return std::move(run).error();
    if (*run) co_return **run;
  }
}

bool Map::table_missing(GuestCluster cluster) const {
  const uint64_t index = geometry_.l1_index(cluster);
  return (index >= l1_.size() || (l1_[index] & kOffsetMask) == 0) &&
         !stages_.has_new_l2_table(index);
}

Task<void> Map::prepare(uint64_t l1_index, Allocator& allocator) {
  if (verified_.contains(l1_index) || stages_.has_new_l2_table(l1_index)) co_return;
  const Mutex::Hold hold = co_await prepare_mutex_.lock();
  if (verified_.contains(l1_index) || stages_.has_new_l2_table(l1_index)) co_return;
  const L1Entry old = co_await table_of(l1_index);
  if (old.l2) co_await allocator.load({*old.l2, 1});
  if (old.l2 && old.copied) {
    const uint64_t count = allocator.refcount(*old.l2);
    if (count != 1) {
      co_await fail(corrupt("L2 table at ", geometry_.start_of(*old.l2),
                            ": COPIED is set, but its refcount is ", count,
                            "; writing would change a snapshot; run check -r all"));
    }
    co_await file_.allocate(geometry_.start_of(*old.l2).value, geometry_.cluster_size())
        .doing("L2 table");
    verified_.insert(l1_index);
    co_return;
  }
  co_await stage_copy(l1_index, old, allocator);
}

Task<void> Map::stage_copy(uint64_t l1_index, const L1Entry& old, Allocator& allocator) {
  Reservation fresh = co_await allocator.reserve(1, Allocator::Use::metadata);
  metadata_.add(fresh.first());
  stages_.open.l2_tables[l1_index] = NewL2Table{fresh.first(), old.l2};
  fresh.keep();
  if (old.l2) allocator.release({*old.l2, 1});
}

Task<void> Map::move_table(uint64_t l1_index, Allocator& allocator) {
  const Mutex::Hold hold = co_await prepare_mutex_.lock();
  if (stages_.has_new_l2_table(l1_index)) co_return;
  const L1Entry old = co_await table_of(l1_index);
  if (!old.l2) co_return;
  co_await allocator.load({*old.l2, 1});
  co_await stage_copy(l1_index, old, allocator);
}

void Map::stage(GuestCluster cluster, const Mapping& mapping) {
  stages_.open.entries[cluster] = encode_l2(mapping, geometry_);
  if (!lost_.empty()) lost_.forget(cluster);
  stages_.open.links_data |= mapping.allocated != 0 || mapping.compressed;
}

void Map::replace_l1(std::vector<uint64_t> l1) {
  for (uint64_t i = 0; i < l1_.size(); ++i) {
    if (i >= l1.size() || l1[i] != l1_[i]) verified_.erase(i);
  }
  l1_ = std::move(l1);
}

void Map::reset_l1(std::vector<uint64_t> l1) {
  BYRE_ASSERT(stages_.open.entries.empty() && stages_.open.l2_tables.empty());
  BYRE_ASSERT(!stages_.committing ||
              (stages_.committing->entries.empty() && stages_.committing->l2_tables.empty()));
  l1_ = std::move(l1);
  verified_.clear();
  cache_.forget_all();
}

void Map::set_l1(uint64_t index, const L1Entry& entry) {
  l1_[index] = encode_l1(entry, geometry_);
  verified_.insert(index);
}

}  // namespace byre
