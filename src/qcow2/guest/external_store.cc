// SPDX-License-Identifier: Apache-2.0
#include "qcow2/guest/external_store.h"

#include <algorithm>

#include "block/raw.h"
#include "qcow2/guest/change.h"
#include "qcow2/guest/guest_disk.h"

namespace byre {

namespace {
/// Bytes zeroed, and clusters punched, under one lock (D4).
constexpr uint64_t kZeroAtOnce = 64 * MiB;
constexpr uint64_t kPunchAtOnce = 4096;
}  // namespace

static Task<void> punch_removed(GuestDisk& disk);
static Task<void> punch_unowned(GuestDisk& disk, GuestCluster first, uint64_t count);

/// The data file that the image, or whoever opens it, names.
static Task<Child> open_named_data_file(GuestDisk& disk, FileOpener& opener) {
  FileOptions options{.writable = disk.options.writable,
                      .direct = disk.options.direct,
                      .lock = disk.options.lock,
                      .share_lock = disk.options.share_lock};
  std::unique_ptr<File> file;
  if (!disk.options.data_file.empty()) {
    file = co_await opener.open(disk.options.data_file, options);
  } else {
    if (!disk.head.extensions.data_file_name) {
      co_await fail(
          invalid("the image has an external data file but does not name it; give its name"));
    }
    const std::string name = co_await plain_name(*disk.head.extensions.data_file_name);
    file = co_await opener.open_named_by_image(disk.file->name(), name, options);
  }
  Child raw =
      std::make_unique<RawDevice>(std::move(file), RawOptions{.growable = disk.options.writable});
  co_return std::move(raw);
}

Task<void> open_data_file(GuestDisk& disk, FileOpener& opener) {
  if (!disk.data) disk.data = co_await open_named_data_file(disk, opener);
  disk.store.use_external(*disk.data);
  // As for the image: what a killed process wrote counts as durable from here on.
  if (disk.options.writable) co_await disk.data->flush(IoTag::none);
}

/// The raw data file says it all: zeros in it, and no entry changes.  Shared locks, as for a write
/// in place: nobody fills around these bytes meanwhile.  Behind the end of the file there are
/// zeros.
Task<void> zero_raw_data(GuestDisk& disk, GuestOffset offset, uint64_t length,
                         ZeroOptions options) {
  const Geometry& g = disk.head.geometry;
  options.fua = false;  // The caller's commit.
  for (const GuestOffset end = offset + length; offset < end;) {
    const uint64_t step = std::min(end - offset, kZeroAtOnce);
    const GuestCluster last = g.cluster_of(offset + (step - 1));
    SharedRange range(disk.clusters, g.cluster_of(offset), last + 1);
    co_await begin_change(disk, range, offset, step);
    const HostOffset place{offset.value};
    const uint64_t there =
        place.value < disk.data->size() ? std::min(step, disk.data->size() - place.value) : 0;
    if (there != 0) co_await disk.store.zero(range, place, there, options).doing("data file");
    offset += step;
  }
}

// --- Places that are no longer used --------------------------------------------------------------

void note_removed(GuestDisk& disk, GuestCluster cluster) {
  if (disk.options.discard != DiscardPolicy::unmap) return;
  const uint64_t generation = disk.stages.open.number;
  if (!disk.removed.empty() && disk.removed.back().generation == generation &&
      disk.removed.back().first + disk.removed.back().count == cluster) {
    ++disk.removed.back().count;
  } else {
    disk.removed.push_back({cluster, 1, generation});
  }
}

void punch_what_is_durable(GuestDisk& disk) {
  if (disk.removed.empty() || disk.punching_removed || disk.closed()) return;
  disk.punching_removed = true;
  disk.spawn(punch_removed(disk));
}

Task<void> punch_removed(GuestDisk& disk) {
  while (!disk.removed.empty() && disk.removed.front().generation < disk.stages.durable_end) {
    GuestDisk::Removed& next = disk.removed.front();
    const GuestCluster first = next.first;
    const uint64_t count = std::min(next.count, kPunchAtOnce);
    next.first = first + count;
    next.count -= count;
    if (next.count == 0) disk.removed.pop_front();
    // Advisory: what cannot be punched stays.
    (void)co_await punch_unowned(disk, first, count).result();
  }
  disk.punching_removed = false;
}

/// Punches the places in the run that no entry leads to, on the disk and in memory: what was
/// written again since keeps what it has.
Task<void> punch_unowned(GuestDisk& disk, GuestCluster first, uint64_t count) {
  const Geometry& g = disk.head.geometry;
  ExclusiveRange range(disk.clusters, first, first + count);
  co_await range;
  const auto unowned = [&](uint64_t index) -> Task<bool> {
    const Epochs::Pin pin = disk.epochs.pin();
    const Map::Found found = co_await disk.map->find(first + index);
    co_return found.durable && !found.mapping.host;
  };
  for (uint64_t i = 0; i < count;) {
    uint64_t end = i;
    while (end < count && co_await unowned(end)) ++end;
    const uint64_t from = g.start_of(first + i).value;
    const uint64_t to = std::min(g.start_of(first + end).value, disk.data->size());
    if (from < to) co_await disk.store.discard(range, HostOffset{from}, to - from);
    i = end + 1;
  }
}

Task<void> punch_unused_places(GuestDisk& disk) {
  if (disk.options.discard != DiscardPolicy::unmap) co_return;
  const uint64_t clusters = disk.geometry().clusters_for(disk.size);
  for (uint64_t first = 0; first < clusters; first += kPunchAtOnce) {
    const uint64_t count = std::min(clusters - first, kPunchAtOnce);
    co_await punch_unowned(disk, GuestCluster{first}, count);
  }
}

// --- Its size ------------------------------------------------------------------------------------

/// Before the disk grows.
Task<void> grow_data_file(GuestDisk& disk, uint64_t size) {
  if (disk.data->size() < size) {
    if (!disk.data->can_grow()) {
      co_await fail(Error(Errc::no_space, cat("data file ", quoted(disk.data->name()), " ends at ",
                                              hex(disk.data->size()))));
    }
    co_await disk.data->resize(size).doing("data file");
  }
  co_await disk.latch->sync_data(IoTag::commit_sync);
}

/// After the disk has become smaller.
Task<void> cut_data_file(GuestDisk& disk) {
  if (!disk.data->can_grow() || disk.data->size() <= disk.size) co_return;
  co_await disk.data->resize(disk.size).doing("data file");
  co_await disk.latch->sync_data(IoTag::commit_sync);
}

}  // namespace byre
