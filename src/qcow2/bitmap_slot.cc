// SPDX-License-Identifier: Apache-2.0
#include "qcow2/bitmap_slot.h"

#include <algorithm>
#include <bit>

namespace byre {

namespace {

/// Disk that one part stands for, where sectors and clusters allow it.
constexpr uint64_t kPartOfDisk = 256 * MiB;

/// What keeps byre from using it, or its table from being believed.
Task<void> judge(Device& file, const Head& head, BitmapSlot& slot) {
  const Bitmap& entry = slot.entry;
  const Geometry& g = head.geometry;
  if (entry.in_use) {
    slot.state = BitmapState::inconsistent;
    slot.reason = cat("bitmap ", quoted(entry.name), ": was not saved correctly (in_use)");
  } else if (Result<void> usable = check_usable(entry, head.header.size, g); !usable) {
    slot.state =
        usable.error().code() == Errc::corrupt ? BitmapState::inconsistent : BitmapState::foreign;
    slot.reason = usable.error().message();
  }
  // No reader takes more; the bound keeps what a file claims out of memory.
  if (entry.table_entries > kBitmapDataSizeMax / g.cluster_size()) {
    slot.state = BitmapState::foreign;
    slot.reason = cat("bitmap ", quoted(entry.name), ": a table of ", entry.table_entries,
                      " entries is too large");
    co_return;
  }
  const std::vector<uint64_t> raw =
      co_await load_table(file, entry.table_offset, entry.table_entries, Mark::bitmap_load);
  std::vector<BitmapTableEntry> table;
  for (uint64_t i = 0; i < raw.size(); ++i) {
    Result<BitmapTableEntry> decoded = decode_bitmap_table_entry(raw[i], g);
    if (!decoded) {
      slot.state = BitmapState::inconsistent;
      slot.reason =
          cat("bitmap ", quoted(entry.name), ": entry ", i, ": ", decoded.error().message());
      co_return;
    }
    table.push_back(*decoded);
  }
  slot.table = std::move(table);
}

}  // namespace

uint64_t bitmap_part_bytes(uint32_t granularity_bits, const Geometry& geometry) {
  return std::clamp(kPartOfDisk >> granularity_bits >> 3, kSectorSize, geometry.cluster_size());
}

Task<BitmapList> load_bitmap_list(Device& file, const Head& head) {
  const auto& extension = head.extensions.bitmaps;
  BitmapList list;
  if (!extension || (head.header.autoclear & kBitmaps) == 0) co_return std::move(list);
  std::vector<std::byte> directory(extension->directory_size);
  co_await file.read(extension->directory_offset.value, directory, Mark::bitmap_load)
      .doing("bitmap directory");
  std::vector<Bitmap> bitmaps =
      co_await parse_bitmap_directory(directory, extension->count, head.geometry)
          .doing("bitmap directory");
  for (Bitmap& bitmap : bitmaps) {
    auto slot = std::make_shared<BitmapSlot>();
    slot->entry = std::move(bitmap);
    co_await judge(file, head, *slot).doing("bitmap ", quoted(slot->entry.name));
    list.push_back(std::move(slot));
  }
  co_return std::move(list);
}

Task<std::unique_ptr<DirtyBits>> load_bitmap_bits(Device& file, const Geometry& g,
                                                  const BitmapSlot& slot, uint64_t size) {
  const Bitmap& entry = slot.entry;
  auto bits = std::make_unique<DirtyBits>(size, entry.granularity_bits,
                                          bitmap_part_bytes(entry.granularity_bits, g));
  const uint64_t per_cluster = g.cluster_size() / bits->part_bytes();
  std::vector<std::byte> cluster(g.cluster_size());
  for (uint64_t i = 0; i < slot.table.size(); ++i) {
    const uint64_t first = i * per_cluster;
    const uint64_t end = std::min(first + per_cluster, bits->parts());
    const BitmapTableEntry& at = slot.table[i];
    if (!at.data) {
      for (uint64_t part = first; part < end; ++part) bits->load(part, at.ones);
      continue;
    }
    const HostOffset offset = g.start_of(*at.data);
    // The file may end inside the last one's padding.
    const uint64_t needed = (end - first) * bits->part_bytes();
    co_await file.read(offset.value, MutableBytes(cluster).first(needed), Mark::bitmap_load)
        .doing("bitmap ", quoted(entry.name), ": data at ", offset);
    for (uint64_t part = first; part < end; ++part) {
      bits->load(part,
                 Bytes(cluster).subspan((part - first) * bits->part_bytes(), bits->part_bytes()));
    }
  }
  co_return std::move(bits);
}

}  // namespace byre
