// SPDX-License-Identifier: Apache-2.0
#include "qcow2/bitmap/bitmap_slot.h"

#include <algorithm>
#include <bit>

namespace byre {

namespace {

/// Disk that one part stands for, where sectors and clusters allow it.
constexpr uint64_t kPartOfDisk = 256 * MiB;

/// Entries of all tables that are in memory at most.
constexpr uint64_t kTableEntriesMax = uint64_t{4} << 20;
/// A table that fits no disk of this size is read up to this length, so that whoever removes the
/// bitmap can free what it holds.
constexpr uint64_t kUnfitEntriesMax = 4096;

/// Is its table worth its memory?
bool is_worth_reading(const Bitmap& entry, BitmapFault fault, uint64_t size, const Geometry& g) {
  if (fault == BitmapFault::foreign)
    return entry.table_entries <= kBitmapDataSizeMax / g.cluster_size();
  if (entry.table_entries <= kUnfitEntriesMax) return true;
  return fault != BitmapFault::invalid &&
         entry.table_entries == bitmap_table_entries_for(size, entry.granularity_bits, g);
}

/// What keeps byre from using it, or its table from being believed.  Takes what it reads from
/// `entries_left`.
Task<void> validate(Device& file, const ImageHeader& head, BitmapSlot& slot,
                    uint64_t& entries_left) {
  const Bitmap& entry = slot.entry;
  const Geometry& g = head.geometry;
  auto [fault, why] = why_unusable(entry, head.header.size, g);
  if (fault != BitmapFault::none) {
    slot.state = fault == BitmapFault::foreign ? BitmapState::foreign : BitmapState::inconsistent;
    slot.reason = std::move(why);
  }
  if (!is_worth_reading(entry, fault, head.header.size, g)) co_return;
  if (entry.table_entries > entries_left) {
    co_await fail(
        corrupt("the tables of all bitmaps have more than ", kTableEntriesMax, " entries"));
  }
  entries_left -= entry.table_entries;
  const std::vector<uint64_t> raw =
      co_await load_table(file, entry.table_offset, entry.table_entries, IoTag::bitmap_load);
  std::vector<BitmapTableEntry> table;
  table.reserve(raw.size());
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

Task<BitmapList> load_bitmap_list(Device& file, const ImageHeader& head) {
  const auto& extension = head.extensions.bitmaps;
  BitmapList list;
  if (!extension || (head.header.autoclear & kBitmaps) == 0) co_return std::move(list);
  std::vector<std::byte> directory(extension->directory_size);
  co_await file.read(extension->directory_offset.value, directory, IoTag::bitmap_load)
      .doing("bitmap directory");
  std::vector<Bitmap> bitmaps =
      co_await parse_bitmap_directory(directory, extension->count, head.geometry)
          .doing("bitmap directory");
  uint64_t entries_left = kTableEntriesMax;
  for (Bitmap& bitmap : bitmaps) {
    auto slot = std::make_shared<BitmapSlot>();
    slot->entry = std::move(bitmap);
    co_await validate(file, head, *slot, entries_left).doing("bitmap ", quoted(slot->entry.name));
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
    co_await file.read(offset.value, MutableBytes(cluster).first(needed), IoTag::bitmap_load)
        .doing("bitmap ", quoted(entry.name), ": data at ", offset);
    for (uint64_t part = first; part < end; ++part) {
      bits->load(part,
                 Bytes(cluster).subspan((part - first) * bits->part_bytes(), bits->part_bytes()));
    }
  }
  co_return std::move(bits);
}

}  // namespace byre
