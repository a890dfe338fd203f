// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/preallocate.h"

#include <algorithm>

#include "qcow2/core/space_retry.h"
#include "qcow2/guest/change.h"
#include "qcow2/guest/guest_disk.h"
#include "qcow2/guest/read.h"

namespace byre {

namespace {
/// Clusters preallocated under one lock (D4), and zeros written at once.
constexpr uint64_t kClustersAtOnce = 4096;
constexpr uint64_t kZerosAtOnce = 1 * MiB;
/// Blocks asked for at once, so that an interruption is heard in between.
constexpr uint64_t kBlocksAtOnce = 1 * GiB;
}  // namespace

static Task<void> preallocate_run(GuestDisk& disk, GuestCluster first, uint64_t count,
                                  Preallocation mode);
static Task<uint64_t> preallocate_fresh(GuestDisk& disk, const ExclusiveRange& range,
                                        GuestCluster first, std::span<const Mapping> old,
                                        Preallocation mode);
static Task<void> preallocate_own(GuestDisk& disk, const ExclusiveRange& range, GuestCluster first,
                                  std::span<const Mapping> old, Preallocation mode);

Task<void> allocate_blocks(Device& device, uint64_t offset, uint64_t length) {
  while (length != 0) {
    const uint64_t step = std::min(length, kBlocksAtOnce);
    co_await device.allocate(offset, step);
    offset += step;
    length -= step;
  }
}

Task<void> write_zeros(Device& device, uint64_t offset, uint64_t length) {
  const std::vector<std::byte> zeros(std::min(length, kZerosAtOnce));
  while (length != 0) {
    const uint64_t step = std::min<uint64_t>(length, zeros.size());
    co_await device.write(offset, Bytes(zeros).first(step), {.tag = IoTag::write_guest});
    offset += step;
    length -= step;
  }
}

Task<void> preallocate_disk(GuestDisk& disk, GuestOffset offset, uint64_t length,
                            Preallocation mode) {
  if (mode == Preallocation::off) co_return;
  ChangeRequest request(disk, "preallocate", offset, length);
  co_await request.begin();
  co_await preallocate_range(disk, request.size(), offset, length, mode);
  co_await disk.committer->flush(IoTag::flush);
}

Task<void> preallocate_range(GuestDisk& disk, SizeKept, GuestOffset offset, uint64_t length,
                             Preallocation mode) {
  const Geometry& g = disk.head.geometry;
  const uint64_t end = g.clusters_for(offset.value + length);
  for (uint64_t at = g.cluster_of(offset).value; at < end;) {
    const uint64_t table_end = g.first_of_l1(g.l1_index(GuestCluster{at}) + 1).value;
    const uint64_t count = std::min({end - at, table_end - at, kClustersAtOnce});
    co_await preallocate_run(disk, GuestCluster{at}, count, mode);
    at += count;
  }
}

/// Clusters inside one L2 table: those that have none get one each.
Task<void> preallocate_run(GuestDisk& disk, GuestCluster first, uint64_t count,
                           Preallocation mode) {
  const Geometry& g = disk.head.geometry;
  ExclusiveRange range(disk.clusters, first, first + count);
  co_await begin_change(disk, range);
  std::vector<Mapping> old(count);
  {
    const Epochs::Pin pin = disk.epochs.pin();
    for (uint64_t i = 0; i < count; ++i) old[i] = (co_await disk.map->find(first + i)).mapping;
  }
  const auto wanted = [&](uint64_t i) {
    if (old[i].host || old[i].compressed) return false;
    // Plain data would hide what is below.
    return g.extended_l2 || disk.has_raw_data() ||
           reads_zero(disk, old[i], 1, g.start_of(first + i));
  };
  bool prepared = false;
  for (uint64_t i = 0; i < count;) {
    if (!wanted(i)) {
      ++i;
      continue;
    }
    uint64_t end = i + 1;
    while (end < count && wanted(end)) ++end;
    if (!prepared) co_await disk.prepare_table(range);
    prepared = true;
    const std::span<const Mapping> run = std::span<const Mapping>(old).subspan(i, end - i);
    if (disk.data) {
      co_await preallocate_own(disk, range, first + i, run, mode);
      i = end;
    } else {
      i += co_await preallocate_fresh(disk, range, first + i, run, mode);
    }
  }
}

/// As many as one reservation gives; returns how many those were.
Task<uint64_t> preallocate_fresh(GuestDisk& disk, const ExclusiveRange& range, GuestCluster first,
                                 std::span<const Mapping> old, Preallocation mode) {
  const Geometry& g = disk.head.geometry;
  SpaceRetry retry(disk);
  const uint64_t wanted = old.size();
  const Allocator::Use use = Allocator::Use::data;
  Reservation fresh = co_await retry.run(&Allocator::reserve, *disk.allocator, wanted, use);
  const HostOffset host = g.start_of(fresh.first());
  const uint64_t length = fresh.count() * disk.cluster_size();
  if (mode == Preallocation::full) {
    co_await disk.store.write_zeros(fresh, host, length, IoTag::write_guest);
  } else if (mode == Preallocation::falloc) {
    co_await disk.store.allocate(fresh, host, length);
  }
  const bool to_zero = !g.extended_l2 && mode != Preallocation::full;
  for (uint64_t i = 0; to_zero && i < fresh.count(); ++i) {
    if (fresh.zero(i)) continue;
    co_await disk.store.zero(fresh, host + i * disk.cluster_size(), disk.cluster_size(),
                             {.may_unmap = mode == Preallocation::metadata});
  }
  // All or none: a reservation that fails goes back as a whole (H6).
  for (uint64_t i = 0; i < fresh.count(); ++i) {
    Mapping mapping = old[i];
    mapping.host = fresh.first() + i;
    mapping.copied = true;
    if (!g.extended_l2) {
      mapping.allocated = 1;
      mapping.zero = 0;
    }
    disk.publish(range, first + i, mapping, old[i]);
  }
  const uint64_t count = fresh.count();
  fresh.keep();
  co_return count;
}

/// With a data file: the clusters' own places.  A raw one holds the truth already; in any other,
/// whatever lies there becomes zeros.
Task<void> preallocate_own(GuestDisk& disk, const ExclusiveRange& range, GuestCluster first,
                           std::span<const Mapping> old, Preallocation mode) {
  const Geometry& g = disk.head.geometry;
  const bool raw = disk.has_raw_data();
  const uint64_t start = g.start_of(first).value;
  const uint64_t end = std::min(g.start_of(first + old.size()).value, disk.data->size());
  if (start < end) {
    if (mode == Preallocation::full && !raw) {
      co_await disk.store.write_zeros(range, HostOffset{start}, end - start, IoTag::write_guest)
          .doing("data file");
    } else {
      if (mode != Preallocation::metadata) {
        co_await disk.store.allocate(range, HostOffset{start}, end - start).doing("data file");
      }
      if (!raw && !g.extended_l2) {
        co_await disk.store
            .zero(range, HostOffset{start}, end - start,
                  {.may_unmap = mode == Preallocation::metadata})
            .doing("data file");
      }
    }
  }
  for (uint64_t i = 0; i < old.size(); ++i) {
    Mapping mapping = old[i];
    mapping.host = HostCluster{(first + i).value};
    mapping.copied = true;
    if (raw || !g.extended_l2) {
      mapping.allocated = g.all_units();
      mapping.zero = 0;
    }
    disk.publish(range, first + i, mapping, old[i]);
  }
}

}  // namespace byre
