// SPDX-License-Identifier: Apache-2.0
#include "qcow2/image.h"

#include <algorithm>

#include "qcow2/working.h"

namespace byre {

ImageStats Image::stats() const {
  ImageStats stats = stats_;
  stats.table_loads = map_->cache().loads();
  if (committer_) {
    stats.commits = committer_->commits();
    stats.commit_failures = committer_->failures();
    stats.clusters_allocated = allocator_->clusters_allocated();
    stats.clusters_freed = allocator_->clusters_freed();
    stats.clusters_peak = allocator_->clusters_peak();
  }
  return stats;
}

Result<void> Image::check_can_write() const {
  if (!options_.writable) return Error(Errc::read_only, cat(quoted(name()), " is open read-only"));
  if (committer_->latched()) return committer_->latched().copy();
  return {};
}

Task<void> Image::flush(Mark mark) {
  if (!options_.writable) co_return;
  const Working working(*this);
  co_await working.begin();
  co_await check_can_write();
  co_await committer_->flush(mark).doing("flush ", quoted(name()));
}

/// M6: what is staged is committed within commit_delay, so that a killed process costs at most
/// that.
void Image::staged() {
  if (lingering_ || closing_ || !committer_->has_work()) return;
  lingering_ = true;
  background_.spawn(linger());
}

Task<void> Image::linger() {
  timer_ = Op{.kind = Op::Kind::timer, .deadline = reactor_.now() + options_.commit_delay};
  co_await reactor_.perform(timer_);
  lingering_ = false;
  if (closing_) co_return;
  // A failure shows at the next flush; the work is tried again with the next staged entry.
  if (committer_->has_work()) (void)co_await committer_->flush(Mark::commit_sync).result();
  staged();
}

/// Bounds what is staged: whoever comes when it is full commits first, and gets that commit's
/// error.
Task<void> Image::room_to_stage() {
  while (stages_.open.entries.size() >= std::max<uint64_t>(options_.staged_max, 1))
    co_await committer_->flush(Mark::commit_sync);
}

/// After a real ENOSPC: what has been freed is made usable (docs/engine.md, H).  Holds X, but no
/// pin.
Task<void> Image::reclaim_space() {
  if (allocator_->limbo_empty()) co_return;
  co_await committer_->flush_all();
  co_await allocator_->drain_limbo();
}

/// Makes it possible to release what `old` refers to.  A damaged image may map guest data to
/// metadata; that is never given up for a guest (M5).
Task<void> Image::load_old(const Mapping& old) {
  const HostSpan span = hosts(old, head_.geometry);
  if (const auto hit = metadata_.find_in(span)) {
    co_await fail(corrupt("guest data is mapped to ", head_.geometry.start_of(*hit),
                          ", which holds metadata; run check -r all"));
  }
  co_await allocator_->load(span);
}

/// What the allocator does in the background may leave something to commit.
Task<void> Image::in_background(Task<void> task) {
  co_await std::move(task);
  staged();
}

/// Map::prepare(), with a second try once freed space has been made usable.
Task<void> Image::prepare_table(uint64_t l1_index) {
  Result<void> prepared = co_await map_->prepare(l1_index, *allocator_).result();
  if (prepared || prepared.error().code() != Errc::no_space) {
    co_await std::move(prepared);
    co_return;
  }
  co_await reclaim_space();
  co_await map_->prepare(l1_index, *allocator_);
}

Task<void> Image::close() {
  if (closed_) co_return;
  closing_ = true;
  Error first;
  const auto note = [&first](Result<void> result) {
    if (!result && !first) first = std::move(result).error();
  };
  while (working_ != 0) co_await idle_.wait();
  if (lingering_) reactor_.cancel(timer_);
  (void)co_await background_.join().result();
  if (committer_) {
    Result<void> drained = co_await committer_->flush_all().result();
    // After a change of the format nothing but the tables of old is known.
    if (drained && options_.writable) drained = co_await bitmaps_->store_exact().result();
    // The second commit writes the decrements that the first made possible.
    for (int round = 0;
         drained && round < 4 && (!allocator_->limbo_empty() || committer_->has_work()); ++round) {
      epochs_.advance();
      allocator_->reclaim();
      (void)co_await background_.join().result();
      drained = co_await committer_->flush_all().result();
    }
    if (drained) drained = co_await committer_->finish().result();
    if (drained && file_->can_grow()) {
      // Give back what the file was grown ahead.
      const uint64_t used = std::max(length_at_open_, allocator_->end_of_use() * cluster_size());
      if (used < file_->size()) {
        drained = co_await file_->resize(used).result();
        if (drained) drained = co_await file_->flush(Mark::flush).result();
      }
    }
    note(std::move(drained));
  }
  (void)co_await background_.join().result();
  if (backing_) note(co_await backing_->close().result());
  if (data_) note(co_await data_->close().result());
  note(co_await file_->close().result());
  closed_ = true;
  if (first) co_await fail(std::move(first).while_doing(cat("close ", quoted(name()))));
}

void Image::abandon() {
  closed_ = true;
  background_.forget();
  for (Device* below : std::initializer_list<Device*>{backing_.get(), data_.get(), file_.get()}) {
    if (below) below->abandon();
  }
}

}  // namespace byre
