// SPDX-License-Identifier: Apache-2.0
/// The external data file: guest data that lie outside the image, each cluster at its own offset.
///
/// The place of a guest cluster is its own for ever (docs/engine.md, X), so nothing is allocated
/// and nothing waits in limbo: an exclusive lock on the cluster is enough to use its place again.
/// It may hold anything then, so whatever becomes data is filled in full (M3b).
///   write    in place, or exclusive: fill, then stage.  A commit syncs the data file first (O2).
///   discard  stages zeros.  When that is durable the place is punched, under an exclusive lock
///            and only if no entry leads there again.
/// A data file that must stay valid as a raw image holds the whole truth: zeroes and discards are
/// zeros in it, and entries stay as they are.  Clusters without an entry (after QEMU's discards)
/// are zeros in it, too, and get one, durably, before they are written.  So the two never differ,
/// whatever was cut off or failed.
/// Not here: compressed clusters, snapshots and VM state, which cannot be with a data file.
#include <algorithm>

#include "base/checked.h"
#include "block/raw.h"
#include "qcow2/image.h"

namespace byre {

namespace {
/// Bytes zeroed, and clusters punched, under one lock (D4).
constexpr uint64_t kZeroAtOnce = 64 * MiB;
constexpr uint64_t kPunchAtOnce = 4096;
}  // namespace

Task<void> Image::open_data_file(Gate& gate) {
  FileOptions options{.writable = options_.writable,
                      .direct = options_.direct,
                      .lock = options_.lock,
                      .share_lock = options_.share_lock};
  std::unique_ptr<File> file;
  if (!options_.data_file.empty()) {
    file = co_await gate.open(options_.data_file, options);
  } else {
    if (!head_.extensions.data_file_name) {
      co_await fail(
          invalid("the image has an external data file but does not name it; give its name"));
    }
    const std::string name = co_await plain_name(*head_.extensions.data_file_name);
    file = co_await gate.open_named_by_image(file_->name(), name, options);
  }
  data_ = std::make_unique<RawDevice>(std::move(file), RawOptions{.growable = options_.writable});
  // As for the image: what a killed process wrote counts as durable from here on.
  if (options_.writable) co_await data_->flush(Mark::none);
}

/// Writes to the own places of the clusters `old`, which `data` covers but for the outer edges of
/// the first and the last.  Units that it touches are filled; then all are staged.  Holds X.
Task<void> Image::write_own(uint64_t offset, Bytes data, std::span<const Mapping> old) {
  const Geometry& g = head_.geometry;
  const uint64_t unit = g.unit_size();
  const uint64_t end = offset + data.size();
  const GuestCluster first = g.cluster_of(GuestOffset{offset});
  const auto publish_all = [&](bool whole) {
    for (uint64_t i = 0; i < old.size(); ++i) {
      const uint64_t start = g.start_of(first + i).value;
      const uint64_t from = std::max(offset, start) - start;
      const uint64_t to = std::min(end, start + cluster_size()) - start;
      Mapping mapping = old[i];
      mapping.host = HostCluster{(first + i).value};
      mapping.copied = true;
      for (uint64_t u = from / unit; u < div_ceil(to, unit); ++u) mapping.allocated |= 1u << u;
      if (whole) mapping.allocated = g.all_units();
      mapping.zero &= ~mapping.allocated;
      publish(first + i, mapping, old[i]);
    }
    ++stats_.writes_allocating;
  };
  // A raw data file reads as zeros there already, so the entries change nothing.  They are durable
  // before the data go down: not even a write that fails or is cut off tells the two apart.
  if (has_raw_data()) {
    publish_all(true);
    co_await committer_->flush(Mark::commit_sync);
    co_await write_host(offset, data, false, Mark::write_guest);
    co_return;
  }
  const uint64_t fill_from = round_down(offset, unit);
  const uint64_t fill_to = round_up(end, unit);
  {
    const Epochs::Pin pin = epochs_.pin();
    // An edge is the unit that the caller's bytes begin or end in; what lies between goes down from
    // the caller's own memory.
    const uint64_t middle = fill_from == offset ? offset : std::min(fill_to, fill_from + unit);
    if (middle > offset) {
      std::vector<std::byte> edge(middle - fill_from);
      co_await fill_around(old.front(), fill_from, edge, offset, data);
      co_await write_host(fill_from, edge, false, Mark::copy_up_write);
    }
    const uint64_t tail = fill_to == end ? end : std::max(middle, round_down(end, unit));
    if (tail > middle) {
      co_await write_host(middle, data.subspan(middle - offset, tail - middle), false,
                          Mark::write_guest);
    }
    if (fill_to > tail) {
      std::vector<std::byte> edge(fill_to - tail);
      co_await fill_around(old.back(), tail, edge, offset, data);
      co_await write_host(tail, edge, false, Mark::copy_up_write);
    }
  }
  publish_all(false);
}

/// The raw data file says it all: zeros in it, and no entry changes.  Shared locks, as for a write
/// in place: nobody fills around these bytes meanwhile.  Behind the end of the file there are
/// zeros.
Task<void> Image::zero_raw_data(uint64_t offset, uint64_t length, ZeroOptions options) {
  const Geometry& g = head_.geometry;
  options.fua = false;  // The caller's commit.
  for (const uint64_t end = offset + length; offset < end;) {
    const uint64_t step = std::min(end - offset, kZeroAtOnce);
    const GuestCluster last = g.cluster_of(GuestOffset{offset + step - 1});
    RangeLock::Request lock(locks_, g.cluster_of(GuestOffset{offset}).value, last.value + 1,
                            RangeLock::Mode::shared);
    co_await lock;
    if (!bitmaps_->mark_now(offset, step)) co_await bitmaps_->mark(offset, step);
    const uint64_t there = offset < data_->size() ? std::min(step, data_->size() - offset) : 0;
    if (there != 0) co_await data_->zero(offset, there, options).doing("data file");
    offset += step;
  }
}

// --- Places that are no longer used --------------------------------------------------------------

void Image::note_removed(GuestCluster cluster) {
  if (options_.discard != DiscardPolicy::unmap) return;
  const uint64_t generation = stages_.open.number;
  if (!removed_.empty() && removed_.back().generation == generation &&
      removed_.back().first + removed_.back().count == cluster) {
    ++removed_.back().count;
  } else {
    removed_.push_back({cluster, 1, generation});
  }
}

void Image::punch_what_is_durable() {
  if (removed_.empty() || punching_removed_ || closed_) return;
  punching_removed_ = true;
  background_.spawn(punch_removed());
}

Task<void> Image::punch_removed() {
  while (!removed_.empty() && removed_.front().generation < stages_.durable_end) {
    Removed& next = removed_.front();
    const GuestCluster first = next.first;
    const uint64_t count = std::min(next.count, kPunchAtOnce);
    next.first = first + count;
    next.count -= count;
    if (next.count == 0) removed_.pop_front();
    // Advisory: what cannot be punched stays.
    (void)co_await punch_unowned(first, count).result();
  }
  punching_removed_ = false;
}

/// Punches the places in the run that no entry leads to, on the disk and in memory: what was
/// written again since keeps what it has.
Task<void> Image::punch_unowned(GuestCluster first, uint64_t count) {
  const Geometry& g = head_.geometry;
  RangeLock::Request lock(locks_, first.value, first.value + count, RangeLock::Mode::exclusive);
  co_await lock;
  const auto unowned = [&](uint64_t index) -> Task<bool> {
    const Epochs::Pin pin = epochs_.pin();
    const Map::Found found = co_await map_->find(first + index);
    co_return found.durable && !found.mapping.host;
  };
  for (uint64_t i = 0; i < count;) {
    uint64_t end = i;
    while (end < count && co_await unowned(end)) ++end;
    const uint64_t from = g.start_of(first + i).value;
    const uint64_t to = std::min(g.start_of(first + end).value, data_->size());
    if (from < to) co_await data_->discard(from, to - from);
    i = end + 1;
  }
}

// --- Its size ------------------------------------------------------------------------------------

/// Before the disk grows.
Task<void> Image::grow_data_file(uint64_t size) {
  if (data_->size() < size) {
    if (!data_->can_grow()) {
      co_await fail(Error(Errc::no_space, cat("data file ", quoted(data_->name()), " ends at ",
                                              hex(data_->size()))));
    }
    co_await data_->resize(size).doing("data file");
  }
  co_await sync_latch_->sync_data(Mark::commit_sync);
}

/// After the disk has become smaller.
Task<void> Image::cut_data_file() {
  if (!data_->can_grow() || data_->size() <= size_) co_return;
  co_await data_->resize(size_).doing("data file");
  co_await sync_latch_->sync_data(Mark::commit_sync);
}

}  // namespace byre
