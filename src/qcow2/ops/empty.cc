// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/empty.h"

#include <algorithm>

#include "qcow2/core/counted.h"
#include "qcow2/core/quiesced.h"
#include "qcow2/guest/external_store.h"
#include "qcow2/guest/guest_disk.h"
#include "qcow2/ops/give_up.h"
#include "qcow2/ops/shrink.h"

namespace byre {

namespace {

Result<void> check_can_be_empty(const GuestDisk& disk) {
  if (disk.has_raw_data()) {
    return unsupported("the external data file of ", quoted(disk.name()),
                       " holds the whole disk (data_file_raw), so the disk cannot be emptied");
  }
  if (!disk.map->lost().empty()) {
    return corrupt("parts of ", quoted(disk.name()),
                   " lead nowhere (see byre check), so it is not emptied");
  }
  return {};
}

/// Steps 1 and 2.  Gives the L2 tables that the disk had.
Task<std::vector<HostCluster>> switch_to_nothing(GuestDisk& disk, const ShapeChange& change) {
  const Geometry& g = disk.head.geometry;
  Quiesced quiesced(change);
  co_await quiesced.begin();
  const uint64_t entries = std::max<uint64_t>(g.l1_entries_for(disk.size), 1);
  const HostSpan old_table{g.cluster_of(disk.head.header.l1_offset),
                           g.clusters_for(disk.head.header.l1_entries * uint64_t{8})};
  co_await disk.allocator->load(old_table);
  Reservation fresh = co_await disk.allocator->reserve_run(g.clusters_for(entries * 8));
  co_await quiesced.commit();  // The new table's refcounts, too (O1).
  std::vector<HostCluster> tables;
  for (uint64_t i = 0; i < disk.map->l1().size(); ++i) {
    const L1Entry entry = co_await decode_l1(disk.map->l1()[i], g).doing("L1 entry ", i);
    if (entry.l2) tables.push_back(*entry.l2);
  }

  const std::vector<std::byte> body(fresh.span().count * disk.cluster_size());
  const HostOffset at = g.start_of(fresh.first());
  co_await disk.file->write(at.value, body, {.tag = IoTag::l1_shrink});
  co_await disk.committer->sync(IoTag::commit_sync);

  RootEdit edit;
  edit.l1 = {at, static_cast<uint32_t>(entries)};
  co_await disk.header->change(quiesced, std::move(edit));
  disk.metadata.add_run(fresh.span());
  fresh.keep();
  disk.metadata.remove_run(old_table);
  disk.allocator->release(old_table);
  disk.map->reset_l1(std::vector<uint64_t>(entries));
  co_return std::move(tables);
}

}  // namespace

Task<void> empty_disk(GuestDisk& disk) {
  const Request request(disk);
  co_await request.begin();
  ShapeChange change(disk);
  co_await change.begin();
  co_await disk.check_can_write();
  co_await check_can_be_empty(disk);
  co_await check_metadata_is_counted(*disk.file, disk.head, disk.snapshots, disk.map->l1(),
                                     *disk.allocator);
  const std::vector<HostCluster> tables = co_await switch_to_nothing(disk, change);
  GiveUp give_up(disk);
  for (const HostCluster table : tables) co_await give_up.table(table);
  co_await give_up.end().doing("the disk is empty now, but freeing what it had failed");
  co_await truncate_file(disk, change).doing("the disk is empty now, but its file is not shorter");
  // Reads that knew the places have ended: what they read was in limbo with the old tables.
  if (disk.data)
    co_await punch_unused_places(disk).doing("the disk is empty now, but its data file is not");
}

}  // namespace byre
