// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/shrink.h"

#include <algorithm>

#include "base/checked.h"
#include "qcow2/core/l2_patch.h"
#include "qcow2/core/quiesced.h"
#include "qcow2/guest/external_store.h"
#include "qcow2/guest/guest_disk.h"
#include "qcow2/guest/read.h"
#include "qcow2/guest/zero.h"
#include "qcow2/ops/give_up.h"
#include "qcow2/ops/resize.h"

namespace byre {

/// What the new tables no longer lead to; freed once they are the ones that count.
struct CutOff {
  uint64_t l1_entries = 0;                ///< What the new L1 table has.
  std::vector<uint64_t> l1;               ///< It.
  std::vector<HostCluster> tables;        ///< L2 tables behind the end, with all that is in them.
  std::optional<HostCluster> last_table;  ///< The one the end lies in, if it was replaced,
  std::vector<Mapping> mappings;          ///< and what its copy does not lead to.
  Reservation last_table_copy;
  Reservation last_cluster_copy;  ///< Where it has bytes behind the end.
};

static Task<void> zero_tail(GuestDisk& disk, const ShapeChange& change, uint64_t size);
static Task<bool> ends_in_data(GuestDisk& disk, uint64_t size);
static Task<void> cut_tables(GuestDisk& disk, const ShapeChange& change, uint64_t size,
                             CutOff& off);
static Task<void> cut_last_table(GuestDisk& disk, const Quiesced& quiesced, uint64_t size,
                                 CutOff& off);
static Task<void> cut_last_cluster(GuestDisk& disk, const Quiesced& quiesced, uint64_t size,
                                   L2Patch& table, uint64_t index, CutOff& off);
static Task<void> free_cut_off(GuestDisk& disk, CutOff off);
static Task<void> empty_limbo(GuestDisk& disk);

Task<void> shrink(GuestDisk& disk, const ShapeChange& change, uint64_t size) {
  const uint64_t size_before = disk.size;
  {
    SizeChange size_change(change);
    co_await size_change;
    disk.size = size;
    ++disk.shrinks;
  }
  CutOff off;
  Result<void> cut;
  if (disk.data) cut = co_await zero_tail(disk, change, size).result();
  if (cut) cut = co_await cut_tables(disk, change, size, off).result();
  if (!cut) {
    disk.size = size_before;
    ++disk.shrinks;
    co_await std::move(cut);
  }
  co_await free_cut_off(disk, std::move(off))
      .doing("the disk is smaller now, but freeing its end failed");
  co_await truncate_file(disk, change).doing("the disk is smaller now, but its file is not");
  if (disk.data) co_await cut_data_file(disk).doing("the disk is smaller now, but its file is not");
}

/// Everything that the tables have behind the end of the disk goes.
Task<void> forget_behind_end(GuestDisk& disk, const ShapeChange& change) {
  CutOff off;
  co_await cut_tables(disk, change, disk.size, off);
  co_await free_cut_off(disk, std::move(off));
}

/// Of an external data file.
Task<void> zero_tail(GuestDisk& disk, const ShapeChange& change, uint64_t size) {
  const uint64_t end = round_up(size, disk.cluster_size());
  if (size == end) co_return;
  // What failed and may still land (H6) lands before the zeros, or never.
  co_await disk.latch->sync_data(IoTag::commit_sync);
  co_await zero_checked(disk, change, GuestOffset{size}, end - size, {.only_where_needed = true})
      .doing("zero the end of the disk");
}

/// Does the cluster that the end lies in have bytes behind it?
Task<bool> ends_in_data(GuestDisk& disk, uint64_t size) {
  const Geometry& g = disk.head.geometry;
  if (disk.data || size == disk.head.header.size || size % disk.cluster_size() == 0)
    co_return false;
  const Epochs::Pin pin = disk.epochs.pin();
  const Mapping last = (co_await disk.map->find(g.cluster_of(GuestOffset{size}))).mapping;
  if (last.compressed) co_return true;
  const uint64_t first_behind = size % disk.cluster_size() / g.unit_size();
  co_return last.allocated >> first_behind != 0;
}

/// Steps 2 and 3: what the disk keeps, in tables of its own, and the switch to them.
Task<void> cut_tables(GuestDisk& disk, const ShapeChange& change, uint64_t size, CutOff& off) {
  const Geometry& g = disk.head.geometry;
  Quiesced quiesced(change);
  co_await quiesced.begin();
  off.l1 = disk.map->l1();
  off.l1_entries = std::max<uint64_t>(g.l1_entries_for(size), 1);
  const HostSpan old{g.cluster_of(disk.head.header.l1_offset),
                     g.clusters_for(disk.head.header.l1_entries * uint64_t{8})};
  co_await disk.allocator->load(old);
  const uint64_t clusters = g.clusters_for(off.l1_entries * 8);
  Reservation fresh = co_await disk.allocator->reserve_run(clusters);
  off.last_table_copy = co_await disk.allocator->reserve(1, Allocator::Use::metadata);
  if (co_await ends_in_data(disk, size))
    off.last_cluster_copy = co_await disk.allocator->reserve(1, Allocator::Use::data);
  std::optional<Bitmaps::Change> bitmaps;
  if (size != disk.head.header.size) bitmaps = co_await disk.bitmaps->prepare_for_size(size);
  co_await quiesced.commit();  // The new tables' refcounts, too (O1).
  off.l1 = disk.map->l1();
  for (uint64_t i = off.l1_entries; i < off.l1.size(); ++i) {
    const L1Entry entry = co_await decode_l1(off.l1[i], g).doing("L1 entry ", i);
    if (entry.l2) off.tables.push_back(*entry.l2);
  }
  off.l1.resize(off.l1_entries);
  co_await cut_last_table(disk, quiesced, size, off);

  std::vector<std::byte> body(clusters * disk.cluster_size());
  for (uint64_t i = 0; i < off.l1.size(); ++i) store_be(MutableBytes(body), i * 8, off.l1[i]);
  const HostOffset at = g.start_of(fresh.first());
  co_await disk.file->write(at.value, body, {.tag = IoTag::l1_shrink});
  co_await disk.committer->sync(IoTag::commit_sync);

  RootEdit edit{.fields = {.disk_size = size}};
  if (bitmaps) edit.fields.bitmaps = disk.bitmaps->edit_for(*bitmaps);
  edit.l1 = {at, static_cast<uint32_t>(off.l1_entries)};
  co_await disk.header->change(quiesced, std::move(edit));
  disk.metadata.add_run(fresh.span());
  fresh.keep();
  disk.metadata.remove_run(old);
  disk.allocator->release(old);
  if (off.last_table) {
    disk.metadata.add(off.last_table_copy.first());
    off.last_table_copy.keep();
  }
  off.last_cluster_copy.keep();
  disk.map->replace_l1(off.l1);
  if (bitmaps) disk.bitmaps->keep(*std::move(bitmaps));
}

/// The L2 table that the new end lies in, without its entries behind the end: a copy, so that the
/// old disk keeps them until the switch.
Task<void> cut_last_table(GuestDisk& disk, const Quiesced& quiesced, uint64_t size, CutOff& off) {
  const Geometry& g = disk.head.geometry;
  const uint64_t l1_index = off.l1_entries - 1;
  const L1Entry entry = co_await decode_l1(off.l1[l1_index], g).doing("L1 entry ", l1_index);
  if (!entry.l2) co_return;
  L2Patch table = co_await L2Patch::load(*disk.file, g, *entry.l2);
  const uint64_t kept = g.clusters_for(size) - g.first_of_l1(l1_index).value;
  for (uint64_t i = kept; i < table.entries(); ++i) {
    const L2Entry l2 = table.entry(i);
    if (l2 == L2Entry{}) continue;
    off.mappings.push_back(
        co_await decode_l2(l2, g).doing("L2 table at ", table.at(), ": entry ", i));
    table.set(i, {});
  }
  if (off.last_cluster_copy) co_await cut_last_cluster(disk, quiesced, size, table, kept - 1, off);
  if (off.mappings.empty()) co_return;
  if (!entry.copied) co_await disk.allocator->clear_shared(table.mutable_bytes());
  co_await disk.allocator->load({*entry.l2, 1});
  co_await table.write_copy(*disk.file, off.last_table_copy.first());
  off.l1[l1_index] = encode_l1({off.last_table_copy.first(), true}, g);
  off.last_table = entry.l2;
}

/// The cluster that the new end lies in, entry `index` of `table`, with zeros behind the end.
Task<void> cut_last_cluster(GuestDisk& disk, const Quiesced& quiesced, uint64_t size,
                            L2Patch& table, uint64_t index, CutOff& off) {
  const Geometry& g = disk.head.geometry;
  const Mapping old = co_await decode_l2(table.entry(index), g).doing("entry ", index);
  co_await disk.load_refcounts_of(old);
  std::vector<std::byte> bytes(disk.cluster_size());
  Mapping copy{.copied = true, .host = off.last_cluster_copy.first()};
  if (old.compressed) {
    co_await read_mapped(disk, quiesced.clusters(), old,
                         GuestOffset{round_down(size, disk.cluster_size())}, bytes, kCopyUp);
    copy.allocated = g.all_units();
  } else {
    co_await disk.store.read(quiesced.clusters(), g.start_of(*old.host), bytes,
                             IoTag::copy_up_read);
    copy.allocated = old.allocated;
    copy.zero = old.zero;
  }
  fill_zero(MutableBytes(bytes).subspan(size % disk.cluster_size()));
  const HostOffset at = g.start_of(*copy.host);
  co_await disk.store.write(off.last_cluster_copy, at, bytes, false, IoTag::copy_up_write)
      .doing("data at ", at);
  table.set(index, encode_l2(copy, g));
  off.mappings.push_back(old);
}

/// Step 4.
Task<void> free_cut_off(GuestDisk& disk, CutOff off) {
  GiveUp give_up(disk);
  if (off.last_table) give_up.table_alone(*off.last_table);
  for (const Mapping& mapping : off.mappings) co_await give_up.mapping(mapping);
  for (const HostCluster table : off.tables) co_await give_up.table(table);
  co_await give_up.end();
}

/// Twice: the first commit ends the generation that limbo waits for, the second writes the
/// refcounts of what became free.
Task<void> empty_limbo(GuestDisk& disk) {
  for (int round = 0; round < 2; ++round) {
    co_await disk.committer->flush_all();
    disk.epochs.advance();
    disk.allocator->reclaim();
    co_await disk.allocator->drain_limbo();
  }
}

/// Steps 5 and 6.
Task<void> truncate_file(GuestDisk& disk, const ShapeChange& change) {
  co_await empty_limbo(disk);
  co_await disk.map->move_table(disk.map->l1().size() - 1, *disk.allocator);
  co_await grow_l1(disk, change, disk.map->l1().size());
  co_await empty_limbo(disk);
  disk.length_at_open = std::min(disk.length_at_open, co_await disk.allocator->truncate_file());
  co_await disk.committer->sync(IoTag::commit_sync);
  disk.schedule_commit();
}

}  // namespace byre
