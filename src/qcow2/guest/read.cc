// SPDX-License-Identifier: Apache-2.0
#include "qcow2/guest/read.h"

#include <algorithm>
#include <bit>

#include "base/checked.h"
#include "format/codec.h"
#include "format/extended_l2.h"
#include "qcow2/guest/guest_disk.h"

namespace byre {

static Task<void> read_compressed(GuestDisk& disk, HostAccess access, Mapping mapping,
                                  uint64_t within, MutableBytes data, ReadFor read);
static std::optional<HostOffset> find_plain_now(GuestDisk& disk, GuestOffset offset,
                                                uint64_t length);
static Task<void> read_below(GuestDisk& disk, GuestOffset offset, MutableBytes data, IoTag);
static Task<void> decompress_stream(GuestDisk& disk, HostAccess access, Mapping mapping,
                                    MutableBytes cluster);

Task<void> read_disk(GuestDisk& disk, GuestOffset offset, MutableBytes data, IoTag tag) {
  const Request request(disk);
  co_await request.begin();
  if (!within(offset.value, data.size(), disk.size))
    co_await fail(disk.out_of_range("read", offset.value, data.size()));
  for (uint64_t shrinks = disk.shrinks + 1; shrinks != disk.shrinks;) {
    shrinks = disk.shrinks;
    bool done = false;
    {
      const Epochs::Pin pin = disk.epochs.pin();
      if (const std::optional<HostOffset> at = find_plain_now(disk, offset, data.size())) {
        co_await disk.store.read(pin, *at, data, tag);
        done = true;
      }
    }
    if (!done) co_await read_pinned(disk, offset, data, tag);
    // The disk may have become smaller, and what lies behind it is no longer its own; or that has
    // failed, and what was read for zeros meanwhile is its own again.
    if (!within(offset.value, data.size(), disk.size))
      co_await fail(disk.out_of_range("read", offset.value, data.size()));
  }
}

/// Where bytes of one cluster lie that are plain data, if that is known without a wait: most reads
/// of a guest.
std::optional<HostOffset> find_plain_now(GuestDisk& disk, GuestOffset offset, uint64_t length) {
  const Geometry& g = disk.head.geometry;
  const uint64_t in_cluster = g.offset_in_cluster(offset);
  if (length == 0 || length > disk.cluster_size() - in_cluster) return std::nullopt;
  const Result<std::optional<Map::Found>> now = disk.map->find_now(g.cluster_of(offset));
  if (!now || !*now || (*now)->mapping.allocated != g.all_units()) return std::nullopt;
  // As in read_pinned().
  if (!(*now)->data_durable && disk.committer->latched()) return std::nullopt;
  return g.start_of(*(*now)->mapping.host) + in_cluster;
}

/// One pin for all pieces (docs/engine.md, H1).  Clusters that follow each other on the host are
/// one I/O; so are those that come from the backing device or read as zeros.
Task<void> read_pinned(GuestDisk& disk, GuestOffset offset, MutableBytes data, IoTag tag) {
  const Geometry& g = disk.head.geometry;
  const Epochs::Pin pin = disk.epochs.pin();
  while (!data.empty()) {
    const GuestCluster cluster = g.cluster_of(offset);
    const uint64_t in_cluster = g.offset_in_cluster(offset);
    uint64_t length = std::min<uint64_t>(data.size(), disk.cluster_size() - in_cluster);
    Result<std::optional<Map::Found>> now = disk.map->find_now(cluster);
    if (now && !*now) now = std::optional(co_await disk.map->find(cluster));
    const Map::Found found = *co_await std::move(now);
    // After a failed sync the data of a fresh cluster may be lost, and what it holds instead
    // belongs to nobody: an error, never that (M4, C4).
    if (!found.data_durable && disk.committer->latched())
      co_await fail(disk.committer->latched().copy());
    const Mapping& mapping = found.mapping;

    // The common case, and the only one with more than a cluster at a time: plain data.
    if (mapping.allocated == g.all_units()) {
      uint64_t next = 1;
      while (length < data.size()) {
        Result<std::optional<Map::Found>> more = disk.map->find_now(cluster + next);
        if (!more || !*more || (*more)->mapping.allocated != g.all_units() ||
            (*more)->data_durable != found.data_durable ||
            *(*more)->mapping.host != *mapping.host + next) {
          break;
        }
        length = std::min<uint64_t>(data.size(), length + disk.cluster_size());
        ++next;
      }
      co_await disk.store.read(pin, g.start_of(*mapping.host) + in_cluster, data.first(length),
                               tag);
    } else if (!mapping.compressed && mapping.allocated == 0 && mapping.zero == 0 &&
               disk.map->table_missing(cluster)) {
      // A whole table is missing: go on to its end at once.
      length = std::min<uint64_t>(data.size(), g.end_of_table(offset) - offset);
      co_await read_below(disk, offset, data.first(length), tag);
    } else {
      co_await read_mapped(disk, pin, mapping, offset, data.first(length), tag);
    }
    offset += length;
    data = data.subspan(length);
  }
}

/// The bytes of one cluster, or a part of it, as `mapping` says.
Task<void> read_mapped(GuestDisk& disk, HostAccess access, const Mapping& mapping,
                       GuestOffset offset, MutableBytes data, ReadFor read) {
  const Geometry& g = disk.head.geometry;
  uint64_t within = g.offset_in_cluster(offset);
  if (mapping.compressed) {
    co_await read_compressed(disk, access, mapping, within, data, read);
    co_return;
  }
  const uint32_t allocated = mapping.allocated;
  const uint32_t zero = mapping.zero;
  const HostOffset host = mapping.host ? g.start_of(*mapping.host) : HostOffset{};
  const auto kind = [&](uint64_t unit) {
    return (allocated >> unit & 1) ? 0 : (zero >> unit & 1) ? 1 : 2;
  };
  while (!data.empty()) {
    // Units alike are one piece.
    const uint64_t unit = within / g.unit_size();
    uint64_t end = unit + 1;
    while (end < g.units() && kind(end) == kind(unit)) ++end;
    const uint64_t length = std::min<uint64_t>(data.size(), end * g.unit_size() - within);
    switch (kind(unit)) {
      case 0:
        co_await disk.store.read(access, host + within, data.first(length), read.tag);
        break;
      case 1:
        fill_zero(data.first(length));
        break;
      default:
        co_await read_below(disk, offset, data.first(length), read.tag);
        break;
    }
    offset += length;
    within += length;
    data = data.subspan(length);
  }
}

bool reads_zero(const GuestDisk& disk, const Mapping& mapping, uint32_t units,
                GuestOffset cluster_start) {
  return reads_zero(mapping, units, cluster_start.value < disk.backing_end());
}

/// What the backing device has; zeros beyond its end, beyond our own, and without one.
Task<void> read_below(GuestDisk& disk, GuestOffset offset, MutableBytes data, IoTag) {
  uint64_t below = 0;
  const GuestOffset end{std::min(disk.backing_end(), disk.size)};
  if (offset < end) {
    below = std::min<uint64_t>(data.size(), end - offset);
    co_await disk.backing->read(offset.value, data.first(below), IoTag::read_backing);
  }
  fill_zero(data.subspan(below));
}

Task<void> read_compressed(GuestDisk& disk, HostAccess access, Mapping mapping, uint64_t within,
                           MutableBytes data, ReadFor read) {
  DecompressedCache::Cluster cluster = disk.decompressed.find(mapping);
  // Who wants all of it gets it at once; it will hardly be asked for again.
  if (!cluster && data.size() == disk.cluster_size()) {
    co_await decompress_stream(disk, access, mapping, data);
    co_return;
  }
  // A copy up is the last use of its stream, and waits for no reader.  Where another process may
  // write the image nothing tells when its bytes change.
  if (!cluster && (read.last_use || disk.options.share_lock)) {
    std::vector<std::byte> now(disk.cluster_size());
    co_await decompress_stream(disk, access, mapping, now);
    copy(data, Bytes(now).subspan(within, data.size()));
    co_return;
  }
  if (!cluster) cluster = co_await disk.decompressed.get(access, mapping, disk.stream_source());
  copy(data, Bytes(*cluster).subspan(within, data.size()));
}

Task<void> decompress_stream(GuestDisk& disk, HostAccess access, Mapping mapping,
                             MutableBytes cluster) {
  std::vector<std::byte> stream(mapping.compressed_size);
  co_await disk.store.read(access, mapping.compressed_at, stream, IoTag::read_compressed);
  Result<void> decompressed;
  const Compression compression = disk.head.header.compression;
  const auto work = [&] { decompressed = decompress(compression, stream, cluster); };
  co_await disk.reactor.offload(std::cref(work));
  ++disk.stats.clusters_decompressed;
  if (!decompressed) {
    co_await fail(std::move(decompressed)
                      .error()
                      .while_doing(cat("compressed stream at ", mapping.compressed_at, " in ",
                                       quoted(disk.name()))));
  }
}

BYRE_CORO_WRAPPER Task<void> GuestDisk::decompress(HostAccess access, Mapping stream,
                                                   MutableBytes cluster) {
  return decompress_stream(*this, access, stream, cluster);
}

}  // namespace byre
