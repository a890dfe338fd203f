// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/structure_repair.h"

#include <algorithm>

#include "base/checked.h"
#include "format/bitmap.h"
#include "format/bitmaps_place.h"
#include "qcow2/repair/header_repair.h"

namespace byre {

namespace {

Task<void> write_header(MetadataScan& scan) {
  co_await scan.file.write(0, scan.head.sector, {.tag = IoTag::header_update});
  co_await scan.file.flush(IoTag::commit_sync);
}

/// Writes the head of an extension beyond the first sector, so that there is none.
Task<void> retire_far(MetadataScan& scan, MutableBytes first_cluster, uint64_t at) {
  const std::array<std::byte, 8> head = unused_extension_head(first_cluster, scan.head.header, at);
  copy(first_cluster.subspan(at), head);
  co_await scan.file.write(at, head, {.tag = IoTag::header_update});
  co_await scan.file.flush(IoTag::commit_sync);
}

/// The first sector says `extension`.
Task<void> enter(MetadataScan& scan, MutableBytes first_cluster,
                 std::optional<BitmapsExtension> extension) {
  copy(first_cluster, scan.head.sector);
  co_await put_bitmaps_extension(first_cluster, scan.head.header, extension);
  copy(MutableBytes(scan.head.sector), Bytes(first_cluster).first(kSectorSize));
  if (!extension) {
    scan.head.header.autoclear &= ~kBitmaps;
    store_autoclear(scan.head.sector, scan.head.header.autoclear);
  }
  co_await write_header(scan);
  scan.head.header.backing_file_offset = backing_file_offset_of(scan.head.sector);
}

bool is_shared(const MetadataScan& scan, HostSpan span) {
  for (HostCluster cluster = span.first; cluster < span.end(); ++cluster) {
    const auto* cell = scan.counts.find(cluster);
    if (cell && cell->aliased) return true;
  }
  return false;
}

HostSpan snapshot_table(const MetadataScan& scan) {
  const Result<std::vector<std::byte>> table = serialize_snapshots(scan.snapshots);
  if (!table || scan.snapshots.empty()) return {};
  return {scan.geometry().cluster_of(scan.head.header.snapshots_offset),
          scan.geometry().clusters_for(table->size())};
}

/// Its L1 table is nowhere, or somebody else's.  Of two that have the same one the first keeps it.
bool is_broken(const MetadataScan& scan, uint64_t index) {
  if (scan.broken_snapshots.contains(index)) return true;
  const Snapshot& snapshot = scan.snapshots[index];
  if (is_empty_entry(snapshot) || !is_shared(scan, hosts(snapshot, scan.geometry()))) {
    return false;
  }
  const auto same = [&](const Snapshot& other) { return other.l1_offset == snapshot.l1_offset; };
  const auto own = scan.snapshots.begin() + static_cast<std::ptrdiff_t>(index);
  const bool is_first = std::none_of(scan.snapshots.begin(), own, same);
  const bool has_others = std::any_of(own + 1, scan.snapshots.end(), same);
  return !is_first || !has_others || snapshot.l1_offset == scan.head.header.l1_offset;
}

bool has_too_much_extra_data(const Snapshot& snapshot) {
  return snapshot.extra_data.size() > kSnapshotExtraSizeMax;
}

/// The file grows beyond no place that a snapshot leads to: those that are going to be taken out
/// are led elsewhere first, with a word that no reader takes for an L1 table either.
Task<bool> detach_broken_snapshots(MetadataScan& scan, RepairLog& log) {
  if (scan.pointed_behind_end == UINT64_MAX) co_return false;
  std::vector<Snapshot> before;
  uint64_t detached = 0;
  for (uint64_t i = 0; i < scan.snapshots.size(); ++i) {
    const Snapshot& snapshot = scan.snapshots[i];
    const bool leads_behind_end =
        !within(snapshot.l1_offset.value, uint64_t{snapshot.l1_entries} * 8, scan.file_size);
    if (is_broken(scan, i) && leads_behind_end) {
      const std::vector<std::byte> table = co_await serialize_snapshots(before);
      std::vector<std::byte> nowhere(8);
      store_be<uint64_t>(nowhere, 0, 1);
      if (detached++ == 0) co_await begin_writing(scan);
      co_await scan.file.write(scan.head.header.snapshots_offset.value + table.size(), nowhere,
                               {.tag = IoTag::snapshot_update});
    }
    before.push_back(snapshot);
  }
  if (detached == 0) co_return false;
  co_await scan.file.flush(IoTag::commit_sync);
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

RepairedSnapshots choose_snapshots(const MetadataScan& scan, RepairBroken what) {
  RepairedSnapshots repaired;
  for (uint64_t i = 0; i < scan.snapshots.size(); ++i) {
    const Snapshot& snapshot = scan.snapshots[i];
    if (is_empty_entry(snapshot)) {
      ++repaired.empty;
      continue;
    }
    if (what == RepairBroken::broken && is_broken(scan, i)) {
      repaired.lost.push_back(
          cat("snapshot ", quoted(snapshot.name), ", whose L1 table cannot be used"));
      continue;
    }
    repaired.wanted.push_back(snapshot);
    if (what == RepairBroken::broken && has_too_much_extra_data(snapshot)) {
      repaired.wanted.back().extra_data.clear();
      repaired.trimmed = true;
    }
    if (scan.head.header.version < 3 || snapshot.disk_size) continue;
    repaired.wanted.back().disk_size = scan.head.header.size;
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

Task<void> forget_all_snapshots(MetadataScan& scan, RepairLog& log) {
  const Header& header = scan.head.header;
  log.lost_things.push_back(cat("all snapshots; the header counts ", header.snapshot_count));
  log.add({.kind = RepairAction::Kind::give_up,
           .host_offset = header.snapshots_offset.value,
           .text = "give up the snapshot table, which cannot be read"});
  co_await begin_writing(scan);
  store_snapshots(scan.head.sector, 0, {});
  co_await write_header(scan);
}

/// Bitmaps that stay, and what was done to the others.
struct RepairedBitmaps {
  std::vector<Bitmap> wanted;
  std::vector<std::string> dropped;
  std::vector<std::string> lost;
  bool any_unfit = false;
  bool flags_cleared = false;
};

Task<std::vector<Bitmap>> read_bitmaps(MetadataScan& scan) {
  const BitmapsExtension& extension = *scan.head.extensions.bitmaps;
  std::vector<std::byte> bytes(extension.directory_size);
  co_await scan.read_padded(extension.directory_offset.value, bytes, IoTag::bitmap_load);
  co_return co_await parse_bitmap_directory(bytes, extension.count, scan.geometry());
}

/// What stays of a bitmap that is not broken.
void choose_bitmap(const MetadataScan& scan, Bitmap bitmap, RepairedBitmaps& repaired) {
  const uint64_t size = scan.head.header.size;
  if (bitmap.extra_data.empty() && bitmap.extra_data_compatible) {
    bitmap.extra_data_compatible = false;
    repaired.flags_cleared = true;
  }
  const BitmapFault fault = why_unusable(bitmap, size, scan.geometry()).fault;
  if (fault == BitmapFault::invalid) {
    repaired.dropped.push_back(bitmap.name);
    return;
  }
  if (fault == BitmapFault::unfit) {
    bitmap.in_use = repaired.any_unfit = true;
    // What is too much may be anybody's.
    const uint64_t fits = bitmap_table_entries_for(size, bitmap.granularity_bits, scan.geometry());
    bitmap.table_entries = static_cast<uint32_t>(std::min<uint64_t>(bitmap.table_entries, fits));
  }
  repaired.wanted.push_back(std::move(bitmap));
}

RepairedBitmaps choose_bitmaps(const MetadataScan& scan, std::vector<Bitmap> found,
                               RepairBroken what) {
  RepairedBitmaps repaired;
  for (uint64_t i = 0; i < found.size(); ++i) {
    Bitmap& bitmap = found[i];
    const bool broken = scan.broken_bitmaps.contains(i) || bitmap.type != kDirtyTrackingBitmap ||
                        (!bitmap.extra_data.empty() && !bitmap.extra_data_compatible);
    if (what == RepairBroken::broken && broken) {
      repaired.lost.push_back(cat("bitmap ", quoted(bitmap.name)));
      continue;
    }
    if (what == RepairBroken::broken && !bitmap.extra_data.empty()) {
      repaired.lost.push_back(cat("the extra data of bitmap ", quoted(bitmap.name)));
      bitmap.extra_data.clear();
    }
    choose_bitmap(scan, std::move(bitmap), repaired);
  }
  return repaired;
}

/// The header says that there are these, or none.  False: there is no room.
Task<bool> switch_bitmaps(MetadataScan& scan, RepairLog& log, const std::vector<Bitmap>& wanted) {
  const BitmapsExtension now = *scan.head.extensions.bitmaps;
  std::vector<std::byte> first_cluster(scan.geometry().cluster_size());
  co_await scan.read_padded(0, first_cluster, IoTag::header_read);
  const auto far = far_bitmaps_extension(first_cluster, scan.head.header);
  std::vector<std::byte> trial = first_cluster;
  if (!wanted.empty() && !put_bitmaps_extension(trial, scan.head.header, now)) co_return false;

  std::optional<BitmapsExtension> extension;
  if (!wanted.empty()) {
    // Two copies that say the same, then the one that changes in one sector write.
    if (far) {
      co_await enter(scan, first_cluster, now);
      co_await retire_far(scan, first_cluster, *far);
    }
    const std::vector<std::byte> directory = co_await serialize_bitmap_directory(wanted);
    const auto placed = co_await place_table(scan, log, directory, IoTag::bitmap_update);
    if (!placed) co_return false;
    extension = {.count = static_cast<uint32_t>(wanted.size()),
                 .directory_size = directory.size(),
                 .directory_offset = *placed};
  }
  co_await enter(scan, first_cluster, extension);
  if (far && !extension) co_await retire_far(scan, first_cluster, *far);
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

Task<bool> repair_header(MetadataScan& scan, RepairLog& log) {
  co_await begin_writing(scan);
  std::vector<std::byte> first(scan.geometry().cluster_size());
  co_await scan.read_padded(0, first, IoTag::header_read);
  const auto edit = [&](Header& header, Extensions& extensions) {
    if (header.header_length % 8 != 0) {
      // Where extensions begin is said wrongly, or they begin there: whatever gives some.
      header.header_length = static_cast<uint32_t>(round_up(header.header_length, 8));
      Result<Extensions> behind = parse_extensions(first, header);
      if (extensions == Extensions{} && behind) extensions = *std::move(behind);
    }
    const bool too_long =
        extensions.backing_format && extensions.backing_format->size() > kBackingFormatSizeMax;
    if (too_long && !scan.head.backing_file) extensions.backing_format.reset();
    std::erase_if(extensions.unknown, [](const UnknownExtension& extension) {
      return extension.type == kBitmapsExtension;
    });
    if (!extensions.bitmaps) header.autoclear &= ~kBitmaps;
  };
  const Result<void> changed = co_await change_head(scan, edit).result();
  if (!changed && changed.error().code() == Errc::no_space) co_return false;
  if (!changed) co_await fail(changed.error().copy());
  log.add({.kind = RepairAction::Kind::fix_flags,
           .text = "put right what other readers refuse of the header"});
  co_return true;
}

bool has_broken_snapshots(const MetadataScan& scan) {
  if (scan.snapshots_lost || is_shared(scan, snapshot_table(scan))) return true;
  for (uint64_t i = 0; i < scan.snapshots.size(); ++i) {
    if (is_broken(scan, i) || has_too_much_extra_data(scan.snapshots[i])) return true;
  }
  return false;
}

Task<bool> repair_snapshots(MetadataScan& scan, RepairLog& log, RepairBroken what) {
  const Header& header = scan.head.header;
  if (scan.snapshots_lost) {
    if (what == RepairBroken::broken) co_await forget_all_snapshots(scan, log);
    co_return what == RepairBroken::broken;
  }
  if (what == RepairBroken::broken && co_await detach_broken_snapshots(scan, log)) co_return true;
  const RepairedSnapshots repaired = choose_snapshots(scan, what);
  const std::vector<Snapshot>& wanted = repaired.wanted;
  HostOffset at = header.snapshots_offset;
  const bool moves = what == RepairBroken::broken && is_shared(scan, snapshot_table(scan));
  if (moves || !std::equal(wanted.begin(), wanted.end(), scan.snapshots.begin())) {
    co_await begin_writing(scan);
    const Result<std::vector<std::byte>> table = serialize_snapshots(wanted);
    if (!table) co_return false;
    const auto placed = co_await place_table(scan, log, *table, IoTag::snapshot_update);
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
  co_await begin_writing(scan);
  store_snapshots(scan.head.sector, static_cast<uint32_t>(wanted.size()), at);
  co_await write_header(scan);
  co_return true;
}

bool has_broken_bitmaps(const MetadataScan& scan) {
  return scan.bitmaps_lost || !scan.broken_bitmaps.empty() || scan.foreign_bitmaps;
}

Task<bool> repair_bitmaps(MetadataScan& scan, RepairLog& log, RepairBroken what) {
  const BitmapsExtension before = *scan.head.extensions.bitmaps;
  if (scan.bitmaps_lost && what != RepairBroken::broken) co_return false;
  RepairedBitmaps repaired;
  if (scan.bitmaps_lost) {
    repaired.lost.push_back(cat("all bitmaps; the header counts ", before.count));
  } else {
    repaired = choose_bitmaps(scan, co_await read_bitmaps(scan), what);
  }
  co_await begin_writing(scan);  // May move what is read afterwards.
  if (!co_await switch_bitmaps(scan, log, repaired.wanted)) co_return false;
  tell(log, repaired, before.directory_offset);
  co_return true;
}

}  // namespace byre
