// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/repair.h"

#include <algorithm>

#include "format/refcount.h"
#include "qcow2/repair/copied_repair.h"
#include "qcow2/repair/keep.h"
#include "qcow2/repair/table_change.h"

namespace byre {
namespace {

bool only_flags_are_wrong(const RepairState& state) {
  return state.found.report.corruptions == state.found.copied_wrong;
}

bool may_free(const RepairState& state) {
  return !state.damaged && state.found.report.check_errors == 0;
}

/// How far into a file that cannot grow room is searched, in clusters.
constexpr uint64_t kSearched = uint64_t{1} << 26;

/// Clusters side by side that nothing uses.
struct Room {
  uint64_t first = 0;
  uint64_t count = 0;
};

/// New refcount structures: the table, behind it the blocks.
struct Layout {
  HostCluster table;
  uint64_t table_clusters = 0;
  std::vector<uint64_t> indices;  ///< Of the table's entries that have a block.
  HostCluster block(size_t i) const { return table + table_clusters + i; }
  uint64_t count() const { return table_clusters + indices.size(); }
  HostCluster end() const { return table + count(); }
};

class Repairer {
 public:
  Repairer(RepairState& state, RepairLog& log)
      : state_(state),
        log_(log),
        regions_(state.references.counts.regions()),
        keep_(!may_free(state)) {}

  Task<void> run(Repair repair) {
    if (repair == Repair::leaks) {
      co_await free_leaks();
    } else {
      std::optional<Layout> layout;
      if (state_.refcounts_unsound) {
        layout = co_await find_layout();
        if (!layout) keep_ = true;  // What is sound can still be raised.
      }
      if (layout) {
        co_await rebuild(*layout);
      } else {
        co_await repair_in_place();
      }
    }
    co_await sync();
    tell();
  }

  Task<std::vector<HostSpan>> room_for(uint64_t count) {
    std::vector<HostSpan> room;
    const uint64_t end =
        geometry().start_of(HostCluster{state_.references.clusters + count + 1}).value;
    if (state_.file.can_grow() && end <= state_.references.pointed_behind_end) {
      room.push_back({{state_.references.clusters}, count});
      co_return room;
    }
    keep_ = true;
    uint64_t found = 0;
    for (Room next{1, 0}; found < count;) {
      next = co_await next_room(next.first + next.count, count - found);
      if (next.count == 0) {
        co_await fail(Error(Errc::no_space, cat("no room for ", count, " clusters of copies")));
      }
      room.push_back({{next.first}, next.count});
      found += next.count;
    }
    co_return room;
  }

 private:
  void tell() {
    if (raised_ != 0) {
      log_.add({.kind = RepairAction::Kind::set_refcounts,
                .clusters = raised_,
                .text = cat("raise the refcounts of ", raised_, " clusters")});
    }
    if (lowered_ != 0) {
      log_.add({.kind = RepairAction::Kind::free_clusters,
                .clusters = lowered_,
                .text = cat("lower the refcounts of ", lowered_,
                            " clusters that have fewer references, or none")});
    }
  }
  enum class Change : uint8_t { raise, lower };
  static constexpr uint64_t kRegion = ReferenceCounts::kRegion;

  const Geometry& geometry() const { return state_.geometry(); }
  bool keeps_some() const { return keep_ || state_.keep_orphans || !state_.kept.empty(); }
  bool keeps(HostCluster cluster) const { return keep_ || state_.keeps(cluster); }
  /// The refcount that a cluster is to have in the end.
  uint64_t wanted(HostCluster cluster, uint64_t references, uint64_t refcount) const {
    const bool kept = keep_ || (references == 0 && state_.keeps(cluster));
    const uint64_t count = kept ? std::max(references, refcount) : references;
    return std::min(count, refcount_max(geometry().refcount_order));
  }

  Task<void> sync() { co_await state_.file.flush(IoTag::commit_sync); }

  // In place.

  /// COPIED flags as well, where nothing else is wrong: what is freed may leave one reference.
  Task<void> free_leaks() {
    const bool flags = only_flags_are_wrong(state_);
    if (flags && state_.found.copied_wrong != 0) {
      co_await change_copied(state_, CopiedChange::clear);
      co_await sync();
    }
    co_await rewrite_blocks(Change::lower);
    co_await sync();
    if (flags && (state_.found.copied_wrong != 0 || lowered_to_one_))
      co_await change_copied(state_, CopiedChange::set);
  }

  Task<void> repair_in_place() {
    co_await rewrite_blocks(Change::raise);
    co_await sync();
    co_await change_copied(state_, CopiedChange::clear);
    co_await sync();
    if (!keep_) co_await rewrite_blocks(Change::lower);
    co_await sync();
    co_await change_copied(state_, CopiedChange::set);
  }

  Task<void> rewrite_blocks(Change change) {
    for (uint64_t i = 0; i < state_.found.blocks.size(); ++i) {
      if (state_.found.blocks[i] != BlockState::sound) continue;
      const std::vector<std::byte> before = co_await state_.read_block(i);
      std::vector<std::byte> after = before;
      change_block(i, after, change);
      co_await write_changes(state_.file, geometry().start_of(state_.found.block_at(i)), before,
                             after, IoTag::refcount_update);
    }
  }

  void change_block(uint64_t index, MutableBytes block, Change change) {
    const uint64_t first = geometry().first_of_refcount_table(index).value;
    state_.references.each_used(
        index, block, regions_, [&](HostCluster cluster, uint64_t refcount) {
          const uint64_t in_the_end =
              wanted(cluster, state_.references.counts.references(cluster), refcount);
          if (ReferenceCounts::Cell* cell = state_.references.counts.find(cluster))
            cell->set_on_disk(in_the_end);
          if (change == Change::raise ? refcount < in_the_end : refcount > in_the_end) {
            set_refcount(block, cluster.value - first, geometry().refcount_order, in_the_end);
            ++(change == Change::raise ? raised_ : lowered_);
            lowered_to_one_ |= change == Change::lower && in_the_end == 1;
          }
        });
  }

  // Anew.

  Task<void> rebuild(const Layout& layout) {
    std::sort(state_.refcount_clusters.begin(), state_.refcount_clusters.end());
    for (const HostCluster cluster : state_.refcount_clusters)
      state_.references.counts.drop(cluster);

    log_.add({.kind = RepairAction::Kind::rewrite_refcounts,
              .host_offset = state_.head.header.refcount_table_offset.value,
              .to = geometry().start_of(layout.table).value,
              .length = layout.count() << geometry().cluster_bits,
              .clusters = layout.count(),
              .text = cat("write the refcount table and ", layout.indices.size(),
                          " refcount blocks anew, at ", geometry().start_of(layout.table))});
    co_await write_blocks(layout);
    co_await write_table(layout);
    co_await sync();
    co_await switch_to(layout);
    co_await sync();
    co_await change_copied(state_, CopiedChange::clear);
    co_await sync();
    co_await change_copied(state_, CopiedChange::set);
  }

  /// Behind the end of the file where it can grow and no entry points there; else in it.
  Task<std::optional<Layout>> find_layout() {
    if (state_.found.snapshots_lost) co_return std::optional<Layout>();
    const std::vector<uint64_t> indices = co_await needed_indices();
    std::optional<Layout> layout = lay_out({state_.references.clusters, UINT64_MAX}, indices);
    if (!layout) co_return layout;
    // A cluster apart: what begins just behind the end counts as there in part.
    const uint64_t end = geometry().start_of(layout->end() + 1).value;
    if (state_.file.can_grow() && end <= state_.references.pointed_behind_end) co_return layout;

    // Elsewhere it may take a block more or less.
    const uint64_t enough = layout->count() + 2;
    layout.reset();
    for (Room room{1, 0}; !layout;) {
      room = co_await next_room(room.first + room.count, enough);
      if (room.count == 0) break;
      layout = lay_out(room, indices);
    }
    co_return layout;
  }

  /// Table entries that need a block, the new structures' own not among them: what they take
  /// follows what is in the file, not how many entries an old table claims.
  Task<std::vector<uint64_t>> needed_indices() {
    std::vector<uint64_t> indices;
    for (const uint64_t region : regions_) {
      const HostCluster first{region * kRegion};
      if (first.value < state_.references.clusters)
        indices.push_back(geometry().refcount_table_index(first));
    }
    std::sort(indices.begin(), indices.end());
    indices.erase(std::unique(indices.begin(), indices.end()), indices.end());
    const size_t referenced = indices.size();
    for (uint64_t i = 0; keeps_some() && i < state_.found.blocks.size(); ++i) {
      if (state_.found.blocks[i] == BlockState::none) continue;
      if (std::binary_search(indices.begin(),
                             indices.begin() + static_cast<std::ptrdiff_t>(referenced), i))
        continue;
      if (co_await counts_something(i)) indices.push_back(i);
    }
    std::sort(indices.begin(), indices.end());
    co_return std::move(indices);
  }

  /// Does block `index` keep anything, of clusters that nothing refers to?
  Task<bool> counts_something(uint64_t index) {
    if (state_.found.blocks[index] == BlockState::sound) {
      co_return !is_zero(co_await state_.read_block(index));
    }
    // Its counts are not known: whatever there is in the file may be something.
    const uint64_t end =
        std::min(geometry().start_of(state_.references.block_end(index)).value, state_.file_size());
    for (uint64_t at = geometry().start_of(geometry().first_of_refcount_table(index)).value;
         at < end;) {
      const Extent extent = co_await state_.file.status(at, end - at);
      if (extent.data && !extent.zero) co_return true;
      at += std::max<uint64_t>(extent.length, 1);
    }
    co_return false;
  }

  /// Blocks count themselves and the table: add until all that is there is counted.  Fails when
  /// the room is too small, or the table would be too large.
  std::optional<Layout> lay_out(Room room, const std::vector<uint64_t>& indices) const {
    Layout layout{.table = {room.first}, .table_clusters = 1, .indices = indices};
    for (;;) {
      const uint64_t count_before = layout.count();
      const uint64_t first = geometry().refcount_table_index(layout.table);
      const uint64_t last = geometry().refcount_table_index(layout.end() - 1);
      for (uint64_t i = first; i <= last; ++i) {
        const auto at = std::lower_bound(layout.indices.begin(), layout.indices.end(), i);
        if (at == layout.indices.end() || *at != i) layout.indices.insert(at, i);
      }
      layout.table_clusters =
          std::max(layout.table_clusters, geometry().clusters_for((layout.indices.back() + 1) * 8));
      if (layout.table_clusters * geometry().cluster_size() > kRefcountTableSizeMax ||
          layout.count() > room.count || layout.end() > geometry().host_cluster_limit()) {
        return std::nullopt;
      }
      if (layout.count() == count_before) return layout;
    }
  }

  /// The next run of whole clusters of the file, from `from` on, that nothing refers to and no
  /// refcount claims (as far as that counts); `enough` of them at most.
  Task<Room> next_room(uint64_t from, uint64_t enough) {
    const uint64_t whole = state_.file_size() >> geometry().cluster_bits;
    const uint64_t stop = std::min(whole, kSearched);
    Room room;
    std::vector<std::byte> block;
    uint64_t loaded = UINT64_MAX;
    for (uint64_t cluster = from; cluster < stop && room.count < enough; ++cluster) {
      const uint64_t index = geometry().refcount_table_index({cluster});
      if (index != loaded && keeps_some() && state_of(index) == BlockState::sound) {
        block = co_await state_.read_block(index);
        loaded = index;
      }
      if (is_free(cluster, block)) {
        if (room.count == 0) room.first = cluster;
        ++room.count;
      } else if (room.count != 0) {
        break;
      }
    }
    co_return room;
  }

  bool is_free(uint64_t cluster, Bytes block) const {
    if (state_.references.counts.references({cluster}) != 0) return false;
    if (!keeps_some()) return true;
    switch (state_of(geometry().refcount_table_index({cluster}))) {
      case BlockState::none:
        return true;
      case BlockState::sound:
        return get_refcount(block, geometry().refcount_block_index({cluster}),
                            geometry().refcount_order) == 0;
      case BlockState::suspect:
      case BlockState::lost:
        return false;
    }
    return false;
  }

  /// Without a block all counts are zero; but where clusters are referenced all the same, it was
  /// lost.
  BlockState state_of(uint64_t index) const {
    const auto state =
        index < state_.found.blocks.size() ? state_.found.blocks[index] : BlockState::none;
    if (state != BlockState::none) return state;
    const uint64_t end = state_.geometry().first_of_refcount_table(index + 1).value;
    const auto region =
        std::lower_bound(regions_.begin(), regions_.end(),
                         state_.geometry().first_of_refcount_table(index).value / kRegion);
    const bool referenced = region != regions_.end() && *region * kRegion < end;
    return referenced ? BlockState::lost : BlockState::none;
  }

  Task<void> write_blocks(const Layout& layout) {
    for (size_t i = 0; i < layout.indices.size(); ++i) {
      const uint64_t index = layout.indices[i];
      std::vector<std::byte> old;
      if (keeps_some() && state_of(index) == BlockState::sound) {
        old = co_await state_.read_block(index);
      }
      const std::vector<std::byte> block = new_block(index, old, layout);
      co_await state_.file.write(geometry().start_of(layout.block(i)).value, block,
                                 {.tag = IoTag::refcount_allocate});
    }
  }

  std::vector<std::byte> new_block(uint64_t index, Bytes old, const Layout& layout) {
    // With what it counts behind the end of the file, where damaged entries may lead.
    std::vector<std::byte> block(old.begin(), old.end());
    block.resize(geometry().cluster_size());
    const uint32_t order = geometry().refcount_order;
    const uint64_t first = geometry().first_of_refcount_table(index).value;
    const auto set = [&](uint64_t cluster, uint64_t count) {
      set_refcount(block, cluster - first, order, count);
    };
    // What cannot be known is not given away.
    const bool unknown = keeps_some() && (state_of(index) == BlockState::suspect ||
                                          state_of(index) == BlockState::lost);
    for (uint64_t i = first; unknown && i < state_.references.block_end(index).value; ++i) {
      if (!is_old_structure({i}) && keeps({i})) set(i, 1);
    }
    state_.references.each_used(index, old, regions_, [&](HostCluster cluster, uint64_t refcount) {
      const uint64_t kept = is_old_structure(cluster) ? 0 : std::max<uint64_t>(refcount, unknown);
      const uint64_t count = wanted(cluster, state_.references.counts.references(cluster), kept);
      set(cluster.value, count);
      if (ReferenceCounts::Cell* cell = state_.references.counts.find(cluster))
        cell->set_on_disk(count);
    });
    const uint64_t end = first + geometry().refcount_block_entries();
    for (uint64_t i = std::max(first, layout.table.value); i < std::min(end, layout.end().value);
         ++i) {
      set(i, 1);
    }
    return block;
  }

  bool is_old_structure(HostCluster cluster) const {
    return std::binary_search(state_.refcount_clusters.begin(), state_.refcount_clusters.end(),
                              cluster);
  }

  Task<void> write_table(const Layout& layout) {
    std::vector<std::byte> table(layout.table_clusters * geometry().cluster_size());
    for (size_t i = 0; i < layout.indices.size(); ++i) {
      store_refcount_table_entry(table, layout.indices[i],
                                 encode_refcount_table_entry(layout.block(i), geometry()));
    }
    co_await state_.file.write(geometry().start_of(layout.table).value, table,
                               {.tag = IoTag::refcount_table_grow});
  }

  Task<void> switch_to(const Layout& layout) {
    std::vector<std::byte>& sector = state_.head.sector;
    store_refcount_table(sector, geometry().start_of(layout.table),
                         static_cast<uint32_t>(layout.table_clusters));
    co_await state_.file.write(0, sector, {.tag = IoTag::header_update});
  }

  RepairState& state_;
  RepairLog& log_;
  uint64_t raised_ = 0;
  uint64_t lowered_ = 0;
  bool lowered_to_one_ = false;
  const std::vector<uint64_t> regions_;
  bool keep_;  ///< No refcount sinks.
};

}  // namespace

std::string_view name_of(RepairAction::Kind kind) {
  switch (kind) {
    case RepairAction::Kind::copy:
      return "copy";
    case RepairAction::Kind::set_refcounts:
      return "set-refcounts";
    case RepairAction::Kind::rewrite_refcounts:
      return "rewrite-refcounts";
    case RepairAction::Kind::free_clusters:
      return "free";
    case RepairAction::Kind::fix_flags:
      return "fix-flags";
    case RepairAction::Kind::rewrite_table:
      return "rewrite-table";
    case RepairAction::Kind::give_up:
      return "give-up";
    case RepairAction::Kind::keep:
      return "keep";
  }
  return "unknown";
}

Task<std::vector<HostSpan>> find_room(RepairState& state, uint64_t count) {
  RepairLog none;
  Repairer repairer(state, none);
  co_return co_await repairer.room_for(count);
}

Task<void> begin_writing(RepairState& state) {
  co_await forget_unknown_features(state);
  if (!state.promise || state.kept == KeptClusters::all()) co_return;
  const Result<void> noted = co_await remember_kept(state, KeptClusters::all()).result();
  if (noted) co_return;
  if (noted.error().code() != Errc::no_space) co_await fail(noted.error().copy());
  if (state.options.remember == Remember::if_room) co_return;
  co_await fail(
      Error(Errc::no_space,
            cat("leaked clusters that may be the only copy of something must be kept, and "
                "the header has no room to note which; save them (byre repair --apply "
                "--save-orphans FILE ",
                quoted(state.file.name()), ")")));
}

Task<void> forget_unknown_features(RepairState& state) {
  Header& header = state.head.header;
  uint64_t known = kAutoclearKnown;
  if (!header.has(kDataFile)) known &= ~kRawDataFile;
  if ((header.autoclear & ~known) == 0) co_return;
  header.autoclear &= known;
  store_autoclear(state.head.sector, header.autoclear);
  co_await state.file.write(0, state.head.sector, {.tag = IoTag::header_update});
  co_await state.file.flush(IoTag::commit_sync);
}

Task<std::optional<HostOffset>> place_table(RepairState& state, RepairLog& log, Bytes table,
                                            IoTag tag) {
  const Geometry& g = state.geometry();
  const uint64_t count = g.clusters_for(table.size());
  Result<std::vector<HostSpan>> room = co_await find_room(state, count).result();
  if (!room && room.error().code() != Errc::no_space) co_await fail(std::move(room).error());
  if (!room || room->size() != 1) co_return std::optional<HostOffset>();
  const HostSpan span = room->front();
  std::vector<std::byte> whole(table.begin(), table.end());
  whole.resize(count << g.cluster_bits);
  co_await state.file.write(g.start_of(span.first).value, whole, {.tag = tag});

  state.references.clusters = std::max(state.references.clusters, span.end().value);
  for (uint64_t i = 0; i < count; ++i) {
    state.count_new(span.first + i, Owner::other, kPlacedTableIdentity);
  }
  state.damaged = true;  // Nothing is freed yet.
  co_await repair_image(state, Repair::refcounts, log);
  for (uint64_t i = 0; i < count; ++i) {
    const auto* cell = state.references.counts.find(span.first + i);
    if (cell->on_disk() != ReferenceCounts::OnDisk::one) co_return std::optional<HostOffset>();
  }
  co_return std::optional<HostOffset>(g.start_of(span.first));
}

bool can_repair(const RepairState& state, Repair repair) {
  if (repair == Repair::none || state.found.report.check_errors != 0) return false;
  const bool leaks = state.found.report.leaks > state.orphans_kept() && may_free(state);
  if (repair == Repair::leaks) {
    const bool flags = state.found.copied_wrong != 0 && only_flags_are_wrong(state);
    return (leaks || flags) && !state.undercounted && !state.refcounts_unsound;
  }
  return leaks || state.undercounted || state.refcounts_unsound || state.found.copied_mismatch;
}

bool can_fix_entries(const RepairState& state, Repair repair) {
  return repair >= Repair::refcounts && state.found.repairable_entries &&
         state.found.report.check_errors == 0;
}

Task<void> repair_entries(RepairState& state, RepairLog& log) {
  log.add({.kind = RepairAction::Kind::fix_flags,
           .text = "clear flags and offsets that mean nothing where they are"});
  co_await forget_unknown_features(state);
  co_await clear_meaningless(state);
  co_await state.file.flush(IoTag::commit_sync);
}

Task<void> repair_image(RepairState& state, Repair repair, RepairLog& log) {
  // Flags alone hide no damage.
  if (state.undercounted || state.refcounts_unsound ||
      state.found.report.leaks > state.orphans_kept()) {
    co_await begin_writing(state);
  } else {
    co_await forget_unknown_features(state);
  }
  Repairer repairer(state, log);
  co_await repairer.run(repair);
}

Task<void> clear_repaired_bits(Device& file) {
  ImageHeader head = co_await load_image_header(file, OpenFor::check);
  const uint64_t features = head.header.incompatible;
  if ((features & (kDirty | kCorrupt)) == 0) co_return;
  store_incompatible(head.sector, features & ~(kDirty | kCorrupt));
  co_await file.flush(IoTag::commit_sync);
  co_await file.write(0, head.sector, {.tag = IoTag::header_update});
  co_await file.flush(IoTag::commit_sync);
}

}  // namespace byre
