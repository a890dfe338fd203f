// SPDX-License-Identifier: Apache-2.0
#include "qcow2/mend.h"

#include <algorithm>

#include "format/bitmap.h"
#include "format/bitmaps_place.h"

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
  survey.head.header.backing_file_offset = load_be<uint64_t>(survey.head.sector, 8);
}

}  // namespace

Task<bool> mend_snapshots(Survey& survey, RepairLog& log) {
  const Header& header = survey.head.header;
  std::vector<Snapshot> wanted;
  uint64_t completed = 0;
  for (const Snapshot& snapshot : survey.snapshots) {
    if (is_empty_entry(snapshot)) continue;
    wanted.push_back(snapshot);
    if (header.version < 3 || snapshot.disk_size) continue;
    wanted.back().disk_size = header.size;
    ++completed;
  }
  HostOffset at = header.snapshots_offset;
  if (!std::equal(wanted.begin(), wanted.end(), survey.snapshots.begin())) {
    const Result<std::vector<std::byte>> table = serialize_snapshots(wanted);
    if (!table) co_return false;
    const auto placed = co_await place_table(survey, log, *table, Mark::snapshot_update);
    if (!placed) co_return false;
    at = *placed;
  } else if (wanted.empty()) {
    at = {};
  }
  const uint64_t dropped = survey.snapshots.size() - wanted.size();
  std::string words = dropped != 0 ? cat("take ", dropped, " empty entries out") : "";
  if (completed != 0)
    words += cat(words.empty() ? "" : ", and ", "complete ", completed, " entries");
  log.add({.kind = RepairAction::Kind::rewrite_table,
           .host_offset = header.snapshots_offset.value,
           .to = at.value,
           .text = words + " of the snapshot table"});
  co_await begin_writing(survey);
  store_snapshots(survey.head.sector, static_cast<uint32_t>(wanted.size()), at);
  co_await write_header(survey);
  co_return true;
}

Task<bool> mend_bitmaps(Survey& survey, RepairLog& log) {
  const Geometry& g = survey.geometry();
  const BitmapsExtension now = *survey.head.extensions.bitmaps;
  std::vector<std::byte> bytes(now.directory_size);
  co_await survey.read_padded(now.directory_offset.value, bytes, Mark::bitmap_load);
  std::vector<Bitmap> wanted;
  std::vector<std::string> dropped;
  bool any_unfit = false;
  for (Bitmap& bitmap : co_await parse_bitmap_directory(bytes, now.count, g)) {
    const BitmapFault fault = why_unusable(bitmap, survey.head.header.size, g).fault;
    if (fault == BitmapFault::invalid) {
      dropped.push_back(bitmap.name);
      continue;
    }
    if (fault == BitmapFault::unfit) {
      bitmap.in_use = any_unfit = true;
      // What is too much may be anybody's.
      const uint64_t fits =
          bitmap_table_entries_for(survey.head.header.size, bitmap.granularity_bits, g);
      bitmap.table_entries = static_cast<uint32_t>(std::min<uint64_t>(bitmap.table_entries, fits));
    }
    wanted.push_back(std::move(bitmap));
  }
  co_await begin_writing(survey);  // May move what is read here.
  std::vector<std::byte> first_cluster(g.cluster_size());
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
  for (const std::string& name : dropped) {
    log.add({.kind = RepairAction::Kind::rewrite_table,
             .host_offset = now.directory_offset.value,
             .text = cat("remove bitmap ", quoted(name), ", which nobody can use")});
  }
  if (any_unfit) {
    log.add({.kind = RepairAction::Kind::rewrite_table,
             .host_offset = now.directory_offset.value,
             .text = "mark bitmaps that do not fit the disk as not saved"});
  }
  co_return true;
}

}  // namespace byre
