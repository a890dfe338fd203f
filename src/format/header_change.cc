// SPDX-License-Identifier: Apache-2.0
#include "format/header_change.h"

#include <algorithm>

#include "base/units.h"

namespace byre {
namespace {

constexpr size_t kBackingFileOffsetAt = 8;
constexpr size_t kBackingFileSizeAt = 16;

/// The first sector of `bytes`, filled up with zeros.
std::vector<std::byte> sector_of(Bytes bytes) {
  std::vector<std::byte> sector(kSectorSize);
  copy(MutableBytes(sector), bytes.first(std::min<uint64_t>(bytes.size(), kSectorSize)));
  return sector;
}

/// Is what `bytes` has behind the first sector in the file already?
bool tail_is_there(Bytes bytes, Bytes first_cluster) {
  if (bytes.size() <= kSectorSize) return true;
  const Bytes tail = bytes.subspan(kSectorSize);
  return bytes.size() <= first_cluster.size() &&
         equal(tail, first_cluster.subspan(kSectorSize, tail.size()));
}

/// Behind the last byte in use.
uint64_t end_of_use(Bytes first_cluster) {
  uint64_t end = first_cluster.size();
  while (end > 0 && first_cluster[end - 1] == std::byte{0}) --end;
  return end;
}

/// Behind the header that is there and its extensions: apart from the name of the backing file the
/// first cluster holds nothing else that anything refers to (spec: "Header extensions"), but
/// perhaps names of before.
Result<uint64_t> end_of_header(Bytes first_cluster) {
  BYRE_TRY(header, parse_header(first_cluster));
  BYRE_TRY(extensions, parse_extensions(first_cluster, header));
  BYRE_TRY(bytes, serialize_header(header, extensions));
  return bytes.size();
}

}  // namespace

Result<HeaderChange> change_header(Bytes first_cluster, const Header& header,
                                   const Extensions& extensions, std::string_view backing_file) {
  Extensions without_names = extensions;
  without_names.feature_names.clear();
  for (const Extensions* candidate :
       {&extensions, static_cast<const Extensions*>(&without_names)}) {
    const Result<std::vector<std::byte>> whole = serialize_header(header, *candidate, backing_file);
    if (!whole && whole.error().code() != Errc::no_space) return whole.error().copy();
    if (whole && tail_is_there(*whole, first_cluster))
      return HeaderChange{.sector = sector_of(*whole)};
  }

  BYRE_TRY(without_name, serialize_header(header, without_names));
  if (without_name.size() > kSectorSize) {
    return Error(Errc::no_space,
                 cat("the header and its extensions would take ", without_name.size(),
                     " bytes, and only the first ", kSectorSize, " can be changed safely"));
  }
  HeaderChange change{.sector = sector_of(without_name)};
  const auto name_lies_at = [&](uint64_t at) {
    store_be<uint64_t>(change.sector, kBackingFileOffsetAt, at);
    store_be<uint32_t>(change.sector, kBackingFileSizeAt,
                       static_cast<uint32_t>(backing_file.size()));
  };
  const uint64_t old_at = load_be<uint64_t>(first_cluster, kBackingFileOffsetAt);
  const uint64_t old_size = load_be<uint32_t>(first_cluster, kBackingFileSizeAt);
  const bool old_is_inside =
      old_at <= first_cluster.size() && old_size <= first_cluster.size() - old_at;
  if (old_is_inside && old_at >= kSectorSize && old_size == backing_file.size() &&
      equal(first_cluster.subspan(old_at, old_size), bytes_of(backing_file))) {
    name_lies_at(old_at);
    return change;
  }
  change.name_at = round_up(std::max(end_of_use(first_cluster), kSectorSize), 8);
  if (change.name_at + backing_file.size() > first_cluster.size()) {
    BYRE_TRY(in_use, end_of_header(first_cluster));
    change.name_at = round_up(std::max(in_use, kSectorSize), 8);
    const bool at_old_name =
        change.name_at < old_at + old_size && old_at < change.name_at + backing_file.size();
    if (old_is_inside && at_old_name) change.name_at = round_up(old_at + old_size, 8);
  }
  if (change.name_at + backing_file.size() > first_cluster.size()) {
    return Error(Errc::no_space, cat("the backing file's name of ", backing_file.size(),
                                     " bytes does not fit in the first cluster"));
  }
  const Bytes name = bytes_of(backing_file);
  change.name.assign(name.begin(), name.end());
  name_lies_at(change.name_at);
  return change;
}

}  // namespace byre
