// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/orphans.h"

#include <algorithm>

namespace byre {
namespace {

constexpr uint64_t kPiece = MiB;

bool could_be_entry(L2Entry entry, const MetadataScan& scan) {
  const Result<Mapping> mapping = decode_l2(entry, scan.geometry());
  if (!mapping) return false;
  if (mapping->compressed) return mapping->compressed_at.value < scan.file_size;
  return !mapping->host || scan.geometry().start_of(*mapping->host).value < scan.file_size;
}

Orphan::Looks looks_of(Bytes cluster, const MetadataScan& scan) {
  if (is_zero(cluster)) return Orphan::Looks::zeros;
  for (uint64_t i = 0; i < scan.geometry().l2_entries(); ++i) {
    const L2Entry entry = load_l2(cluster, i, scan.geometry());
    if (entry != L2Entry{} && !could_be_entry(entry, scan)) return Orphan::Looks::data;
  }
  return Orphan::Looks::l2_table;
}

}  // namespace

std::string_view name_of(Orphan::Looks looks) {
  switch (looks) {
    case Orphan::Looks::zeros:
      return "zeros";
    case Orphan::Looks::l2_table:
      return "like an L2 table";
    case Orphan::Looks::data:
      return "data";
  }
  return "unknown";
}

Task<std::vector<Orphan>> catalogue_orphans(MetadataScan& scan, size_t orphans_max) {
  std::vector<Orphan> catalogue;
  const uint64_t size = scan.geometry().cluster_size();
  std::vector<std::byte> cluster(size);
  for (const HostSpan& span : scan.orphans) {
    for (uint64_t i = 0; i < span.count; ++i) {
      const HostOffset at = scan.geometry().start_of(span.first + i);
      co_await scan.read_padded(at.value, cluster, IoTag::none);
      const Orphan::Looks looks = looks_of(cluster, scan);
      if (!catalogue.empty() && catalogue.back().looks == looks &&
          catalogue.back().at.value + catalogue.back().length == at.value) {
        catalogue.back().length += size;
        continue;
      }
      if (catalogue.size() == orphans_max) co_return std::move(catalogue);
      Orphan& orphan = catalogue.emplace_back(Orphan{.at = at, .length = size, .looks = looks});
      copy(orphan.start, Bytes(cluster).first(orphan.start.size()));
    }
  }
  co_return std::move(catalogue);
}

Task<uint64_t> save_orphans(MetadataScan& scan, Device& to) {
  uint64_t clusters = 0;
  std::vector<std::byte> piece;
  for (const HostSpan& span : scan.orphans) {
    const uint64_t end = scan.geometry().start_of(span.end()).value;
    for (uint64_t at = scan.geometry().start_of(span.first).value; at < end;) {
      piece.resize(std::min(kPiece, end - at));
      co_await scan.read_padded(at, piece, IoTag::none);
      co_await to.write(at, piece, {.tag = IoTag::none});
      at += piece.size();
    }
    clusters += span.count;
  }
  co_await to.flush(IoTag::flush);
  co_return clusters;
}

}  // namespace byre
