// SPDX-License-Identifier: Apache-2.0
/// Making a disk smaller (docs/engine.md, S3).
///
/// A power cut leaves the old disk or the new one, never something between (C6):
///   1. Requests behind the new end are refused, those under way are waited for.
///   2. A new L1 table without the entries behind the end, a new copy of the last L2 table without
///      those, and a new copy of the last cluster with zeros behind the end, so that a disk that
///      grows again never shows old bytes, whoever makes it grow (trap 120), are written to fresh
///      clusters and synced.
///   3. One sector of the header says the new size and the new table (O6); it is synced.
///   4. Nobody can reach what the old tables lead to.  Its references go to limbo: clusters that a
///      snapshot holds stay, the others become free once all I/O to them has ended.
///   5. The new tables, which were made while the old ones filled the file, move down into what
///      became free.
///   6. The file is cut off behind the last cluster in use.
/// Stopped between 3 and 6 the image has leaks, nothing else.  Refused or failed before 3, the disk
/// is what it was; but in an external data file, where clusters cannot move, the end of the last
/// one is zeroed in place, before 2.
/// Cost: steps 2 and 3 hold up all requests for four syncs and the writing of the L1 table; step 4
/// reads the L2 tables that were cut off, 128 MiB for each TiB at 64 KiB clusters.
#include <algorithm>

#include "base/checked.h"
#include "qcow2/image.h"
#include "qcow2/quiesced.h"

namespace byre {

/// What the new tables no longer lead to; freed once they are the ones that count.
struct Image::CutOff {
  uint64_t l1_entries = 0;                ///< What the new L1 table has.
  std::vector<uint64_t> l1;               ///< It.
  std::vector<HostCluster> tables;        ///< L2 tables behind the end, with all that is in them.
  std::optional<HostCluster> last_table;  ///< The one the end lies in, if it was replaced,
  std::vector<Mapping> mappings;          ///< and what its copy does not lead to.
  Reservation last_table_copy;
  Reservation last_cluster_copy;  ///< Where it has bytes behind the end.
};

Task<void> Image::shrink(uint64_t size) {
  const uint64_t size_before = size_;
  {
    RangeLock::Request change_size(size_lock_, 0, 1, RangeLock::Mode::exclusive);
    co_await change_size;
    size_ = size;
    ++shrinks_;
  }
  CutOff off;
  Result<void> cut;
  if (data_) cut = co_await zero_tail(size).result();
  if (cut) cut = co_await cut_tables(size, off).result();
  if (!cut) {
    size_ = size_before;
    ++shrinks_;
    co_await std::move(cut);
  }
  co_await free_cut_off(std::move(off))
      .doing("the disk is smaller now, but freeing its end failed");
  co_await truncate_file().doing("the disk is smaller now, but its file is not");
  if (data_) co_await cut_data_file().doing("the disk is smaller now, but its file is not");
}

/// Everything that the tables have behind the end of the disk goes.
Task<void> Image::forget_behind_end() {
  CutOff off;
  co_await cut_tables(size_, off);
  co_await free_cut_off(std::move(off));
}

/// Of an external data file.
Task<void> Image::zero_tail(uint64_t size) {
  const uint64_t end = round_up(size, cluster_size());
  if (size == end) co_return;
  // What failed and may still land (H6) lands before the zeros, or never.
  co_await sync_latch_->sync_data(Mark::commit_sync);
  co_await zero_checked(size, end - size, {.only_where_needed = true})
      .doing("zero the end of the disk");
}

/// Does the cluster that the end lies in have bytes behind it?
Task<bool> Image::ends_in_data(uint64_t size) {
  const Geometry& g = head_.geometry;
  if (data_ || size == head_.header.size || size % cluster_size() == 0) co_return false;
  const Epochs::Pin pin = epochs_.pin();
  const Mapping last = (co_await map_->find(g.cluster_of(GuestOffset{size}))).mapping;
  if (last.compressed) co_return true;
  const uint64_t first_behind = size % cluster_size() / g.unit_size();
  co_return last.allocated >> first_behind != 0;
}

/// Steps 2 and 3: what the disk keeps, in tables of its own, and the switch to them.
Task<void> Image::cut_tables(uint64_t size, CutOff& off) {
  const Geometry& g = head_.geometry;
  Quiesced quiesced(locks_, *committer_, *allocator_);
  co_await quiesced.begin();
  off.l1 = map_->l1();
  off.l1_entries = std::max<uint64_t>(g.l1_entries_for(size), 1);
  const HostSpan old{g.cluster_of(head_.header.l1_offset),
                     g.clusters_for(head_.header.l1_entries * uint64_t{8})};
  co_await allocator_->load(old);
  const uint64_t clusters = g.clusters_for(off.l1_entries * 8);
  Reservation fresh = co_await allocator_->reserve_run(clusters);
  off.last_table_copy = co_await allocator_->reserve(1, Allocator::Use::metadata);
  if (co_await ends_in_data(size))
    off.last_cluster_copy = co_await allocator_->reserve(1, Allocator::Use::data);
  std::optional<Bitmaps::Change> bitmaps;
  if (size != head_.header.size) bitmaps = co_await resized_bitmaps(size);
  co_await quiesced.commit();  // The new tables' refcounts, too (O1).
  off.l1 = map_->l1();
  for (uint64_t i = off.l1_entries; i < off.l1.size(); ++i) {
    const L1Entry entry = co_await decode_l1(off.l1[i], g).doing("L1 entry ", i);
    if (entry.l2) off.tables.push_back(*entry.l2);
  }
  off.l1.resize(off.l1_entries);
  co_await cut_last_table(size, off);

  std::vector<std::byte> body(clusters * cluster_size());
  for (uint64_t i = 0; i < off.l1.size(); ++i) store_be(MutableBytes(body), i * 8, off.l1[i]);
  const HostOffset at = g.start_of(fresh.first());
  co_await file_->write(at.value, body, {.mark = Mark::l1_shrink});
  co_await committer_->sync(Mark::commit_sync);

  RootEdit edit{.fields = {.disk_size = size}};
  if (bitmaps) edit.fields.bitmaps = bitmaps_->edit_for(*bitmaps);
  edit.l1 = {at, static_cast<uint32_t>(off.l1_entries)};
  co_await header_state_->change(quiesced, std::move(edit));
  metadata_.add_run(fresh.span());
  fresh.keep();
  metadata_.remove_run(old);
  allocator_->release(old);
  if (off.last_table) {
    metadata_.add(off.last_table_copy.first());
    off.last_table_copy.keep();
  }
  off.last_cluster_copy.keep();
  map_->replace_l1(off.l1);
  if (bitmaps) bitmaps_->keep(*std::move(bitmaps));
}

/// The L2 table that the new end lies in, without its entries behind the end: a copy, so that the
/// old disk keeps them until the switch.
Task<void> Image::cut_last_table(uint64_t size, CutOff& off) {
  const Geometry& g = head_.geometry;
  const uint64_t l1_index = off.l1_entries - 1;
  const L1Entry entry = co_await decode_l1(off.l1[l1_index], g).doing("L1 entry ", l1_index);
  if (!entry.l2) co_return;
  const HostOffset from = g.start_of(*entry.l2);
  std::vector<std::byte> table(cluster_size());
  co_await file_->read(from.value, table, Mark::l2_load).doing("L2 table at ", from);
  const uint64_t kept = g.clusters_for(size) - g.first_of_l1(l1_index).value;
  for (uint64_t i = 0; i < g.l2_entries(); ++i) {
    L2Entry l2 = load_l2(table, i, g);
    if (i >= kept) {
      if (l2 == L2Entry{}) continue;
      off.mappings.push_back(co_await decode_l2(l2, g).doing("L2 table at ", from, ": entry ", i));
      l2 = {};
    }
    store_l2(table, i, l2, g);
  }
  if (off.last_cluster_copy) co_await cut_last_cluster(size, table, kept - 1, off);
  if (off.mappings.empty()) co_return;
  if (!entry.copied) co_await allocator_->clear_shared(table);
  co_await allocator_->load({*entry.l2, 1});
  const HostOffset at = g.start_of(off.last_table_copy.first());
  co_await file_->write(at.value, table, {.mark = Mark::l2_allocate}).doing("L2 table at ", at);
  off.l1[l1_index] = encode_l1({off.last_table_copy.first(), true}, g);
  off.last_table = entry.l2;
}

/// The cluster that the new end lies in, entry `index` of `table`, with zeros behind the end.
Task<void> Image::cut_last_cluster(uint64_t size, MutableBytes table, uint64_t index, CutOff& off) {
  const Geometry& g = head_.geometry;
  const Mapping old = co_await decode_l2(load_l2(table, index, g), g).doing("entry ", index);
  co_await load_old(old);
  std::vector<std::byte> bytes(cluster_size());
  Mapping copy{.copied = true, .host = off.last_cluster_copy.first()};
  if (old.compressed) {
    co_await read_mapped(old, round_down(size, cluster_size()), bytes, Mark::copy_up_read);
    copy.allocated = g.all_units();
  } else {
    co_await read_host(g.start_of(*old.host).value, bytes, Mark::copy_up_read);
    copy.allocated = old.allocated;
    copy.zero = old.zero;
  }
  fill_zero(MutableBytes(bytes).subspan(size % cluster_size()));
  const HostOffset at = g.start_of(*copy.host);
  co_await file_->write(at.value, bytes, {.mark = Mark::copy_up_write}).doing("data at ", at);
  store_l2(table, index, encode_l2(copy, g), g);
  off.mappings.push_back(old);
}

/// Step 4.  What cannot be believed is left as a leak; the first reason is reported.
Task<void> Image::free_cut_off(CutOff off) {
  const Geometry& g = head_.geometry;
  Error first;
  const auto free_table = [&](HostCluster table) {
    map_->cache().forget(g.start_of(table), cluster_size());
    // Still metadata while a snapshot refers to it.
    if (allocator_->refcount(table) <= 1) metadata_.remove(table);
    allocator_->release({table, 1});
  };
  uint64_t released = 0;
  const auto free_host = [&](const Mapping& mapping) -> Task<void> {
    const Result<void> loaded = co_await load_old(mapping).result();
    if (loaded) {
      allocator_->release(hosts(mapping, g));
      ++released;
    } else if (!first) {
      first = loaded.error().copy();
    }
  };
  if (off.last_table) free_table(*off.last_table);
  for (const Mapping& mapping : off.mappings) {
    if (hosts(mapping, g).count != 0) co_await free_host(mapping);
  }
  std::vector<std::byte> bytes(cluster_size());
  for (const HostCluster table : off.tables) {
    const HostOffset at = g.start_of(table);
    Result<void> read = co_await file_->read(at.value, bytes, Mark::l1_shrink_load).result();
    if (read) read = co_await allocator_->load({table, 1}).result();
    if (!read) {
      if (!first) first = std::move(read).error().while_doing(cat("L2 table at ", at));
      continue;
    }
    for (uint64_t i = 0; i < g.l2_entries(); ++i) {
      const Result<Mapping> mapping = decode_l2(load_l2(bytes, i, g), g);
      if (mapping && hosts(*mapping, g).count != 0) co_await free_host(*mapping);
    }
    free_table(table);
    if (released >= options_.staged_max) {  // Bounds what is in limbo.
      co_await committer_->flush(Mark::commit_sync);
      released = 0;
    }
  }
  if (first) co_await fail(std::move(first));
}

/// Twice: the first commit ends the generation that limbo waits for, the second writes the
/// refcounts of what became free.
Task<void> Image::empty_limbo() {
  for (int round = 0; round < 2; ++round) {
    co_await committer_->flush_all();
    epochs_.advance();
    allocator_->reclaim();
    co_await allocator_->drain_limbo();
  }
}

/// Steps 5 and 6.
Task<void> Image::truncate_file() {
  co_await empty_limbo();
  co_await map_->move_table(map_->l1().size() - 1, *allocator_);
  co_await grow_l1(map_->l1().size());
  co_await empty_limbo();
  length_at_open_ = std::min(length_at_open_, co_await allocator_->truncate_file());
  co_await committer_->sync(Mark::commit_sync);
  staged();
}

}  // namespace byre
