// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/orphans.h"

#include <algorithm>

#include "format/l2.h"
#include "qcow2/check/table_reader.h"

namespace byre {
namespace {

constexpr uint64_t kPiece = MiB;

bool could_be_entry(L2Entry entry, const ScanResult& found) {
  const Result<Mapping> mapping = decode_l2(entry, found.geometry());
  if (!mapping) return false;
  if (mapping->compressed) return mapping->compressed_at.value < found.file_size();
  return !mapping->host || found.geometry().start_of(*mapping->host).value < found.file_size();
}

Orphan::Looks looks_of(Bytes cluster, const ScanResult& found) {
  if (is_zero(cluster)) return Orphan::Looks::zeros;
  for (uint64_t i = 0; i < found.geometry().l2_entries(); ++i) {
    const L2Entry entry = load_l2(cluster, i, found.geometry());
    if (entry != L2Entry{} && !could_be_entry(entry, found)) return Orphan::Looks::data;
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

Task<std::vector<Orphan>> catalogue_orphans(Device& file, const ScanResult& found,
                                            size_t orphans_max) {
  std::vector<Orphan> catalogue;
  const uint64_t size = found.geometry().cluster_size();
  std::vector<std::byte> cluster(size);
  for (const HostSpan& span : found.orphans) {
    for (uint64_t i = 0; i < span.count; ++i) {
      const HostOffset at = found.geometry().start_of(span.first + i);
      co_await read_padded(file, found.file_size(), at.value, cluster, IoTag::none);
      const Orphan::Looks looks = looks_of(cluster, found);
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

Task<uint64_t> save_orphans(Device& file, const ScanResult& found, Device& to) {
  uint64_t clusters = 0;
  std::vector<std::byte> piece;
  for (const HostSpan& span : found.orphans) {
    const uint64_t end = found.geometry().start_of(span.end()).value;
    for (uint64_t at = found.geometry().start_of(span.first).value; at < end;) {
      piece.resize(std::min(kPiece, end - at));
      co_await read_padded(file, found.file_size(), at, piece, IoTag::none);
      co_await to.write(at, piece, {.tag = IoTag::none});
      at += piece.size();
    }
    clusters += span.count;
  }
  co_await to.flush(IoTag::flush);
  co_return clusters;
}

}  // namespace byre
