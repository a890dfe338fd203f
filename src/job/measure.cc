// SPDX-License-Identifier: Apache-2.0
#include "job/measure.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "block/filter.h"
#include "block/memory.h"
#include "block/null.h"
#include "format/bitmap.h"
#include "format/limits.h"
#include "job/convert.h"
#include "job/holes.h"

namespace byre {

namespace {

uint64_t divide_up(uint64_t value, uint64_t by) { return value / by + (value % by != 0); }

struct RefcountClusters {
  uint64_t blocks = 0;
  uint64_t table = 0;
};

/// The blocks that count `others` clusters, themselves, and a table of at least that size.
RefcountClusters refcount_clusters(uint64_t others, uint64_t table_min,
                                   const CreateOptions& image) {
  const uint64_t per_block = image.cluster_size * 8 / image.refcount_bits;
  RefcountClusters found{.table = table_min};
  for (;;) {
    const uint64_t blocks = divide_up(others + found.blocks + found.table, per_block);
    const uint64_t table = std::max(table_min, divide_up(blocks * 8, image.cluster_size));
    if (blocks == found.blocks && table == found.table) return found;
    found = {.blocks = blocks, .table = table};
  }
}

/// L1 and L2 tables for all of the disk.
struct TableClusters {
  uint64_t l1 = 0;
  uint64_t l2 = 0;
};

TableClusters all_tables(const CreateOptions& image) {
  const uint64_t entry_size = image.extended_l2 ? 16 : 8;
  const uint64_t clusters = divide_up(image.size, image.cluster_size);
  const uint64_t l2 = divide_up(clusters, image.cluster_size / entry_size);
  return {.l1 = divide_up(l2, image.cluster_size / 8), .l2 = l2};
}

/// The file of an image that was made for a disk and got what `counts` says, and `others`; none
/// when its refcount table has to grow, or its layout is not that simple.
std::optional<uint64_t> plain_size(const CreateOptions& image, const MapCounts& counts,
                                   uint64_t others = 0) {
  if (!image.backing_file.empty() || !image.data_file.empty()) return std::nullopt;
  const TableClusters all = all_tables(image);
  const bool is_full = image.preallocation != Preallocation::off;
  const uint64_t clusters = divide_up(image.size, image.cluster_size);
  const uint64_t at_first = 1 + all.l1 + (is_full ? all.l2 + clusters : 0);
  const uint64_t table = refcount_clusters(at_first, 1, image).table;
  const uint64_t at_last =
      others + (is_full ? at_first : at_first + counts.tables + counts.clusters);
  const RefcountClusters last = refcount_clusters(at_last, table, image);
  if (last.table != table) return std::nullopt;
  return (at_last + last.blocks + last.table) * image.cluster_size;
}

/// Of an entry of the bitmap directory (spec: "Bitmap directory"), without its name.
constexpr uint64_t kEntryFixedSize = 24;

/// The bitmaps of `source`, stored in clusters of that size: bits, a table for each, the directory.
uint64_t stored_bitmaps(const Image& source, uint64_t size, uint64_t cluster_size) {
  uint64_t clusters = 0;
  uint64_t directory = 0;
  for (const auto& slot : source.bitmaps()) {
    if (slot->state != BitmapState::usable) continue;
    const uint64_t bits = divide_up(size, slot->entry.granularity());
    const uint64_t data = divide_up(divide_up(bits, 8), cluster_size);
    clusters += data + divide_up(data * 8, cluster_size);
    directory += round_up(kEntryFixedSize + slot->entry.name.size(), 8);
  }
  return (clusters + divide_up(directory, cluster_size)) * cluster_size;
}

/// The bitmaps of `source` that can be copied, as a target with this geometry begins with them.
struct CopiedBitmaps {
  std::vector<std::unique_ptr<DirtyBits>> bits;
  std::vector<NewBitmap> bitmaps;  ///< Over `bits`.
};

Task<CopiedBitmaps> read_bitmaps(Image& source) {
  CopiedBitmaps copied;
  for (const auto& slot : source.bitmaps()) {
    if (slot->state != BitmapState::usable) continue;
    copied.bits.push_back(co_await source.read_bitmap(slot->entry.name));
    copied.bitmaps.push_back({.name = slot->entry.name,
                              .granularity = slot->entry.granularity(),
                              .enabled = slot->entry.automatic,
                              .dirty = copied.bits.back().get()});
  }
  co_return std::move(copied);
}

/// Clusters that they take; none where tables lie in several clusters, which must be side by side.
std::optional<uint64_t> clusters_of(const CopiedBitmaps& copied, const Geometry& geometry) {
  uint64_t clusters = 0;
  uint64_t directory = 0;
  for (const NewBitmap& bitmap : copied.bitmaps) {
    const uint32_t granularity_bits = bitmap.dirty->granularity_bits();
    const uint64_t entries =
        bitmap_table_entries_for(bitmap.dirty->size(), granularity_bits, geometry);
    if (entries * 8 > geometry.cluster_size()) return std::nullopt;
    DirtyBits stored(bitmap.dirty->size(), granularity_bits,
                     bitmap_part_bytes(granularity_bits, geometry));
    stored.merge(*bitmap.dirty);
    const uint64_t per_cluster = geometry.cluster_size() / stored.part_bytes();
    for (uint64_t part = 0; part < stored.parts(); part += per_cluster) {
      const uint64_t end = std::min(part + per_cluster, stored.parts());
      if (stored.fill_of(part, end) == DirtyBits::Fill::mixed) ++clusters;
    }
    clusters += divide_up(entries * 8, geometry.cluster_size());
    directory += round_up(kEntryFixedSize + bitmap.name.size(), 8);
  }
  if (directory > geometry.cluster_size()) return std::nullopt;
  return clusters + divide_up(directory, geometry.cluster_size());
}

/// A file in memory that keeps metadata, and of guest data only how far they reach.
class HollowFile final : public Filter {
 public:
  explicit HollowFile(Reactor& reactor) : Filter(std::make_unique<MemoryDevice>(reactor)) {}
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    switch (options.tag) {
      case IoTag::write_guest:
      case IoTag::write_compressed:
      case IoTag::copy_up_write:
        co_await reach(offset + data.size());
        break;
      default:
        co_await below().write(offset, data, options);
    }
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override {
    co_await below().zero(offset, length, options);
  }
  Task<void> allocate(uint64_t offset, uint64_t length) override {
    co_await reach(offset + length);
  }

 private:
  Task<void> reach(uint64_t end) {
    if (end > size()) co_await below().resize(end);
  }
};

/// A disk that is known by its map alone: what it has as data reads as some data.
class MapOnly final : public Forwarder {
 public:
  explicit MapOnly(const Disk& disk) : Forwarder(*disk.device), disk_(disk) {}
  Task<void> read(uint64_t, MutableBytes data, ReadOptions) override {
    std::memset(data.data(), 0xff, data.size());
    co_return;
  }
  Task<Extent> status(uint64_t offset, uint64_t length) override {
    Extent extent = co_await below().status(offset, length);
    co_await look_for_holes(disk_, extent);
    co_return extent;
  }

 private:
  const Disk& disk_;
};

/// With nothing read, pieces may be as large as the file's own steps.
constexpr uint64_t kPiece = 2 * MiB;

ConvertOptions convert_options(const MeasureTarget& target, const Image& image,
                               ExactOptions exact) {
  ConvertOptions options;
  const bool backed = !target.image.backing_file.empty();
  options.target_reads_zero = !backed && !target.image.data_file_raw;
  options.target_has_backing = backed;
  options.target_backing_size = backed ? target.image.size : 0;
  options.compressed = exact.compressed;
  options.request_size = std::max<uint64_t>(kPiece, image.preferred_size());
  if (!exact.read_data) {
    options.requests_max = 1;
    options.sparse_size = options.request_size;
  }
  return options;
}

Task<void> fill(Image& image, const MeasureTarget& target, const Disk& source, ExactOptions exact,
                Progress& progress) {
  MapOnly map_only(source);
  Device* from = exact.read_data ? source.device.get() : &map_only;
  ConvertOptions options = convert_options(target, image, exact);
  Convert* running = nullptr;
  options.progress = [&](uint64_t done, uint64_t total) {
    progress.set(done, total);
    if (progress.stopped() && running) running->stop();
  };
  Convert job({from}, image, std::move(options));
  running = &job;
  co_await job.run();
}

}  // namespace

Result<uint64_t> metadata_size(const CreateOptions& image) {
  const TableClusters tables = all_tables(image);
  if (tables.l2 > kL1EntriesMax) {
    return invalid("The image size is too large (try using a larger cluster size)");
  }
  const uint64_t others = 1 + tables.l1 + tables.l2;
  const uint64_t clusters = divide_up(image.size, image.cluster_size);
  const RefcountClusters counts = refcount_clusters(others + clusters, 1, image);
  return (others + counts.blocks + counts.table) * image.cluster_size;
}

Result<uint64_t> full_size(const MeasureTarget& target) {
  if (target.format == DiskFormat::raw) return target.image.size;
  BYRE_TRY(metadata, metadata_size(target.image));
  return metadata + round_up(target.image.size, target.image.cluster_size);
}

Task<MapCounts> count_map(const Disk& source, const CreateOptions& image, Progress& progress) {
  const uint64_t size = source.device->size();
  if (size != 0) progress.set_total(size);
  const uint64_t per_table = image.cluster_size / (image.extended_l2 ? 16 : 8);
  MapCounts counts;
  uint64_t clusters_seen = 0;  // Up to here, of the target.
  uint64_t tables_seen = 0;
  for (uint64_t at = 0; at < size;) {
    if (Result<void> wanted = progress.check("measuring"); !wanted) {
      co_return std::move(wanted).error();
    }
    Extent extent = co_await source.device->status(at, size - at);
    if (extent.length == 0) co_return Error(Errc::io, cat("no status for ", hex(at)));
    co_await look_for_holes(source, extent);
    const bool present = extent.allocated || extent.depth > 0;
    if (extent.data && !extent.zero && present) {
      const uint64_t first = std::max(at / image.cluster_size, clusters_seen);
      const uint64_t end = divide_up(at + extent.length, image.cluster_size);
      if (end > first) {
        counts.clusters += end - first;
        const uint64_t first_table = std::max(first / per_table, tables_seen);
        tables_seen = divide_up(end, per_table);
        counts.tables += tables_seen - first_table;
      }
      clusters_seen = std::max(clusters_seen, end);
    }
    at += extent.length;
    progress.advance(extent.length);
  }
  co_return counts;
}

std::optional<uint64_t> bitmaps_size(const MeasureTarget& target, const Disk& source) {
  const bool has_bitmaps = source.image && source.image->geometry().version >= 3;
  const bool takes_bitmaps = target.format == DiskFormat::qcow2 && target.image.version >= 3;
  if (!has_bitmaps || !takes_bitmaps) return std::nullopt;
  return stored_bitmaps(*source.image, source.size(), target.image.cluster_size);
}

Task<FileSizes> bound_of(const MeasureTarget& target, const Disk* source, Progress& progress) {
  FileSizes sizes;
  sizes.fully_allocated = co_await full_size(target);
  if (target.format == DiskFormat::raw) {
    sizes.required = sizes.fully_allocated;
    co_return sizes;
  }
  sizes.required = co_await metadata_size(target.image);
  const bool gets_blocks = target.image.preallocation == Preallocation::falloc ||
                           target.image.preallocation == Preallocation::full;
  if (gets_blocks || (source && !target.image.backing_file.empty())) {
    sizes.required = sizes.fully_allocated;
  } else if (source) {
    const MapCounts counts = co_await count_map(*source, target.image, progress);
    sizes.required += counts.clusters * target.image.cluster_size;
  }
  co_return sizes;
}

/// Runs the conversion.
static Task<uint64_t> simulated_size(const MeasureTarget& target, const Disk* source,
                                     FileOpener& opener, Reactor& reactor, ExactOptions options,
                                     Progress& progress) {
  HollowFile file(reactor);
  HollowFile data(reactor);
  co_await create_image(file, target.image);
  Child backing;
  if (!target.image.backing_file.empty()) {
    backing = std::make_unique<NullDevice>(reactor, NullOptions{.size = target.image.size});
  }
  Child data_file;
  if (!target.image.data_file.empty()) {
    co_await data.resize(target.image.size);
    data_file = std::make_unique<Forwarder>(static_cast<Device&>(data));
  }
  std::unique_ptr<Image> image =
      co_await Image::open_over(std::make_unique<Forwarder>(static_cast<Device&>(file)), opener,
                                {.writable = true,
                                 .allocate_in_order = true,
                                 .reuse_freed = false,
                                 .scan = ImageOptions::Scan::never},
                                std::move(backing), std::move(data_file));
  Result<void> filled;
  if (source) filled = co_await fill(*image, target, *source, options, progress).result();
  if (filled && options.bitmaps) {
    CopiedBitmaps copied = co_await read_bitmaps(*source->image);
    if (!copied.bitmaps.empty())
      filled = co_await image->add_bitmaps(std::move(copied.bitmaps)).result();
  }
  Result<void> closed = co_await image->close().result();
  if (!filled) co_return std::move(filled).error();
  if (!closed) co_return std::move(closed).error();
  co_return file.size();
}

/// From the map alone; none where it does not say.
static Task<std::optional<ExactSize>> plain_sizes(const MeasureTarget& target, const Disk* source,
                                                  const MapCounts& counts, bool bitmaps) {
  const std::optional<uint64_t> file = plain_size(target.image, counts);
  if (!file) co_return std::optional<ExactSize>();
  if (!bitmaps) co_return std::optional(ExactSize{*file});
  const Geometry geometry = co_await check_create(target.image);
  const CopiedBitmaps copied = co_await read_bitmaps(*source->image);
  const std::optional<uint64_t> clusters = clusters_of(copied, geometry);
  if (!clusters) co_return std::optional<ExactSize>();
  const std::optional<uint64_t> with = plain_size(target.image, counts, *clusters);
  if (!with) co_return std::optional<ExactSize>();
  co_return std::optional(ExactSize{*file, *with - *file});
}

Task<std::optional<ExactSize>> exact_size(const MeasureTarget& target, const Disk* source,
                                          FileOpener& opener, Reactor& reactor,
                                          ExactOptions options, Progress& progress) {
  if (target.format == DiskFormat::raw) co_return std::optional(ExactSize{target.image.size});
  if (!options.read_data) {
    MapCounts counts;
    if (source) counts = co_await count_map(*source, target.image, progress);
    const std::optional<ExactSize> plain =
        co_await plain_sizes(target, source, counts, options.bitmaps);
    if (plain) co_return plain;
    const uint64_t clusters = target.image.wants_tables() || !target.image.backing_file.empty()
                                  ? divide_up(target.image.size, target.image.cluster_size)
                                  : counts.clusters;
    if (clusters > kSimulatedMax) co_return std::optional<ExactSize>();
  }
  const bool with_bitmaps = std::exchange(options.bitmaps, false);
  ExactSize size{.file =
                     co_await simulated_size(target, source, opener, reactor, options, progress)};
  if (with_bitmaps) {
    options.bitmaps = true;
    size.bitmaps =
        co_await simulated_size(target, source, opener, reactor, options, progress) - size.file;
  }
  co_return std::optional(size);
}

}  // namespace byre
