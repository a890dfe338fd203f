// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/bitmap_scan.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "format/bitmap.h"

namespace byre {
namespace {

/// Tables are read in pieces of this size.
constexpr uint64_t kPiece = MiB;

class BitmapScan {
 public:
  explicit BitmapScan(ScanContext& scan) : scan_(scan), result_(scan.result()) {}
  Task<void> run();

 private:
  const Geometry& geometry() const { return scan_.geometry(); }
  void check(const Bitmap& bitmap);
  void check_extra_data(const Bitmap& bitmap, FindingPlace place);
  Task<void> count(const Bitmap& bitmap, uint64_t index);
  static uint64_t identity_of(uint64_t index) { return kFirstBitmapIdentity + 2 * index; }
  void count_entry(uint64_t raw, uint64_t in_table, const Bitmap& bitmap, uint64_t index);

  ScanContext& scan_;
  ScanResult& result_;
};

Task<void> BitmapScan::run() {
  const std::optional<BitmapsExtension>& extension = result_.head.extensions.bitmaps;
  if (!extension || (result_.head.header.autoclear & kBitmaps) == 0) co_return;
  const uint64_t at = extension->directory_offset.value;
  if (!scan_.count_range(at, extension->directory_size, Owner::other, kBitmapDirectoryIdentity, 1,
                         "bitmap directory")) {
    result_.bitmaps_lost = true;
    co_return;
  }
  std::vector<std::byte> bytes(extension->directory_size);
  Result<void> read = co_await scan_.read_padded(at, bytes, IoTag::bitmap_load).result();
  if (!read) {
    scan_.unreadable(read.error());
    co_return;
  }
  const Result<std::vector<Bitmap>> bitmaps =
      parse_bitmap_directory(bytes, extension->count, geometry());
  if (!bitmaps) {
    result_.bitmaps_lost = true;
    scan_.damage(1,
                 {.kind = FindingKind::bitmap,
                  .structure = "bitmap directory",
                  .at = at,
                  .length = extension->directory_size},
                 bitmaps.error().message());
    co_return;
  }
  for (uint64_t i = 0; i < bitmaps->size(); ++i) {
    const Bitmap& bitmap = (*bitmaps)[i];
    check(bitmap);
    co_await count(bitmap, i);
  }
}

void BitmapScan::check(const Bitmap& bitmap) {
  FindingPlace place{.kind = FindingKind::bitmap,
                     .structure = "bitmap directory",
                     .at = result_.head.extensions.bitmaps->directory_offset.value,
                     .length = result_.head.extensions.bitmaps->directory_size};
  const auto [fault_kind, why] = why_unusable(bitmap, result_.head.header.size, geometry());
  switch (fault_kind) {
    case BitmapFault::none:
      return check_extra_data(bitmap, place);
    case BitmapFault::in_use:
      scan_.note(FindingKind::bitmap, why);
      return check_extra_data(bitmap, place);
    case BitmapFault::foreign:
      result_.foreign_bitmaps = true;
      return scan_.fault(place, why, "; other readers refuse the image");
    case BitmapFault::unfit:
      place.repair = RepairKind::fix_flag;
      break;
    case BitmapFault::invalid:
      place.repair = RepairKind::drop;
      break;
  }
  result_.repairable_bitmaps = true;
  scan_.fault(place, why);
}

/// Within the format, and yet no other reader takes them.
void BitmapScan::check_extra_data(const Bitmap& bitmap, FindingPlace place) {
  if (bitmap.extra_data.empty() && !bitmap.extra_data_compatible) return;
  if (bitmap.extra_data.empty()) {
    place.repair = RepairKind::fix_flag;
    result_.repairable_bitmaps = true;
    return scan_.fault(place, "bitmap ", quoted(bitmap.name),
                       ": has the flag for extra data, and none; other readers refuse the image");
  }
  result_.foreign_bitmaps = true;
  scan_.fault(place, "bitmap ", quoted(bitmap.name), ": has ", bitmap.extra_data.size(),
              " bytes of extra data; other readers refuse the image");
}

Task<void> BitmapScan::count(const Bitmap& bitmap, uint64_t index) {
  const uint64_t at = bitmap.table_offset.value;
  const uint64_t size = uint64_t{bitmap.table_entries} * 8;
  const std::string what = cat("bitmap ", quoted(bitmap.name), ": table");
  if (!scan_.count_range(at, size, Owner::other, identity_of(index), 1, what)) {
    result_.broken_bitmaps.insert(index);
    co_return;
  }
  std::vector<std::byte> piece;
  for (uint64_t done = 0; done < size; done += piece.size()) {
    piece.resize(std::min(size - done, kPiece));
    const Result<void> read =
        co_await scan_.read_padded(at + done, piece, IoTag::bitmap_load).result();
    if (!read) {
      scan_.unreadable(read.error());
      co_return;
    }
    for (uint64_t i = 0; i < piece.size(); i += 8) {
      const auto raw = load_be<uint64_t>(piece, i);
      if (raw != 0) count_entry(raw, done + i, bitmap, index);
    }
  }
}

/// `in_table`: where the entry lies in its table.
void BitmapScan::count_entry(uint64_t raw, uint64_t in_table, const Bitmap& bitmap,
                             uint64_t index) {
  const std::string name = cat("bitmap ", quoted(bitmap.name), ": ");
  const Result<BitmapTableEntry> entry = decode_bitmap_table_entry(raw, geometry());
  if (!entry) {
    result_.broken_bitmaps.insert(index);
    scan_.damage(1,
                 {.kind = FindingKind::bitmap,
                  .structure = "bitmap table",
                  .at = bitmap.table_offset.value + in_table,
                  .length = 8,
                  .entry = raw},
                 name, entry.error().message());
    return;
  }
  if (!entry->data) return;
  // Each cluster of bitmap data is an owner of its own.
  const uint64_t own = (identity_of(index) + 1) ^ in_table << 24;
  const bool there =
      scan_.count_range(geometry().start_of(*entry->data).value, geometry().cluster_size(),
                        Owner::other, own, 1, name + "data");
  if (!there || result_.references.counts.find(*entry->data)->aliased) {
    result_.broken_bitmaps.insert(index);
  }
}

}  // namespace

Task<void> scan_bitmaps(ScanContext& scan) {
  BitmapScan bitmaps(scan);
  co_await bitmaps.run();
}

}  // namespace byre
