// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/bitmap_check.h"

#include <algorithm>

#include "format/bitmap.h"
#include "format/limits.h"

namespace byre {
namespace {

class BitmapCheck {
 public:
  BitmapCheck(ScanContext& scan, const Bitmap& bitmap)
      : scan_(scan), bitmap_(bitmap), name_(cat("bitmap ", quoted(bitmap.name), ": ")) {}

  Task<void> run() {
    if (bitmap_.in_use) {
      note("in use: whoever tracked it did not end in order, so it will not be used");
    }
    // The scan has said so: where its bits end cannot be told, or nobody reads so many.
    const Unusable unusable =
        why_unusable(bitmap_, scan_.result().head.header.size, scan_.geometry());
    if (unusable.fault == BitmapFault::invalid ||
        bitmap_.table_entries > kBitmapDataSizeMax / scan_.geometry().cluster_size()) {
      co_return;
    }
    const Result<std::vector<uint64_t>> table =
        co_await load_table(scan_.file(), bitmap_.table_offset, bitmap_.table_entries,
                            IoTag::bitmap_load)
            .result();
    if (!table) co_return;  // Behind the end, or unreadable: known.
    for (uint64_t i = 0; i < table->size(); ++i) {
      co_await scan_.go_on();
      const Result<BitmapTableEntry> entry =
          decode_bitmap_table_entry((*table)[i], scan_.geometry());
      if (!entry || !entry->data) continue;
      co_await check_data(i, *entry->data);
    }
  }

 private:
  template <class... Parts>
  void note(const Parts&... parts) {
    scan_.add_finding(
        Severity::note,
        {.kind = FindingKind::bitmap, .structure = "bitmap", .repair = RepairKind::none}, name_,
        parts...);
  }

  Task<void> check_data(uint64_t index, HostCluster cluster) {
    const Geometry& g = scan_.geometry();
    const uint64_t at = g.start_of(cluster).value;
    if (at >= scan_.result().file_size()) co_return;
    std::vector<std::byte> bytes(g.cluster_size());
    Result<void> read = co_await scan_.read_padded(at, bytes, IoTag::bitmap_load).result();
    if (!read) {
      scan_.unreadable(std::move(read).error().while_doing(cat(name_, "data at ", hex(at))));
      co_return;
    }
    // Bits of granules that the disk does not have.
    const uint64_t granules =
        div_ceil(scan_.result().head.header.size, uint64_t{1} << bitmap_.granularity_bits);
    const uint64_t first = index * g.cluster_size() * 8;
    const uint64_t bits = g.cluster_size() * 8;
    if (first + bits <= granules) co_return;
    const uint64_t used = granules > first ? granules - first : 0;
    MutableBytes tail = MutableBytes(bytes).subspan(used / 8);
    if (used % 8 != 0) tail[0] &= static_cast<std::byte>(0xff << used % 8);
    if (!is_zero(tail))
      note("bits behind the end of the disk are set, in the cluster at ", hex(at));
  }

  ScanContext& scan_;
  const Bitmap& bitmap_;
  const std::string name_;
};

}  // namespace

Task<void> check_bitmaps(ScanContext& scan) {
  const std::optional<BitmapsExtension>& extension = scan.result().head.extensions.bitmaps;
  if (!extension) co_return;
  if ((scan.result().head.header.autoclear & kBitmaps) == 0) {
    scan.add_finding(Severity::note,
                     {.kind = FindingKind::bitmap,
                      .structure = "bitmaps extension",
                      .at = extension->directory_offset.value,
                      .length = extension->directory_size,
                      .repair = RepairKind::none},
                     extension->count,
                     " bitmaps were left behind by a writer that did not know them; nobody uses "
                     "them, and their clusters are leaks");
    co_return;
  }
  // What is wrong with the directory as a whole the scan has said.
  std::vector<std::byte> bytes(extension->directory_size);
  const Result<void> read =
      co_await scan.read_padded(extension->directory_offset.value, bytes, IoTag::bitmap_load)
          .result();
  if (!read) co_return;
  const Result<std::vector<Bitmap>> bitmaps =
      parse_bitmap_directory(bytes, extension->count, scan.geometry());
  if (!bitmaps) co_return;
  for (const Bitmap& bitmap : *bitmaps) {
    BitmapCheck check(scan, bitmap);
    co_await check.run();
  }
}

}  // namespace byre
