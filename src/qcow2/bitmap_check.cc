// SPDX-License-Identifier: Apache-2.0
#include "qcow2/bitmap_check.h"

#include <algorithm>

#include "format/bitmap.h"
#include "format/bitmaps_place.h"
#include "format/limits.h"

namespace byre {
namespace {

class BitmapCheck {
 public:
  BitmapCheck(Survey& survey, const Bitmap& bitmap)
      : survey_(survey), bitmap_(bitmap), name_(cat("bitmap ", quoted(bitmap.name), ": ")) {}

  Task<void> run() {
    if (bitmap_.in_use) {
      note("in use: whoever tracked it did not end in order, so it will not be used");
    }
    // The survey has said so: where its bits end cannot be told, or nobody reads so many.
    if (fault_of(bitmap_, survey_.head.header.size, survey_.geometry()) == BitmapFault::invalid ||
        bitmap_.table_entries > kBitmapDataSizeMax / survey_.geometry().cluster_size()) {
      co_return;
    }
    const Result<std::vector<uint64_t>> table =
        co_await load_table(survey_.file, bitmap_.table_offset, bitmap_.table_entries,
                            Mark::bitmap_load)
            .result();
    if (!table) co_return;  // Behind the end, or unreadable: known.
    for (uint64_t i = 0; i < table->size(); ++i) {
      co_await survey_.go_on();
      const Result<BitmapTableEntry> entry =
          decode_bitmap_table_entry((*table)[i], survey_.geometry());
      if (!entry || !entry->data) continue;
      co_await look_at(i, *entry->data);
    }
  }

 private:
  template <class... Parts>
  void note(const Parts&... parts) {
    survey_.add_finding(
        Severity::note,
        {.kind = FindingKind::bitmap, .structure = "bitmap", .remedy = Remedy::none}, name_,
        parts...);
  }

  Task<void> look_at(uint64_t index, HostCluster cluster) {
    const Geometry& g = survey_.geometry();
    const uint64_t at = g.start_of(cluster).value;
    if (at >= survey_.file_size) co_return;
    std::vector<std::byte> bytes(g.cluster_size());
    Result<void> read = co_await survey_.read_padded(at, bytes, Mark::bitmap_load).result();
    if (!read) {
      survey_.unreadable(std::move(read).error().while_doing(cat(name_, "data at ", hex(at))));
      co_return;
    }
    // Bits of granules that the disk does not have.
    const uint64_t granules =
        div_ceil(survey_.head.header.size, uint64_t{1} << bitmap_.granularity_bits);
    const uint64_t first = index * g.cluster_size() * 8;
    const uint64_t bits = g.cluster_size() * 8;
    if (first + bits <= granules) co_return;
    const uint64_t used = granules > first ? granules - first : 0;
    MutableBytes tail = MutableBytes(bytes).subspan(used / 8);
    if (used % 8 != 0) tail[0] &= static_cast<std::byte>(0xff << used % 8);
    if (!is_zero(tail))
      note("bits behind the end of the disk are set, in the cluster at ", hex(at));
  }

  Survey& survey_;
  const Bitmap& bitmap_;
  const std::string name_;
};

}  // namespace

BitmapFault fault_of(const Bitmap& bitmap, uint64_t size, const Geometry& g) {
  if (bitmap.type != kDirtyTrackingBitmap ||
      (!bitmap.extra_data.empty() && !bitmap.extra_data_compatible)) {
    return BitmapFault::foreign;
  }
  const uint32_t bits = bitmap.granularity_bits;
  if (bits < kBitmapGranularityBitsMin || bits > kBitmapGranularityBitsMax ||
      bitmap.name.size() > kBitmapNameSizeMax) {
    return BitmapFault::invalid;
  }
  const uint64_t wanted = bitmap_table_entries_for(size, bits, g);
  const bool lost = bitmap.table_entries == 0 && wanted != 0;
  if (lost || bitmap.table_entries > kBitmapDataSizeMax / g.cluster_size()) {
    return BitmapFault::invalid;
  }
  if (bitmap.in_use) return BitmapFault::in_use;
  return bitmap.table_entries == wanted ? BitmapFault::none : BitmapFault::unfit;
}

std::string why_not_usable(const Bitmap& bitmap, uint64_t size, const Geometry& g) {
  if (bitmap.in_use && fault_of(bitmap, size, g) == BitmapFault::invalid) {
    Bitmap saved = bitmap;
    saved.in_use = false;
    return why_not_usable(saved, size, g);
  }
  const Result<void> usable = check_usable(bitmap, size, g);
  return usable ? "" : usable.error().message();
}

namespace {

Task<void> write_header(Survey& survey) {
  co_await survey.file.write(0, survey.head.sector, {.mark = Mark::header_update});
  co_await survey.file.flush(Mark::commit_sync);
}

/// Writes the head of an extension beyond the first sector, so that there is none.
Task<void> retire_far(Survey& survey, MutableBytes first_cluster, uint64_t at) {
  const std::array<std::byte, 8> head = unused_extension_head(first_cluster, survey.head.header, at);
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

Task<bool> mend_bitmaps(Survey& survey, RepairLog& log) {
  const Geometry& g = survey.geometry();
  const BitmapsExtension now = *survey.head.extensions.bitmaps;
  std::vector<std::byte> bytes(now.directory_size);
  co_await survey.read_padded(now.directory_offset.value, bytes, Mark::bitmap_load);
  std::vector<Bitmap> wanted;
  std::vector<std::string> dropped;
  bool any_unfit = false;
  for (Bitmap& bitmap : co_await parse_bitmap_directory(bytes, now.count, g)) {
    const BitmapFault fault = fault_of(bitmap, survey.head.header.size, g);
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
  std::vector<std::byte> first_cluster(g.cluster_size());
  co_await survey.read_padded(0, first_cluster, Mark::header_read);
  const auto far = far_bitmaps_extension(first_cluster, survey.head.header);
  std::vector<std::byte> trial = first_cluster;
  if (!wanted.empty() && !put_bitmaps_extension(trial, survey.head.header, now)) co_return false;
  co_await forget_unknown_features(survey);

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

Task<void> check_bitmaps(Survey& survey) {
  const std::optional<BitmapsExtension>& extension = survey.head.extensions.bitmaps;
  if (!extension) co_return;
  if ((survey.head.header.autoclear & kBitmaps) == 0) {
    survey.add_finding(Severity::note,
                       {.kind = FindingKind::bitmap,
                        .structure = "bitmaps extension",
                        .at = extension->directory_offset.value,
                        .length = extension->directory_size,
                        .remedy = Remedy::none},
                       extension->count,
                       " bitmaps were left behind by a writer that did not know them; nobody uses "
                       "them, and their clusters are leaks");
    co_return;
  }
  // What is wrong with the directory as a whole the survey has said.
  std::vector<std::byte> bytes(extension->directory_size);
  const Result<void> read =
      co_await survey.read_padded(extension->directory_offset.value, bytes, Mark::bitmap_load)
          .result();
  if (!read) co_return;
  const Result<std::vector<Bitmap>> bitmaps =
      parse_bitmap_directory(bytes, extension->count, survey.geometry());
  if (!bitmaps) co_return;
  for (const Bitmap& bitmap : *bitmaps) {
    BitmapCheck check(survey, bitmap);
    co_await check.run();
  }
}

}  // namespace byre
