// SPDX-License-Identifier: Apache-2.0
#include "qcow2/guest/status.h"

#include <algorithm>

#include "base/checked.h"
#include "qcow2/guest/guest_disk.h"

namespace byre {

namespace {

constexpr int kStepsMax = 1024;

/// What the run says of the disk from `at`, which is in its first cluster, on.
Extent piece_of(GuestDisk& disk, const Map::Run& run, GuestOffset at) {
  const Geometry& g = disk.geometry();
  const Mapping& mapping = run.mapping;
  const uint64_t in_cluster = g.offset_in_cluster(at);
  if (mapping.compressed) {
    return {.length = disk.cluster_size() - in_cluster, .data = true, .compressed = true};
  }
  if (mapping.allocated == 0 && mapping.zero == 0 && disk.map->table_missing(g.cluster_of(at))) {
    return {.length = g.end_of_table(at) - at, .data = false, .allocated = false};
  }
  const auto kind = [&](uint64_t unit) {
    return std::pair(mapping.allocated >> unit & 1, mapping.zero >> unit & 1);
  };
  const auto end_of_kind = [&](uint64_t unit) {
    uint64_t end = unit + 1;
    while (end < g.units() && kind(end) == kind(unit)) ++end;
    return end;
  };
  const uint64_t unit = in_cluster / g.unit_size();
  const auto [is_data, is_zero] = kind(unit);
  Extent piece{.data = is_data != 0, .zero = is_zero != 0, .allocated = (is_data | is_zero) != 0};
  // Where a cluster is one kind throughout, so are those of the run behind it.
  const bool is_whole = end_of_kind(0) == g.units();
  const uint64_t end =
      is_whole ? run.clusters * disk.cluster_size() : end_of_kind(unit) * g.unit_size();
  piece.length = end - in_cluster;
  if (mapping.host && piece.allocated) {
    piece.host_offset = g.start_of(*mapping.host).value + in_cluster;
    piece.file = disk.data ? disk.data->name() : disk.file->name();
  }
  return piece;
}

/// Does `next` go on where `extent` ends?
bool continues(const Extent& extent, const Extent& next) {
  return next.data == extent.data && next.zero == extent.zero &&
         next.allocated == extent.allocated && next.compressed == extent.compressed &&
         next.host_offset.has_value() == extent.host_offset.has_value() &&
         (!next.host_offset || *next.host_offset == *extent.host_offset + extent.length);
}

/// What is alike from the start of the range, as the tables of this image alone have it.
Task<Extent> own_status(GuestDisk& disk, GuestOffset offset, uint64_t length) {
  const Geometry& g = disk.geometry();
  const Epochs::Pin pin = disk.epochs.pin();
  Extent extent{.length = 0, .data = false};
  for (int steps = 0; extent.length < length && steps < kStepsMax; ++steps) {
    const GuestOffset at = offset + extent.length;
    const uint64_t left = length - extent.length;
    const uint64_t clusters = g.clusters_for(g.offset_in_cluster(at) + left);
    const Map::Run run = co_await disk.map->find_run(g.cluster_of(at), clusters);
    Extent piece = piece_of(disk, run, at);
    piece.length = std::min(piece.length, left);
    if (extent.length == 0) {
      extent = piece;
      continue;
    }
    if (!continues(extent, piece)) break;
    extent.length += piece.length;
  }
  co_return extent;
}

}  // namespace

Task<Extent> status_of_disk(GuestDisk& disk, GuestOffset offset, uint64_t length) {
  const Request request(disk);
  co_await request.begin();
  if (!within(offset.value, length, disk.size) || length == 0)
    co_return disk.out_of_range("status", offset.value, length);
  Extent extent = co_await own_status(disk, offset, length);
  if (extent.allocated) co_return extent;

  // Not ours: what is below says, as far as it reaches.
  if (offset.value >= disk.backing_end()) {
    extent.zero = true;
    extent.allocated = false;
    co_return extent;
  }
  extent.length = std::min(extent.length, disk.backing->size() - offset.value);
  Extent below = co_await disk.backing->status(offset.value, extent.length);
  // Depth 0 without `allocated` means that no layer has it.
  if (below.allocated || below.depth != 0) ++below.depth;
  below.allocated = false;
  co_return below;
}

}  // namespace byre
