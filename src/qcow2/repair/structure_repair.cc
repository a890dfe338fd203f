// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/structure_repair.h"

#include <algorithm>

#include "base/checked.h"
#include "format/bitmap.h"
#include "format/bitmaps_place.h"
#include "qcow2/repair/header_repair.h"

namespace byre {

namespace {

Task<void> write_header(RepairState& state) {
  co_await state.file.write(0, state.head.sector, {.tag = IoTag::header_update});
  co_await state.file.flush(IoTag::commit_sync);
}

/// Writes the head of an extension beyond the first sector, so that there is none.
Task<void> retire_far(RepairState& state, MutableBytes first_cluster, uint64_t at) {
  const std::array<std::byte, 8> head = unused_extension_head(first_cluster, state.head.header, at);
  copy(first_cluster.subspan(at), head);
  co_await state.file.write(at, head, {.tag = IoTag::header_update});
  co_await state.file.flush(IoTag::commit_sync);
}

/// The first sector says `extension`.
Task<void> enter(RepairState& state, MutableBytes first_cluster,
                 std::optional<BitmapsExtension> extension) {
  copy(first_cluster, state.head.sector);
  co_await put_bitmaps_extension(first_cluster, state.head.header, extension);
  copy(MutableBytes(state.head.sector), Bytes(first_cluster).first(kSectorSize));
  if (!extension) {
    state.head.header.autoclear &= ~kBitmaps;
    store_autoclear(state.head.sector, state.head.header.autoclear);
  }
  co_await write_header(state);
  state.head.header.backing_file_offset = backing_file_offset_of(state.head.sector);
}

bool is_shared(const RepairState& state, HostSpan span) {
  for (HostCluster cluster = span.first; cluster < span.end(); ++cluster) {
    if (state.is_aliased(cluster)) return true;
  }
  return false;
}

HostSpan snapshot_table(const RepairState& state) {
  const Result<std::vector<std::byte>> table = serialize_snapshots(state.found.snapshots);
  if (!table || state.found.snapshots.empty()) return {};
  return {state.geometry().cluster_of(state.head.header.snapshots_offset),
          state.geometry().clusters_for(table->size())};
}

/// Its L1 table is nowhere, or somebody else's.  Of two that have the same one the first keeps it.
bool is_broken(const RepairState& state, uint64_t index) {
  if (state.found.broken_snapshots.contains(index)) return true;
  const Snapshot& snapshot = state.found.snapshots[index];
  if (is_empty_entry(snapshot) || !is_shared(state, hosts(snapshot, state.geometry()))) {
    return false;
  }
  const auto same = [&](const Snapshot& other) { return other.l1_offset == snapshot.l1_offset; };
  const auto own = state.found.snapshots.begin() + static_cast<std::ptrdiff_t>(index);
  const bool is_first = std::none_of(state.found.snapshots.begin(), own, same);
  const bool has_others = std::any_of(own + 1, state.found.snapshots.end(), same);
  return !is_first || !has_others || snapshot.l1_offset == state.head.header.l1_offset;
}

bool has_too_much_extra_data(const Snapshot& snapshot) {
  return snapshot.extra_data.size() > kSnapshotExtraSizeMax;
}

/// The file grows beyond no place that a snapshot leads to: those that are going to be taken out
/// are led elsewhere first, with a word that no reader takes for an L1 table either.
Task<bool> detach_broken_snapshots(RepairState& state, RepairLog& log) {
  if (state.references.pointed_behind_end == UINT64_MAX) co_return false;
  std::vector<Snapshot> before;
  uint64_t detached = 0;
  for (uint64_t i = 0; i < state.found.snapshots.size(); ++i) {
    const Snapshot& snapshot = state.found.snapshots[i];
    const bool leads_behind_end =
        !within(snapshot.l1_offset.value, uint64_t{snapshot.l1_entries} * 8, state.file_size());
    if (is_broken(state, i) && leads_behind_end) {
      const std::vector<std::byte> table = co_await serialize_snapshots(before);
      std::vector<std::byte> nowhere(8);
      store_be<uint64_t>(nowhere, 0, 1);
      if (detached++ == 0) co_await begin_writing(state);
      co_await state.file.write(state.head.header.snapshots_offset.value + table.size(), nowhere,
                                {.tag = IoTag::snapshot_update});
    }
    before.push_back(snapshot);
  }
  if (detached == 0) co_return false;
  co_await state.file.flush(IoTag::commit_sync);
  log.add({.kind = RepairAction::Kind::give_up,
           .text = "make snapshots that lead behind the end of the file lead nowhere"});
  co_return true;
}

/// Snapshots that stay, and what was done to the others.
struct RepairedSnapshots {
  std::vector<Snapshot> wanted;
  uint64_t completed = 0;
  uint64_t empty = 0;
  bool trimmed = false;
  std::vector<std::string> lost;
};

RepairedSnapshots choose_snapshots(const RepairState& state, RepairBroken what) {
  RepairedSnapshots repaired;
  for (uint64_t i = 0; i < state.found.snapshots.size(); ++i) {
    const Snapshot& snapshot = state.found.snapshots[i];
    if (is_empty_entry(snapshot)) {
      ++repaired.empty;
      continue;
    }
    if (what == RepairBroken::broken && is_broken(state, i)) {
      repaired.lost.push_back(
          cat("snapshot ", quoted(snapshot.name), ", whose L1 table cannot be used"));
      continue;
    }
    repaired.wanted.push_back(snapshot);
    if (what == RepairBroken::broken && has_too_much_extra_data(snapshot)) {
      repaired.wanted.back().extra_data.clear();
      repaired.trimmed = true;
    }
    if (state.head.header.version < 3 || snapshot.disk_size) continue;
    repaired.wanted.back().disk_size = state.head.header.size;
    ++repaired.completed;
  }
  return repaired;
}

std::string words_for(const RepairedSnapshots& repaired) {
  std::string words;
  const auto also = [&](std::string more) { words += (words.empty() ? "" : ", ") + more; };
  if (const uint64_t empty = repaired.empty; empty != 0) {
    also(cat("take out ", empty, empty == 1 ? " empty entry" : " empty entries"));
  }
  if (const size_t lost = repaired.lost.size(); lost != 0) {
    also(cat("take out ", lost,
             lost == 1 ? " entry that cannot be used" : " entries that cannot be used"));
  }
  if (const uint64_t completed = repaired.completed; completed != 0) {
    also(cat("complete ", completed, completed == 1 ? " entry" : " entries"));
  }
  if (repaired.trimmed) also("remove extra data that no reader takes");
  return words.empty() ? "move the entries" : words;
}

Task<void> forget_all_snapshots(RepairState& state, RepairLog& log) {
  const Header& header = state.head.header;
  log.lost_things.push_back(cat("all snapshots; the header counts ", header.snapshot_count));
  log.add({.kind = RepairAction::Kind::give_up,
           .host_offset = header.snapshots_offset.value,
           .text = "give up the snapshot table, which cannot be read"});
  co_await begin_writing(state);
  store_snapshots(state.head.sector, 0, {});
  co_await write_header(state);
}

/// Bitmaps that stay, and what was done to the others.
struct RepairedBitmaps {
  std::vector<Bitmap> wanted;
  std::vector<std::string> dropped;
  std::vector<std::string> lost;
  bool any_unfit = false;
  bool flags_cleared = false;
};

Task<std::vector<Bitmap>> read_bitmaps(RepairState& state) {
  const BitmapsExtension& extension = *state.head.extensions.bitmaps;
  std::vector<std::byte> bytes(extension.directory_size);
  co_await state.read_padded(extension.directory_offset.value, bytes, IoTag::bitmap_load);
  co_return co_await parse_bitmap_directory(bytes, extension.count, state.geometry());
}

/// What stays of a bitmap that is not broken.
void choose_bitmap(const RepairState& state, Bitmap bitmap, RepairedBitmaps& repaired) {
  const uint64_t size = state.head.header.size;
  if (bitmap.extra_data.empty() && bitmap.extra_data_compatible) {
    bitmap.extra_data_compatible = false;
    repaired.flags_cleared = true;
  }
  const BitmapFault fault = why_unusable(bitmap, size, state.geometry()).fault;
  if (fault == BitmapFault::invalid) {
    repaired.dropped.push_back(bitmap.name);
    return;
  }
  if (fault == BitmapFault::unfit) {
    bitmap.in_use = repaired.any_unfit = true;
    // What is too much may be anybody's.
    const uint64_t fits = bitmap_table_entries_for(size, bitmap.granularity_bits, state.geometry());
    bitmap.table_entries = static_cast<uint32_t>(std::min<uint64_t>(bitmap.table_entries, fits));
  }
  repaired.wanted.push_back(std::move(bitmap));
}

RepairedBitmaps choose_bitmaps(const RepairState& state, std::vector<Bitmap> found,
                               RepairBroken what) {
  RepairedBitmaps repaired;
  for (uint64_t i = 0; i < found.size(); ++i) {
    Bitmap& bitmap = found[i];
    const bool broken = state.found.broken_bitmaps.contains(i) ||
                        bitmap.type != kDirtyTrackingBitmap ||
                        (!bitmap.extra_data.empty() && !bitmap.extra_data_compatible);
    if (what == RepairBroken::broken && broken) {
      repaired.lost.push_back(cat("bitmap ", quoted(bitmap.name)));
      continue;
    }
    if (what == RepairBroken::broken && !bitmap.extra_data.empty()) {
      repaired.lost.push_back(cat("the extra data of bitmap ", quoted(bitmap.name)));
      bitmap.extra_data.clear();
    }
    choose_bitmap(state, std::move(bitmap), repaired);
  }
  return repaired;
}

/// The header says that there are these, or none.  False: there is no room.
Task<bool> switch_bitmaps(RepairState& state, RepairLog& log, const std::vector<Bitmap>& wanted) {
  const BitmapsExtension now = *state.head.extensions.bitmaps;
  std::vector<std::byte> first_cluster(state.geometry().cluster_size());
  co_await state.read_padded(0, first_cluster, IoTag::header_read);
  const auto far = far_bitmaps_extension(first_cluster, state.head.header);
  std::vector<std::byte> trial = first_cluster;
  if (!wanted.empty() && !put_bitmaps_extension(trial, state.head.header, now)) co_return false;

  std::optional<BitmapsExtension> extension;
  if (!wanted.empty()) {
    // Two copies that say the same, then the one that changes in one sector write.
    if (far) {
      co_await enter(state, first_cluster, now);
      co_await retire_far(state, first_cluster, *far);
    }
    const std::vector<std::byte> directory = co_await serialize_bitmap_directory(wanted);
    const auto placed = co_await place_table(state, log, directory, IoTag::bitmap_update);
    if (!placed) co_return false;
    extension = {.count = static_cast<uint32_t>(wanted.size()),
                 .directory_size = directory.size(),
                 .directory_offset = *placed};
  }
  co_await enter(state, first_cluster, extension);
  if (far && !extension) co_await retire_far(state, first_cluster, *far);
  co_return true;
}

void tell(RepairLog& log, const RepairedBitmaps& repaired, HostOffset directory) {
  const auto add = [&](RepairAction::Kind kind, std::string text) {
    log.add({.kind = kind, .host_offset = directory.value, .text = std::move(text)});
  };
  for (const std::string& name : repaired.lost) {
    log.lost_things.push_back(name);
    add(RepairAction::Kind::give_up, cat("give up ", name));
  }
  for (const std::string& name : repaired.dropped) {
    add(RepairAction::Kind::rewrite_table,
        cat("remove bitmap ", quoted(name), ", which nobody can use"));
  }
  if (repaired.flags_cleared) {
    add(RepairAction::Kind::rewrite_table, "clear flags of bitmaps that mean nothing");
  }
  if (repaired.any_unfit) {
    add(RepairAction::Kind::rewrite_table, "tag bitmaps that do not fit the disk as not saved");
  }
}

}  // namespace

Task<bool> repair_header(RepairState& state, RepairLog& log) {
  co_await begin_writing(state);
  std::vector<std::byte> first(state.geometry().cluster_size());
  co_await state.read_padded(0, first, IoTag::header_read);
  const auto edit = [&](Header& header, Extensions& extensions) {
    if (header.header_length % 8 != 0) {
      // Where extensions begin is said wrongly, or they begin there: whatever gives some.
      header.header_length = static_cast<uint32_t>(round_up(header.header_length, 8));
      Result<Extensions> behind = parse_extensions(first, header);
      if (extensions == Extensions{} && behind) extensions = *std::move(behind);
    }
    const bool too_long =
        extensions.backing_format && extensions.backing_format->size() > kBackingFormatSizeMax;
    if (too_long && !state.head.backing_file) extensions.backing_format.reset();
    std::erase_if(extensions.unknown, [](const UnknownExtension& extension) {
      return extension.type == kBitmapsExtension;
    });
    if (!extensions.bitmaps) header.autoclear &= ~kBitmaps;
  };
  const Result<void> changed = co_await change_head(state, edit).result();
  if (!changed && changed.error().code() == Errc::no_space) co_return false;
  if (!changed) co_await fail(changed.error().copy());
  log.add({.kind = RepairAction::Kind::fix_flags,
           .text = "put right what other readers refuse of the header"});
  co_return true;
}

bool has_broken_snapshots(const RepairState& state) {
  if (state.found.snapshots_lost || is_shared(state, snapshot_table(state))) return true;
  for (uint64_t i = 0; i < state.found.snapshots.size(); ++i) {
    if (is_broken(state, i) || has_too_much_extra_data(state.found.snapshots[i])) return true;
  }
  return false;
}

Task<bool> repair_snapshots(RepairState& state, RepairLog& log, RepairBroken what) {
  const Header& header = state.head.header;
  if (state.found.snapshots_lost) {
    if (what == RepairBroken::broken) co_await forget_all_snapshots(state, log);
    co_return what == RepairBroken::broken;
  }
  if (what == RepairBroken::broken && co_await detach_broken_snapshots(state, log)) co_return true;
  const RepairedSnapshots repaired = choose_snapshots(state, what);
  const std::vector<Snapshot>& wanted = repaired.wanted;
  HostOffset at = header.snapshots_offset;
  const bool moves = what == RepairBroken::broken && is_shared(state, snapshot_table(state));
  if (moves || !std::equal(wanted.begin(), wanted.end(), state.found.snapshots.begin())) {
    co_await begin_writing(state);
    const Result<std::vector<std::byte>> table = serialize_snapshots(wanted);
    if (!table) co_return false;
    const auto placed = co_await place_table(state, log, *table, IoTag::snapshot_update);
    if (!placed) co_return false;
    at = *placed;
  } else if (wanted.empty()) {
    at = {};
  }
  log.lost_things.insert(log.lost_things.end(), repaired.lost.begin(), repaired.lost.end());
  log.add({.kind = RepairAction::Kind::rewrite_table,
           .host_offset = header.snapshots_offset.value,
           .to = at.value,
           .text = "snapshot table: " + words_for(repaired)});
  co_await begin_writing(state);
  store_snapshots(state.head.sector, static_cast<uint32_t>(wanted.size()), at);
  co_await write_header(state);
  co_return true;
}

bool has_broken_bitmaps(const RepairState& state) {
  return state.found.bitmaps_lost || !state.found.broken_bitmaps.empty() ||
         state.found.foreign_bitmaps;
}

Task<bool> repair_bitmaps(RepairState& state, RepairLog& log, RepairBroken what) {
  const BitmapsExtension before = *state.head.extensions.bitmaps;
  if (state.found.bitmaps_lost && what != RepairBroken::broken) co_return false;
  RepairedBitmaps repaired;
  if (state.found.bitmaps_lost) {
    repaired.lost.push_back(cat("all bitmaps; the header counts ", before.count));
  } else {
    repaired = choose_bitmaps(state, co_await read_bitmaps(state), what);
  }
  co_await begin_writing(state);  // May move what is read afterwards.
  if (!co_await switch_bitmaps(state, log, repaired.wanted)) co_return false;
  tell(log, repaired, before.directory_offset);
  co_return true;
}

}  // namespace byre
