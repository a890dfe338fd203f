// SPDX-License-Identifier: Apache-2.0
#include "format/bitmaps_place.h"

#include <algorithm>
#include <array>
#include <vector>

#include "format/extension.h"

namespace byre {

namespace {

constexpr uint64_t kHeadSize = 8;
constexpr uint64_t kWholeSize = kHeadSize + kBitmapsExtensionSize;
constexpr uint64_t kFeatureNameSize = 48;
/// Spec: Header, backing_file_offset.
constexpr uint64_t kBackingFileOffsetAt = 8;

/// An extension as it lies in the first cluster.
struct Placed {
  uint64_t at;
  uint32_t type;
  uint64_t length;
};

struct List {
  std::vector<Placed> extensions;
  uint64_t end = 0;       ///< Where the terminator is, or would be.
  uint64_t area_end = 0;  ///< Of the area.
};

List list_extensions(Bytes first_cluster, const Header& header) {
  List list;
  list.area_end = std::min<uint64_t>(first_cluster.size(), uint64_t{1} << header.cluster_bits);
  if (header.backing_file_offset != 0)
    list.area_end = std::min(list.area_end, header.backing_file_offset);
  uint64_t at = header.header_length;
  while (at + kHeadSize <= list.area_end) {
    const auto type = load_be<uint32_t>(first_cluster, at);
    const auto length = load_be<uint32_t>(first_cluster, at + 4);
    if (type == kEndOfExtensions || length > list.area_end - at - kHeadSize) break;
    list.extensions.push_back({at, type, length});
    at += kHeadSize + round_up(length, 8);
  }
  list.end = at;
  return list;
}

void put_head(MutableBytes bytes, uint64_t at, uint32_t type, uint64_t length) {
  store_be(bytes, at, type);
  store_be(bytes, at + 4, static_cast<uint32_t>(length));
}

void put_whole(MutableBytes bytes, uint64_t at, const BitmapsExtension& extension) {
  put_head(bytes, at, kBitmapsExtension, kBitmapsExtensionSize);
  copy(bytes.subspan(at + kHeadSize), serialize(extension));
}

/// Does nothing that means anything follow?
bool is_last(const List& list, uint64_t at) {
  return std::none_of(list.extensions.begin(), list.extensions.end(), [&](const Placed& placed) {
    return placed.at > at && placed.type != kUnusedExtension;
  });
}

/// Room in the first sector, taken; false when there is none.
bool put_anew(MutableBytes bytes, const Header& header, const List& list,
              const BitmapsExtension& extension) {
  for (const Placed& placed : list.extensions) {
    const bool fits = placed.at + kWholeSize <= kSectorSize;
    if (fits && placed.type == kUnusedExtension && placed.length == kBitmapsExtensionSize) {
      put_whole(bytes, placed.at, extension);
      return true;
    }
  }
  if (list.end + kWholeSize + kHeadSize <= std::min(kSectorSize, list.area_end)) {
    put_whole(bytes, list.end, extension);
    put_head(bytes, list.end + kWholeSize, kEndOfExtensions, 0);
    return true;
  }
  // The backing file's name often follows at once: it moves on, with the same write.
  const uint64_t name_at = header.backing_file_offset;
  const uint64_t new_name_at = list.end + kWholeSize + kHeadSize;
  const uint64_t name_size = header.backing_file_size;
  if (name_at != 0 && list.end <= name_at && new_name_at + name_size <= kSectorSize &&
      name_at + name_size <= kSectorSize) {
    const std::vector<std::byte> name(
        bytes.begin() + static_cast<std::ptrdiff_t>(name_at),
        bytes.begin() + static_cast<std::ptrdiff_t>(name_at + name_size));
    put_whole(bytes, list.end, extension);
    put_head(bytes, list.end + kWholeSize, kEndOfExtensions, 0);
    copy(bytes.subspan(new_name_at), name);
    store_be(bytes, kBackingFileOffsetAt, new_name_at);
    return true;
  }
  for (const Placed& placed : list.extensions) {
    const bool fits = placed.at + kHeadSize + kFeatureNameSize <= kSectorSize;
    if (!fits || placed.type != kFeatureNamesExtension || placed.length < kFeatureNameSize)
      continue;
    // [bitmaps][8 unused bytes][feature names, without the first]
    put_whole(bytes, placed.at, extension);
    put_head(bytes, placed.at + kWholeSize, kUnusedExtension, 8);
    fill_zero(bytes.subspan(placed.at + kWholeSize + kHeadSize, 8));
    put_head(bytes, placed.at + kFeatureNameSize, kFeatureNamesExtension,
             placed.length - kFeatureNameSize);
    return true;
  }
  return false;
}

}  // namespace

std::optional<uint64_t> far_bitmaps_extension(Bytes first_cluster, const Header& header) {
  for (const Placed& placed : list_extensions(first_cluster, header).extensions) {
    if (placed.type == kBitmapsExtension && placed.at + kHeadSize > kSectorSize) return placed.at;
  }
  return std::nullopt;
}

std::array<std::byte, 8> unused_extension_head(Bytes first_cluster, const Header& header,
                                               uint64_t at) {
  std::array<std::byte, kHeadSize> head{};
  const List list = list_extensions(first_cluster, header);
  if (is_last(list, at)) return head;
  // As long as it is, whatever it should be: what follows stays where it is.
  put_head(head, 0, kUnusedExtension, load_be<uint32_t>(first_cluster, at + 4));
  return head;
}

Result<void> put_bitmaps_extension(MutableBytes first_cluster, const Header& header,
                                   const std::optional<BitmapsExtension>& extension) {
  const List list = list_extensions(first_cluster, header);
  const auto retire = [&](const Placed& placed) {
    const uint32_t type = is_last(list, placed.at) ? kEndOfExtensions : kUnusedExtension;
    put_head(first_cluster, placed.at, type, type == kEndOfExtensions ? 0 : placed.length);
  };
  for (const Placed& placed : list.extensions) {
    if (placed.type != kBitmapsExtension || placed.at + kHeadSize > kSectorSize) continue;
    if (!extension) {
      retire(placed);
      return {};
    }
    if (placed.at + kWholeSize <= kSectorSize && placed.length == kBitmapsExtensionSize) {
      put_whole(first_cluster, placed.at, *extension);
      return {};
    }
    // It crosses the end of the sector, or has another length: its head, which is inside, is taken
    // away with the same write.  The new one may follow it.
    if (put_anew(first_cluster, header, list, *extension)) {
      put_head(first_cluster, placed.at, kUnusedExtension, placed.length);
      return {};
    }
  }
  if (!extension) return {};
  const bool crosses =
      std::any_of(list.extensions.begin(), list.extensions.end(), [](const Placed& placed) {
        return placed.type == kBitmapsExtension && placed.at + kHeadSize <= kSectorSize;
      });
  if (!crosses && put_anew(first_cluster, header, list, *extension)) return {};
  return Error(
      Errc::no_space,
      "the first 512 bytes of the image have no room for the bitmaps extension, which must "
      "change in one sector write; give the image a shorter backing file name, or larger "
      "clusters");
}

}  // namespace byre
