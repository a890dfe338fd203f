// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/counted.h"

#include "base/checked.h"
#include "format/bitmap.h"
#include "format/l1.h"

namespace byre {
namespace {

Task<void> check_tables(const std::vector<uint64_t>& l1, const Geometry& g, Allocator& allocator) {
  for (const uint64_t word : l1) {
    // What leads nowhere is met by whoever follows it.
    const Result<L1Entry> entry = decode_l1(word, g);
    if (entry && entry->l2) co_await allocator.load({*entry->l2, 1}).doing("L2 table");
  }
}

Task<void> check_bitmaps(Device& file, const ImageHeader& head, Allocator& allocator) {
  const std::optional<BitmapsExtension>& extension = head.extensions.bitmaps;
  if (!extension || (head.header.autoclear & kBitmaps) == 0) co_return;
  const Geometry& g = head.geometry;
  co_await allocator.load(hosts(*extension, g)).doing("bitmap directory");
  if (!within(extension->directory_offset.value, extension->directory_size, file.size())) co_return;
  std::vector<std::byte> bytes(extension->directory_size);
  co_await file.read(extension->directory_offset.value, bytes, IoTag::bitmap_load);
  const Result<std::vector<Bitmap>> bitmaps = parse_bitmap_directory(bytes, extension->count, g);
  if (!bitmaps) co_return;  // Nobody uses them.
  for (const Bitmap& bitmap : *bitmaps) {
    if (!within(bitmap.table_offset.value, uint64_t{bitmap.table_entries} * 8, file.size()))
      continue;
    co_await allocator.load(hosts(bitmap, g)).doing("bitmap ", quoted(bitmap.name), ": table");
    const std::vector<uint64_t> table =
        co_await load_table(file, bitmap.table_offset, bitmap.table_entries, IoTag::bitmap_load);
    for (const uint64_t word : table) {
      const Result<BitmapTableEntry> entry = decode_bitmap_table_entry(word, g);
      if (!entry || !entry->data) continue;
      co_await allocator.load({*entry->data, 1}).doing("bitmap ", quoted(bitmap.name), ": data");
    }
  }
}

}  // namespace

Task<void> check_metadata_is_counted(Device& file, const ImageHeader& head,
                                     const std::vector<Snapshot>& snapshots,
                                     std::vector<uint64_t> l1, Allocator& allocator) {
  const Geometry& g = head.geometry;
  co_await allocator.load({HostCluster{0}, 1}).doing("header");
  co_await allocator.load(allocator.durable_table_at()).doing("refcount table");
  for (const HostCluster block : allocator.refcount_blocks()) {
    co_await allocator.load({block, 1}).doing("refcount block");
  }
  const HostSpan own{g.cluster_of(head.header.l1_offset),
                     g.clusters_for(uint64_t{head.header.l1_entries} * 8)};
  co_await allocator.load(own).doing("L1 table");
  co_await check_tables(l1, g, allocator);
  for (const Snapshot& snapshot : snapshots) {
    const auto named = [&](std::string_view what) {
      return cat("snapshot ", quoted(snapshot.name), ": ", what);
    };
    co_await check_l1_table(snapshot, g);
    co_await allocator.load(hosts(snapshot, g)).doing(named("L1 table"));
    const std::vector<uint64_t> table =
        co_await load_table(file, snapshot.l1_offset, snapshot.l1_entries, IoTag::l1_load);
    co_await check_tables(table, g, allocator).doing(named("tables"));
  }
  if (!snapshots.empty()) {
    const std::vector<std::byte> table = co_await serialize_snapshots(snapshots);
    const HostSpan at{g.cluster_of(head.header.snapshots_offset), g.clusters_for(table.size())};
    co_await allocator.load(at).doing("snapshot table");
  }
  co_await check_bitmaps(file, head, allocator);
}

}  // namespace byre
