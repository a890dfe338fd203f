// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/mend.h"

#include <algorithm>

#include "base/checked.h"
#include "format/bitmap.h"
#include "format/bitmaps_place.h"
#include "qcow2/repair/head_change.h"

namespace byre {

namespace {

Task<void> write_header(Survey& survey) {
  co_await survey.file.write(0, survey.head.sector, {.mark = Mark::header_update});
  co_await survey.file.flush(Mark::commit_sync);
}

/// Writes the head of an extension beyond the first sector, so that there is none.
Task<void> retire_far(Survey& survey, MutableBytes first_cluster, uint64_t at) {
  const std::array<std::byte, 8> head =
      unused_extension_head(first_cluster, survey.head.header, at);
  copy(first_cluster.subspan(at), head);
  co_await survey.file.write(at, head, {.mark = Mark::header_update});
  co_await survey.file.flush(Mark::commit_sync);
}

/// The first sector says `extension`.
Task<void> enter(Survey& survey, MutableBytes first_cluster,
                 std::optional<BitmapsExtension> extension) {
  copy(first_cluster, survey.head.sector);
  co_await put_bitmaps_extension(first_cluster, survey.head.header, extension);
  copy(MutableBytes(survey.head.sector), Bytes(first_cluster).first(kSectorSize));
  if (!extension) {
    survey.head.header.autoclear &= ~kBitmaps;
    store_autoclear(survey.head.sector, survey.head.header.autoclear);
  }
  co_await write_header(survey);
  survey.head.header.backing_file_offset = backing_file_offset_of(survey.head.sector);
}

bool is_shared(const Survey& survey, HostSpan span) {
  for (HostCluster cluster = span.first; cluster < span.end(); ++cluster) {
    const auto* cell = survey.counts.find(cluster);
    if (cell && cell->aliased) return true;
  }
  return false;
}

HostSpan snapshot_table(const Survey& survey) {
  const Result<std::vector<std::byte>> table = serialize_snapshots(survey.snapshots);
  if (!table || survey.snapshots.empty()) return {};
  return {survey.geometry().cluster_of(survey.head.header.snapshots_offset),
          survey.geometry().clusters_for(table->size())};
}

/// Its L1 table is nowhere, or somebody else's.  Of two that have the same one the first keeps it.
bool is_broken(const Survey& survey, uint64_t index) {
  if (survey.broken_snapshots.contains(index)) return true;
  const Snapshot& snapshot = survey.snapshots[index];
  if (is_empty_entry(snapshot) || !is_shared(survey, hosts(snapshot, survey.geometry()))) {
    return false;
  }
  const auto same = [&](const Snapshot& other) { return other.l1_offset == snapshot.l1_offset; };
  const auto own = survey.snapshots.begin() + static_cast<std::ptrdiff_t>(index);
  const bool is_first = std::none_of(survey.snapshots.begin(), own, same);
  const bool has_others = std::any_of(own + 1, survey.snapshots.end(), same);
  return !is_first || !has_others || snapshot.l1_offset == survey.head.header.l1_offset;
}

bool has_too_much_extra_data(const Snapshot& snapshot) {
  return snapshot.extra_data.size() > kSnapshotExtraSizeMax;
}

/// The file grows beyond no place that a snapshot leads to: those that are going to be taken out
/// are led elsewhere first, with a word that no reader takes for an L1 table either.
Task<bool> detach_broken_snapshots(Survey& survey, RepairLog& log) {
  if (survey.pointed_behind_end == UINT64_MAX) co_return false;
  std::vector<Snapshot> before;
  uint64_t detached = 0;
  for (uint64_t i = 0; i < survey.snapshots.size(); ++i) {
    const Snapshot& snapshot = survey.snapshots[i];
    const bool leads_behind_end =
        !within(snapshot.l1_offset.value, uint64_t{snapshot.l1_entries} * 8, survey.file_size);
    if (is_broken(survey, i) && leads_behind_end) {
      const std::vector<std::byte> table = co_await serialize_snapshots(before);
      std::vector<std::byte> nowhere(8);
      store_be<uint64_t>(nowhere, 0, 1);
      if (detached++ == 0) co_await begin_writing(survey);
      co_await survey.file.write(survey.head.header.snapshots_offset.value + table.size(), nowhere,
                                 {.mark = Mark::snapshot_update});
    }
    before.push_back(snapshot);
  }
  if (detached == 0) co_return false;
  co_await survey.file.flush(Mark::commit_sync);
  log.add({.kind = RepairAction::Kind::give_up,
           .text = "make snapshots that lead behind the end of the file lead nowhere"});
  co_return true;
}

/// Snapshots that stay, and what was done to the others.
struct MendedSnapshots {
  std::vector<Snapshot> wanted;
  uint64_t completed = 0;
  uint64_t empty = 0;
  bool trimmed = false;
  std::vector<std::string> lost;
};

MendedSnapshots choose_snapshots(const Survey& survey, Mend what) {
  MendedSnapshots mended;
  for (uint64_t i = 0; i < survey.snapshots.size(); ++i) {
    const Snapshot& snapshot = survey.snapshots[i];
    if (is_empty_entry(snapshot)) {
      ++mended.empty;
      continue;
    }
    if (what == Mend::broken && is_broken(survey, i)) {
      mended.lost.push_back(
          cat("snapshot ", quoted(snapshot.name), ", whose L1 table cannot be used"));
      continue;
    }
    mended.wanted.push_back(snapshot);
    if (what == Mend::broken && has_too_much_extra_data(snapshot)) {
      mended.wanted.back().extra_data.clear();
      mended.trimmed = true;
    }
    if (survey.head.header.version < 3 || snapshot.disk_size) continue;
    mended.wanted.back().disk_size = survey.head.header.size;
    ++mended.completed;
  }
  return mended;
}

std::string words_for(const MendedSnapshots& mended) {
  std::string words;
  const auto also = [&](std::string more) { words += (words.empty() ? "" : ", ") + more; };
  if (const uint64_t empty = mended.empty; empty != 0) {
    also(cat("take out ", empty, empty == 1 ? " empty entry" : " empty entries"));
  }
  if (const size_t lost = mended.lost.size(); lost != 0) {
    also(cat("take out ", lost,
             lost == 1 ? " entry that cannot be used" : " entries that cannot be used"));
  }
  if (const uint64_t completed = mended.completed; completed != 0) {
    also(cat("complete ", completed, completed == 1 ? " entry" : " entries"));
  }
  if (mended.trimmed) also("remove extra data that no reader takes");
  return words.empty() ? "move the entries" : words;
}

Task<void> forget_all_snapshots(Survey& survey, RepairLog& log) {
  const Header& header = survey.head.header;
  log.lost_things.push_back(cat("all snapshots; the header counts ", header.snapshot_count));
  log.add({.kind = RepairAction::Kind::give_up,
           .host_offset = header.snapshots_offset.value,
           .text = "give up the snapshot table, which cannot be read"});
  co_await begin_writing(survey);
  store_snapshots(survey.head.sector, 0, {});
  co_await write_header(survey);
}

/// Bitmaps that stay, and what was done to the others.
struct MendedBitmaps {
  std::vector<Bitmap> wanted;
  std::vector<std::string> dropped;
  std::vector<std::string> lost;
  bool any_unfit = false;
  bool flags_cleared = false;
};

Task<std::vector<Bitmap>> read_bitmaps(Survey& survey) {
  const BitmapsExtension& extension = *survey.head.extensions.bitmaps;
  std::vector<std::byte> bytes(extension.directory_size);
  co_await survey.read_padded(extension.directory_offset.value, bytes, Mark::bitmap_load);
  co_return co_await parse_bitmap_directory(bytes, extension.count, survey.geometry());
}

/// What stays of a bitmap that is not broken.
void choose_bitmap(const Survey& survey, Bitmap bitmap, MendedBitmaps& mended) {
  const uint64_t size = survey.head.header.size;
  if (bitmap.extra_data.empty() && bitmap.extra_data_compatible) {
    bitmap.extra_data_compatible = false;
    mended.flags_cleared = true;
  }
  const BitmapFault fault = why_unusable(bitmap, size, survey.geometry()).fault;
  if (fault == BitmapFault::invalid) {
    mended.dropped.push_back(bitmap.name);
    return;
  }
  if (fault == BitmapFault::unfit) {
    bitmap.in_use = mended.any_unfit = true;
    // What is too much may be anybody's.
    const uint64_t fits =
        bitmap_table_entries_for(size, bitmap.granularity_bits, survey.geometry());
    bitmap.table_entries = static_cast<uint32_t>(std::min<uint64_t>(bitmap.table_entries, fits));
  }
  mended.wanted.push_back(std::move(bitmap));
}

MendedBitmaps choose_bitmaps(const Survey& survey, std::vector<Bitmap> found, Mend what) {
  MendedBitmaps mended;
  for (uint64_t i = 0; i < found.size(); ++i) {
    Bitmap& bitmap = found[i];
    const bool broken = survey.broken_bitmaps.contains(i) || bitmap.type != kDirtyTrackingBitmap ||
                        (!bitmap.extra_data.empty() && !bitmap.extra_data_compatible);
    if (what == Mend::broken && broken) {
      mended.lost.push_back(cat("bitmap ", quoted(bitmap.name)));
      continue;
    }
    if (what == Mend::broken && !bitmap.extra_data.empty()) {
      mended.lost.push_back(cat("the extra data of bitmap ", quoted(bitmap.name)));
      bitmap.extra_data.clear();
    }
    choose_bitmap(survey, std::move(bitmap), mended);
  }
  return mended;
}

/// The header says that there are these, or none.  False: there is no room.
Task<bool> switch_bitmaps(Survey& survey, RepairLog& log, const std::vector<Bitmap>& wanted) {
  const BitmapsExtension now = *survey.head.extensions.bitmaps;
  std::vector<std::byte> first_cluster(survey.geometry().cluster_size());
  co_await survey.read_padded(0, first_cluster, Mark::header_read);
  const auto far = far_bitmaps_extension(first_cluster, survey.head.header);
  std::vector<std::byte> trial = first_cluster;
  if (!wanted.empty() && !put_bitmaps_extension(trial, survey.head.header, now)) co_return false;

  std::optional<BitmapsExtension> extension;
  if (!wanted.empty()) {
    // Two copies that say the same, then the one that changes in one sector write.
    if (far) {
      co_await enter(survey, first_cluster, now);
      co_await retire_far(survey, first_cluster, *far);
    }
    const std::vector<std::byte> directory = co_await serialize_bitmap_directory(wanted);
    const auto placed = co_await place_table(survey, log, directory, Mark::bitmap_update);
    if (!placed) co_return false;
    extension = {.count = static_cast<uint32_t>(wanted.size()),
                 .directory_size = directory.size(),
                 .directory_offset = *placed};
  }
  co_await enter(survey, first_cluster, extension);
  if (far && !extension) co_await retire_far(survey, first_cluster, *far);
  co_return true;
}

void tell(RepairLog& log, const MendedBitmaps& mended, HostOffset directory) {
  const auto add = [&](RepairAction::Kind kind, std::string text) {
    log.add({.kind = kind, .host_offset = directory.value, .text = std::move(text)});
  };
  for (const std::string& name : mended.lost) {
    log.lost_things.push_back(name);
    add(RepairAction::Kind::give_up, cat("give up ", name));
  }
  for (const std::string& name : mended.dropped) {
    add(RepairAction::Kind::rewrite_table,
        cat("remove bitmap ", quoted(name), ", which nobody can use"));
  }
  if (mended.flags_cleared) {
    add(RepairAction::Kind::rewrite_table, "clear flags of bitmaps that mean nothing");
  }
  if (mended.any_unfit) {
    add(RepairAction::Kind::rewrite_table, "mark bitmaps that do not fit the disk as not saved");
  }
}

}  // namespace

Task<bool> mend_header(Survey& survey, RepairLog& log) {
  co_await begin_writing(survey);
  std::vector<std::byte> first(survey.geometry().cluster_size());
  co_await survey.read_padded(0, first, Mark::header_read);
  const auto edit = [&](Header& header, Extensions& extensions) {
    if (header.header_length % 8 != 0) {
      // Where extensions begin is said wrongly, or they begin there: whatever gives some.
      header.header_length = static_cast<uint32_t>(round_up(header.header_length, 8));
      Result<Extensions> behind = parse_extensions(first, header);
      if (extensions == Extensions{} && behind) extensions = *std::move(behind);
    }
    const bool too_long =
        extensions.backing_format && extensions.backing_format->size() > kBackingFormatSizeMax;
    if (too_long && !survey.head.backing_file) extensions.backing_format.reset();
    std::erase_if(extensions.unknown, [](const UnknownExtension& extension) {
      return extension.type == kBitmapsExtension;
    });
    if (!extensions.bitmaps) header.autoclear &= ~kBitmaps;
  };
  const Result<void> changed = co_await change_head(survey, edit).result();
  if (!changed && changed.error().code() == Errc::no_space) co_return false;
  if (!changed) co_await fail(changed.error().copy());
  log.add({.kind = RepairAction::Kind::fix_flags,
           .text = "put right what other readers refuse of the header"});
  co_return true;
}

bool has_broken_snapshots(const Survey& survey) {
  if (survey.snapshots_lost || is_shared(survey, snapshot_table(survey))) return true;
  for (uint64_t i = 0; i < survey.snapshots.size(); ++i) {
    if (is_broken(survey, i) || has_too_much_extra_data(survey.snapshots[i])) return true;
  }
  return false;
}

Task<bool> mend_snapshots(Survey& survey, RepairLog& log, Mend what) {
  const Header& header = survey.head.header;
  if (survey.snapshots_lost) {
    if (what == Mend::broken) co_await forget_all_snapshots(survey, log);
    co_return what == Mend::broken;
  }
  if (what == Mend::broken && co_await detach_broken_snapshots(survey, log)) co_return true;
  const MendedSnapshots mended = choose_snapshots(survey, what);
  const std::vector<Snapshot>& wanted = mended.wanted;
  HostOffset at = header.snapshots_offset;
  const bool moves = what == Mend::broken && is_shared(survey, snapshot_table(survey));
  if (moves || !std::equal(wanted.begin(), wanted.end(), survey.snapshots.begin())) {
    co_await begin_writing(survey);
    const Result<std::vector<std::byte>> table = serialize_snapshots(wanted);
    if (!table) co_return false;
    const auto placed = co_await place_table(survey, log, *table, Mark::snapshot_update);
    if (!placed) co_return false;
    at = *placed;
  } else if (wanted.empty()) {
    at = {};
  }
  log.lost_things.insert(log.lost_things.end(), mended.lost.begin(), mended.lost.end());
  log.add({.kind = RepairAction::Kind::rewrite_table,
           .host_offset = header.snapshots_offset.value,
           .to = at.value,
           .text = "snapshot table: " + words_for(mended)});
  co_await begin_writing(survey);
  store_snapshots(survey.head.sector, static_cast<uint32_t>(wanted.size()), at);
  co_await write_header(survey);
  co_return true;
}

bool has_broken_bitmaps(const Survey& survey) {
  return survey.bitmaps_lost || !survey.broken_bitmaps.empty() || survey.foreign_bitmaps;
}

Task<bool> mend_bitmaps(Survey& survey, RepairLog& log, Mend what) {
  const BitmapsExtension before = *survey.head.extensions.bitmaps;
  if (survey.bitmaps_lost && what != Mend::broken) co_return false;
  MendedBitmaps mended;
  if (survey.bitmaps_lost) {
    mended.lost.push_back(cat("all bitmaps; the header counts ", before.count));
  } else {
    mended = choose_bitmaps(survey, co_await read_bitmaps(survey), what);
  }
  co_await begin_writing(survey);  // May move what is read afterwards.
  if (!co_await switch_bitmaps(survey, log, mended.wanted)) co_return false;
  tell(log, mended, before.directory_offset);
  co_return true;
}

}  // namespace byre
