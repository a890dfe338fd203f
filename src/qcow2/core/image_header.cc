// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/image_header.h"

#include <algorithm>
#include <span>

#include "base/checked.h"
#include "format/limits.h"

namespace byre {
namespace {

/// Larger than most first clusters, so that the second read is rare.
constexpr uint64_t kFirstRead = 64 * KiB;
constexpr uint64_t kFirstSnapshotRead = 64 * KiB;

std::string_view name_of_table(IoTag tag) {
  switch (tag) {
    case IoTag::l1_load:
      return "L1 table";
    case IoTag::refcount_table_load:
      return "refcount table";
    case IoTag::bitmap_load:
      return "bitmap table";
    default:
      return "table";
  }
}

Task<std::vector<std::byte>> read_first_cluster(Device& file) {
  std::vector<std::byte> bytes(std::min(file.size(), kFirstRead));
  co_await file.read(0, bytes, IoTag::header_read);
  const uint32_t cluster_bits = co_await parse_cluster_bits(bytes);

  const uint64_t wanted = std::min(file.size(), uint64_t{1} << cluster_bits);
  const size_t have = bytes.size();
  bytes.resize(wanted);
  if (wanted > have) {
    co_await file.read(have, MutableBytes(bytes).subspan(have), IoTag::header_read);
  }
  // A file that ends behind the header but inside its first cluster reads as it will once it has
  // grown: what is missing is zeros.
  if (bytes.size() >= kHeaderSizeV3) bytes.resize(uint64_t{1} << cluster_bits);
  co_return bytes;
}

Task<ImageHeader> parse_head(Device& file, OpenFor purpose) {
  std::vector<std::byte> bytes = co_await read_first_cluster(file);
  ImageHeader head;
  head.header = co_await parse_header(bytes, purpose);
  head.extensions = co_await parse_extensions(bytes, head.header);
  co_await check_incompatible(head.header, head.extensions);
  head.backing_file = co_await parse_backing_file(bytes, head.header);
  head.geometry = geometry_of(head.header);
  bytes.resize(kSectorSize);
  head.sector = std::move(bytes);
  co_return head;
}

/// The table's length is known only from its contents, so a prefix is read that grows until it
/// tells.
Task<std::vector<Snapshot>> read_snapshots(Device& file, const ImageHeader& head) {
  const uint64_t at = head.header.snapshots_offset.value;
  const uint32_t count = head.header.snapshot_count;
  if (at >= file.size()) co_return corrupt("file ends at ", hex(file.size()));
  const uint64_t available = std::min(file.size() - at, kSnapshotTableSizeMax);

  std::vector<std::byte> bytes;
  for (uint64_t wanted = std::min(available, kFirstSnapshotRead);;) {
    const size_t have = bytes.size();
    bytes.resize(wanted);
    co_await file.read(at + have, MutableBytes(bytes).subspan(have), IoTag::snapshot_load);
    const std::optional<uint64_t> size = co_await snapshot_table_size(bytes, count);
    const bool whole = size && *size <= bytes.size();
    // The file may end inside the padding of the last entry.
    if (whole || wanted == available) co_return co_await parse_snapshots(bytes, count);
    wanted = std::min(available, size ? *size : wanted * 2);
  }
}

}  // namespace

Task<ImageHeader> load_image_header(Device& file, OpenFor purpose) {
  co_return co_await parse_head(file, purpose).doing(quoted(file.name()));
}

Task<std::vector<Snapshot>> load_snapshots(Device& file, const ImageHeader& head) {
  if (head.header.snapshot_count == 0) co_return std::vector<Snapshot>();
  co_return co_await read_snapshots(file, head)
      .doing(quoted(file.name()), ": snapshot table at ", head.header.snapshots_offset);
}

Task<std::vector<uint64_t>> load_table(Device& file, HostOffset at, uint64_t entries, IoTag tag) {
  const auto named = [&](Error error) {
    return std::move(error).while_doing(
        cat(quoted(file.name()), ": ", name_of_table(tag), " at ", at));
  };
  if (entries > kBitmapTableEntriesMax) {
    co_return named(corrupt(entries, " entries are too many"));
  }
  if (!within(at.value, entries * 8, file.size())) {
    co_return named(corrupt("file ends at ", hex(file.size())));
  }
  std::vector<uint64_t> table(entries);
  if (table.empty()) co_return table;
  Result<void> read =
      co_await file.read(at.value, std::as_writable_bytes(std::span(table)), tag).result();
  if (!read) co_return named(std::move(read).error());
  for (uint64_t& entry : table) entry = swap_big(entry);
  co_return table;
}

Result<std::string> plain_name(std::string_view name) {
  if (name.starts_with("file:")) name.remove_prefix(5);
  const size_t colon = name.find(':');
  if (colon != std::string_view::npos && name.find('/') > colon) {
    return unsupported("the name ", quoted(name), " is no plain path; byre opens files only");
  }
  return std::string(name);
}

Result<BackingFile> backing_of(const ImageHeader& head) {
  const std::string& named = *head.backing_file;
  const std::optional<std::string>& format = head.extensions.backing_format;
  if (!format) {
    return invalid("backing file ", quoted(named),
                   " has no format in the image, and guessing it would let a guest choose what is "
                   "opened; set it with: byre amend -o backing_fmt=FORMAT IMAGE");
  }
  if (*format != "qcow2" && *format != "raw" && *format != "file") {
    return unsupported("backing file ", quoted(named), ": disks of format ", quoted(*format),
                       " cannot lie below an image");
  }
  Result<std::string> name = plain_name(named);
  if (!name) return std::move(name).error().while_doing("backing file");
  return BackingFile{.name = *std::move(name), .is_image = *format == "qcow2"};
}

bool looks_like_qcow2(Bytes start) {
  return start.size() >= 4 && load_be<uint32_t>(start) == kMagic;
}

}  // namespace byre
