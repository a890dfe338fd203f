// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "qcow2/counted.h"
#include "qcow2/image.h"
#include "qcow2/quiesced.h"
#include "qcow2/working.h"

namespace byre {

Task<void> Image::resize(uint64_t size) { co_await resize(size, Preallocation::off); }

Task<void> Image::resize(uint64_t size, Preallocation mode) {
  const Working working(*this);
  co_await working.begin();
  const Mutex::Hold hold = co_await resize_mutex_.lock();
  co_await check_can_write();
  if (size == size_) co_return;
  co_await check_resize(size);
  co_await check_metadata_is_counted(*file_, head_, snapshots_, map_->l1(), *allocator_);
  if (size < size_) {
    co_await shrink(size);
  } else {
    co_await grow(size, mode);
  }
}

/// What keeps the disk from having `size` bytes.
Result<void> Image::check_resize(uint64_t size) const {
  const Geometry& g = head_.geometry;
  if (size > g.size_max()) {
    return invalid("a disk with clusters of ", cluster_size(), " bytes cannot be larger than ",
                   g.size_max(), " bytes; use larger clusters");
  }
  if (size % kSectorSize != 0) {
    return invalid("The new size must be a multiple of ", kSectorSize);
  }
  // Other programs could not apply them any more.
  if (g.version < 3 && !snapshots_.empty()) {
    return invalid("Can't resize a v2 image which has snapshots");
  }
  for (const Snapshot& snapshot : snapshots_) {
    if (!snapshot.disk_size) {
      return unsupported("snapshot ", quoted(snapshot.name),
                         " does not record its disk size, so it would change with the disk");
    }
  }
  if (size == 0 && !bitmaps_->empty()) {
    return unsupported("a disk of 0 bytes has no room for its persistent bitmaps; ",
                       "remove them first");
  }
  return bitmaps_->check_size(size);
}

/// What is added reads as zeros: the tail of the last cluster, what a longer backing file would
/// show, and what entries behind the disk hold, are zeroed, durably, before the size changes (traps
/// 119, 120, 43).
Task<void> Image::grow(uint64_t size, Preallocation mode) {
  const Geometry& g = head_.geometry;
  // Entries behind the disk, an applied snapshot's VM state or what an interrupted resize left,
  // would become part of it (trap 101).
  const std::vector<uint64_t>& l1 = map_->l1();
  const auto behind = static_cast<std::ptrdiff_t>(std::min(g.l1_entries_for(size_), l1.size()));
  if (std::any_of(l1.begin() + behind, l1.end(), [](uint64_t entry) { return entry != 0; }))
    co_await forget_behind_end();
  const uint64_t entries = g.l1_entries_for(size);
  if (entries > map_->l1().size()) co_await grow_l1(entries).doing("grow the L1 table");
  uint64_t zero_end = std::min(size, g.l1_entries_for(size_) * g.l1_span());
  if (backing_) zero_end = std::max(zero_end, std::min(size, backing_->size()));
  zero_end = round_up(zero_end, cluster_size());
  if (has_raw_data()) zero_end = round_up(size, cluster_size());
  if (zero_end > size_) {
    co_await zero_checked(size_, zero_end - size_, {.may_unmap = true, .only_where_needed = true});
  }
  if (data_) co_await grow_data_file(size);
  // A raw data file keeps an entry for each cluster (trap 127).
  if (has_raw_data() && mode == Preallocation::off) mode = Preallocation::metadata;
  const uint64_t start = round_up(size_, cluster_size());
  const uint64_t end = round_up(size, cluster_size());
  Result<void> done;
  if (mode != Preallocation::off && start < end) {
    done = co_await preallocate_range(start, end - start, mode).result();
    if (!done) done = std::move(done).error().while_doing("preallocate");
  }
  if (done) done = co_await switch_size(size).result();
  if (done) co_return;
  if (mode != Preallocation::off) (void)co_await undo_preallocation(start, end).result();
  co_await std::move(done);
}

/// The last step of grow(): the header says the new size.
Task<void> Image::switch_size(uint64_t size) {
  co_await committer_->flush(Mark::commit_sync);
  // Zeroing and discarding go by where the disk ends: none may be half way.
  RangeLock::Request change_size(size_lock_, 0, 1, RangeLock::Mode::exclusive);
  co_await change_size;
  std::optional<Bitmaps::Change> bitmaps = co_await resized_bitmaps(size);
  if (bitmaps) co_await committer_->flush_all();
  HeaderEdit edit{.disk_size = size};
  if (bitmaps) edit.bitmaps = bitmaps_->edit_for(*bitmaps);
  co_await header_state_->change(std::move(edit));
  size_ = size;
  if (!bitmaps) co_return;
  bitmaps_->keep(*std::move(bitmaps));
  staged();
}

/// The disk keeps its size, and the file what it had.  First the clusters are given back, which
/// needs no space, and makes some for the rest.
Task<void> Image::undo_preallocation(uint64_t start, uint64_t end) {
  const ZeroOptions give_back{.may_unmap = true, .only_where_needed = true};
  for (uint64_t at = start; at < end;) at += co_await zero_units(at, end - at, give_back);
  co_await reclaim_space();
  co_await forget_behind_end();
  co_await truncate_file();
  if (data_) co_await cut_data_file();
}

/// A longer L1 table: filled and durable before the header points to it (O6).
Task<void> Image::grow_l1(uint64_t entries) {
  const Geometry& g = head_.geometry;
  Quiesced quiesced(locks_, *committer_, *allocator_);
  co_await quiesced.begin();
  const uint64_t clusters = g.clusters_for(entries * 8);
  Reservation fresh = co_await allocator_->reserve_run(clusters);
  const HostSpan old{g.cluster_of(head_.header.l1_offset),
                     g.clusters_for(head_.header.l1_entries * uint64_t{8})};
  co_await allocator_->load(old);
  co_await quiesced.commit();  // The new table's refcounts, too (O1).
  std::vector<std::byte> body(clusters * cluster_size());
  for (uint64_t i = 0; i < map_->l1().size(); ++i)
    store_be(MutableBytes(body), i * 8, map_->l1()[i]);
  const HostOffset at = g.start_of(fresh.first());
  co_await file_->write(at.value, body, {.mark = Mark::l1_grow});
  co_await committer_->sync(Mark::commit_sync);

  RootEdit edit;
  edit.l1 = {at, static_cast<uint32_t>(entries)};
  co_await header_state_->change(quiesced, std::move(edit));
  metadata_.add_run({fresh.first(), clusters});
  fresh.keep();
  metadata_.remove_run(old);
  allocator_->release(old);
  map_->grow_l1(entries);
  staged();
}

}  // namespace byre
