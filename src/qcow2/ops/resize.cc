// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/resize.h"

#include <algorithm>

#include "qcow2/core/counted.h"
#include "qcow2/core/quiesced.h"
#include "qcow2/guest/external_store.h"
#include "qcow2/guest/guest_disk.h"
#include "qcow2/guest/zero.h"
#include "qcow2/ops/shrink.h"

namespace byre {

static Task<void> grow(GuestDisk& disk, const ShapeChange& change, uint64_t size,
                       Preallocation mode);
static Task<void> switch_size(GuestDisk& disk, const ShapeChange& change, uint64_t size);
static Task<void> undo_preallocation(GuestDisk& disk, const ShapeChange& change, uint64_t start,
                                     uint64_t end);

Task<void> resize_disk(GuestDisk& disk, uint64_t size, Preallocation mode) {
  const Request request(disk);
  co_await request.begin();
  ShapeChange change(disk);
  co_await change.begin();
  co_await disk.check_can_write();
  if (size == disk.size) co_return;
  co_await check_resize(disk, size);
  co_await check_metadata_is_counted(*disk.file, disk.head, disk.snapshots, disk.map->l1(),
                                     *disk.allocator);
  if (size < disk.size) {
    co_await shrink(disk, change, size);
  } else {
    co_await grow(disk, change, size, mode);
  }
}

/// What keeps the disk from having `size` bytes.
Result<void> check_resize(const GuestDisk& disk, uint64_t size) {
  const Geometry& g = disk.head.geometry;
  if (size > g.size_max()) {
    return invalid("a disk with clusters of ", disk.cluster_size(), " bytes cannot be larger than ",
                   g.size_max(), " bytes; use larger clusters");
  }
  if (size % kSectorSize != 0) {
    return invalid("The new size must be a multiple of ", kSectorSize);
  }
  // Other programs could not apply them any more.
  if (g.version < 3 && !disk.snapshots.empty()) {
    return invalid("Can't resize a v2 image which has snapshots");
  }
  for (const Snapshot& snapshot : disk.snapshots) {
    if (!snapshot.disk_size) {
      return unsupported("snapshot ", quoted(snapshot.name),
                         " does not record its disk size, so it would change with the disk");
    }
  }
  if (size == 0 && !disk.bitmaps->empty()) {
    return unsupported("a disk of 0 bytes has no room for its persistent bitmaps; ",
                       "remove them first");
  }
  return disk.bitmaps->check_size(size);
}

/// What is added reads as zeros: the tail of the last cluster, what a longer backing file would
/// show, and what entries behind the disk hold, are zeroed, durably, before the size changes (traps
/// 119, 120, 43).
Task<void> grow(GuestDisk& disk, const ShapeChange& change, uint64_t size, Preallocation mode) {
  const Geometry& g = disk.head.geometry;
  // Entries behind the disk, an applied snapshot's VM state or what an interrupted resize left,
  // would become part of it (trap 101).
  const std::vector<uint64_t>& l1 = disk.map->l1();
  const auto behind = static_cast<std::ptrdiff_t>(std::min(g.l1_entries_for(disk.size), l1.size()));
  if (std::any_of(l1.begin() + behind, l1.end(), [](uint64_t entry) { return entry != 0; }))
    co_await forget_behind_end(disk, change);
  const uint64_t entries = g.l1_entries_for(size);
  if (entries > disk.map->l1().size())
    co_await grow_l1(disk, change, entries).doing("grow the L1 table");
  uint64_t zero_end = std::min(size, g.l1_entries_for(disk.size) * g.l1_span());
  if (disk.backing) zero_end = std::max(zero_end, std::min(size, disk.backing->size()));
  zero_end = round_up(zero_end, disk.cluster_size());
  if (disk.has_raw_data()) zero_end = round_up(size, disk.cluster_size());
  if (zero_end > disk.size) {
    co_await zero_checked(disk, change, GuestOffset{disk.size}, zero_end - disk.size,
                          {.may_unmap = true, .only_where_needed = true});
  }
  if (disk.data) co_await grow_data_file(disk, size);
  // A raw data file keeps an entry for each cluster (trap 127).
  if (disk.has_raw_data() && mode == Preallocation::off) mode = Preallocation::metadata;
  const uint64_t start = round_up(disk.size, disk.cluster_size());
  const uint64_t end = round_up(size, disk.cluster_size());
  Result<void> done;
  if (mode != Preallocation::off && start < end) {
    done = co_await preallocate_range(disk, change, GuestOffset{start}, end - start, mode).result();
    if (!done) done = std::move(done).error().while_doing("preallocate");
  }
  if (done) done = co_await switch_size(disk, change, size).result();
  if (done) co_return;
  if (mode != Preallocation::off)
    (void)co_await undo_preallocation(disk, change, start, end).result();
  co_await std::move(done);
}

/// The last step of grow(): the header says the new size.
Task<void> switch_size(GuestDisk& disk, const ShapeChange& change, uint64_t size) {
  co_await disk.committer->flush(IoTag::commit_sync);
  // Zeroing and discarding go by where the disk ends: none may be half way.
  SizeChange size_change(change);
  co_await size_change;
  std::optional<Bitmaps::Change> bitmaps = co_await disk.bitmaps->prepare_for_size(size);
  if (bitmaps) co_await disk.committer->flush_all();
  HeaderEdit edit{.disk_size = size};
  if (bitmaps) edit.bitmaps = disk.bitmaps->edit_for(*bitmaps);
  co_await disk.header->change(std::move(edit));
  disk.size = size;
  if (!bitmaps) co_return;
  disk.bitmaps->keep(*std::move(bitmaps));
  disk.schedule_commit();
}

/// The disk keeps its size, and the file what it had.  First the clusters are given back, which
/// needs no space, and makes some for the rest.
Task<void> undo_preallocation(GuestDisk& disk, const ShapeChange& change, uint64_t start,
                              uint64_t end) {
  const ZeroOptions give_back{.may_unmap = true, .only_where_needed = true};
  for (uint64_t at = start; at < end;)
    at += co_await zero_units(disk, change, GuestOffset{at}, end - at, give_back);
  co_await disk.reclaim_space();
  co_await forget_behind_end(disk, change);
  co_await truncate_file(disk, change);
  if (disk.data) co_await cut_data_file(disk);
}

/// A longer L1 table: filled and durable before the header points to it (O6).
Task<void> grow_l1(GuestDisk& disk, const ShapeChange& change, uint64_t entries) {
  const Geometry& g = disk.head.geometry;
  Quiesced quiesced(change);
  co_await quiesced.begin();
  const uint64_t clusters = g.clusters_for(entries * 8);
  Reservation fresh = co_await disk.allocator->reserve_run(clusters);
  const HostSpan old{g.cluster_of(disk.head.header.l1_offset),
                     g.clusters_for(disk.head.header.l1_entries * uint64_t{8})};
  co_await disk.allocator->load(old);
  co_await quiesced.commit();  // The new table's refcounts, too (O1).
  std::vector<std::byte> body(clusters * disk.cluster_size());
  for (uint64_t i = 0; i < disk.map->l1().size(); ++i)
    store_be(MutableBytes(body), i * 8, disk.map->l1()[i]);
  const HostOffset at = g.start_of(fresh.first());
  co_await disk.file->write(at.value, body, {.tag = IoTag::l1_grow});
  co_await disk.committer->sync(IoTag::commit_sync);

  RootEdit edit;
  edit.l1 = {at, static_cast<uint32_t>(entries)};
  co_await disk.header->change(quiesced, std::move(edit));
  disk.metadata.add_run({fresh.first(), clusters});
  fresh.keep();
  disk.metadata.remove_run(old);
  disk.allocator->release(old);
  disk.map->grow_l1(entries);
  disk.schedule_commit();
}

}  // namespace byre
