// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>

#include "base/checked.h"
#include "format/codec.h"
#include "qcow2/image.h"
#include "qcow2/working.h"

namespace byre {

Task<void> Image::read(uint64_t offset, MutableBytes data, Mark mark) {
  const Working working(*this);
  co_await working.begin();
  if (!within(offset, data.size(), size_)) co_await fail(out_of_range("read", offset, data.size()));
  for (uint64_t shrinks = shrinks_ + 1; shrinks != shrinks_;) {
    shrinks = shrinks_;
    co_await read_pinned(offset, data, mark);
    // The disk may have become smaller, and what lies behind it is no longer its own; or that has
    // failed, and what was read for zeros meanwhile is its own again.
    if (!within(offset, data.size(), size_))
      co_await fail(out_of_range("read", offset, data.size()));
  }
}

/// One pin for all pieces (docs/engine.md, 2.3).  Clusters that follow each other on the host are
/// one I/O; so are those that come from the backing device or read as zeros.
Task<void> Image::read_pinned(uint64_t offset, MutableBytes data, Mark mark) {
  const Geometry& g = head_.geometry;
  const Epochs::Pin pin = epochs_.pin();
  while (!data.empty()) {
    const GuestCluster cluster = g.cluster_of(GuestOffset{offset});
    const uint64_t in_cluster = g.offset_in_cluster(GuestOffset{offset});
    uint64_t length = std::min<uint64_t>(data.size(), cluster_size() - in_cluster);
    Result<std::optional<Map::Found>> now = map_->find_now(cluster);
    if (now && !*now) now = std::optional(co_await map_->find(cluster));
    const Map::Found found = *co_await std::move(now);
    // After a failed sync the data of a fresh cluster may be lost, and what it holds instead
    // belongs to nobody: an error, never that (M4, C4).
    if (!found.data_durable && committer_->latched()) co_await fail(committer_->latched().copy());
    const Mapping& mapping = found.mapping;

    // The common case, and the only one with more than a cluster at a time: plain data.
    if (mapping.allocated == g.all_units()) {
      uint64_t next = 1;
      while (length < data.size()) {
        Result<std::optional<Map::Found>> more = map_->find_now(cluster + next);
        if (!more || !*more || (*more)->mapping.allocated != g.all_units() ||
            (*more)->data_durable != found.data_durable ||
            *(*more)->mapping.host != *mapping.host + next) {
          break;
        }
        length = std::min<uint64_t>(data.size(), length + cluster_size());
        ++next;
      }
      co_await read_host(g.start_of(*mapping.host).value + in_cluster, data.first(length), mark);
    } else if (!mapping.compressed && mapping.allocated == 0 && mapping.zero == 0 &&
               map_->table_missing(cluster)) {
      // A whole table is missing: go on to its end at once.
      const uint64_t table_end = (g.l1_index(cluster) + 1) * g.l1_span();
      length = std::min<uint64_t>(data.size(), table_end - offset);
      co_await read_below(offset, data.first(length), mark);
    } else {
      co_await read_mapped(mapping, offset, data.first(length), mark);
    }
    offset += length;
    data = data.subspan(length);
  }
}

/// The bytes of one cluster, or a part of it, as `mapping` says.  The caller holds a pin or X.
Task<void> Image::read_mapped(const Mapping& mapping, uint64_t offset, MutableBytes data,
                              Mark mark) {
  const Geometry& g = head_.geometry;
  uint64_t within = g.offset_in_cluster(GuestOffset{offset});
  if (mapping.compressed) {
    co_await read_compressed(mapping, within, data, mark);
    co_return;
  }
  const uint32_t allocated = mapping.allocated;
  const uint32_t zero = mapping.zero;
  const uint64_t host = mapping.host ? g.start_of(*mapping.host).value : 0;
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
        co_await read_host(host + within, data.first(length), mark);
        break;
      case 1:
        fill_zero(data.first(length));
        break;
      default:
        co_await read_below(offset, data.first(length), mark);
        break;
    }
    offset += length;
    within += length;
    data = data.subspan(length);
  }
}

/// A file may end inside its last cluster; what is missing reads as zeros (traps 49 and 71).
Task<void> Image::read_host(uint64_t at, MutableBytes data, Mark mark) {
  Device& device = data_ ? *data_ : *file_;
  const uint64_t there =
      at < device.size() ? std::min<uint64_t>(data.size(), device.size() - at) : 0;
  if (there != 0) co_await device.read(at, data.first(there), mark);
  fill_zero(data.subspan(there));
}

/// What the backing device has; zeros beyond its end, beyond our own, and without one.
Task<void> Image::read_below(uint64_t offset, MutableBytes data, Mark) {
  uint64_t below = 0;
  const uint64_t end = backing_ ? std::min(backing_->size(), size_) : 0;
  if (offset < end) {
    below = std::min<uint64_t>(data.size(), end - offset);
    co_await backing_->read(offset, data.first(below), Mark::read_backing);
  }
  fill_zero(data.subspan(below));
}

Task<void> Image::read_compressed(Mapping mapping, uint64_t within, MutableBytes data, Mark mark) {
  UnpackedCache::Cluster cluster = unpacked_.find(mapping);
  // Who wants all of it gets it at once; it will hardly be asked for again.
  if (!cluster && data.size() == cluster_size()) {
    co_await unpack(mapping, data);
    co_return;
  }
  // A copy up is the last use of its stream, and waits for no reader.  Where another process may
  // write the image nothing tells when its bytes change.
  if (!cluster && (mark == Mark::copy_up_read || options_.share_lock)) {
    std::vector<std::byte> now(cluster_size());
    co_await unpack(mapping, now);
    copy(data, Bytes(now).subspan(within, data.size()));
    co_return;
  }
  if (!cluster) cluster = co_await unpacked_.get(mapping, *this);
  copy(data, Bytes(*cluster).subspan(within, data.size()));
}

Task<void> Image::unpack(Mapping mapping, MutableBytes cluster) {
  std::vector<std::byte> stream(mapping.compressed_size);
  co_await read_host(mapping.compressed_at.value, stream, Mark::read_compressed);
  Result<void> unpacked;
  const Compression compression = head_.header.compression;
  const auto work = [&] { unpacked = decompress(compression, stream, cluster); };
  co_await reactor_.offload(std::cref(work));
  ++stats_.clusters_unpacked;
  if (!unpacked) {
    co_await fail(std::move(unpacked).error().while_doing(
        cat("compressed stream at ", mapping.compressed_at, " in ", quoted(name()))));
  }
}

Task<Extent> Image::status(uint64_t offset, uint64_t length) {
  const Working working(*this);
  co_await working.begin();
  if (!within(offset, length, size_) || length == 0)
    co_return out_of_range("status", offset, length);
  const Geometry& g = head_.geometry;
  const Epochs::Pin pin = epochs_.pin();

  Extent extent{.length = 0, .data = false};
  bool first = true;
  uint64_t host_end = 0;
  // Bounded work: an answer may be shorter than what is alike.
  for (uint64_t steps = 0; extent.length < length && steps < 8192; ++steps) {
    const uint64_t at = offset + extent.length;
    const GuestCluster cluster = g.cluster_of(GuestOffset{at});
    const uint64_t in_cluster = g.offset_in_cluster(GuestOffset{at});
    Extent piece{.data = false};
    uint64_t host = 0;
    const Map::Found found = co_await map_->find(cluster);
    const Mapping& mapping = found.mapping;
    if (mapping.compressed) {
      piece = {.length = cluster_size() - in_cluster, .data = true, .compressed = true};
    } else if (mapping.allocated == 0 && mapping.zero == 0 && map_->table_missing(cluster)) {
      piece = {.length = (g.l1_index(cluster) + 1) * g.l1_span() - at,
               .data = false,
               .allocated = false};
    } else {
      const uint64_t unit = in_cluster / g.unit_size();
      const bool is_data = mapping.allocated >> unit & 1;
      const bool is_zero = mapping.zero >> unit & 1;
      uint64_t end = unit + 1;
      while (end < g.units() && (mapping.allocated >> end & 1) == is_data &&
             (mapping.zero >> end & 1) == is_zero)
        ++end;
      piece = {.length = end * g.unit_size() - in_cluster,
               .data = is_data,
               .zero = is_zero,
               .allocated = is_data || is_zero};
      if (mapping.host && (is_data || is_zero)) {
        host = g.start_of(*mapping.host).value + in_cluster;
        piece.host_offset = host;
        piece.file = data_ ? data_->name() : file_->name();
      }
    }
    piece.length = std::min(piece.length, length - extent.length);
    const bool alike = piece.data == extent.data && piece.zero == extent.zero &&
                       piece.allocated == extent.allocated &&
                       piece.compressed == extent.compressed &&
                       piece.host_offset.has_value() == extent.host_offset.has_value() &&
                       (!piece.host_offset || host == host_end);
    if (!first && !alike) break;
    if (first) {
      extent = piece;
    } else {
      extent.length += piece.length;
    }
    host_end = host + piece.length;
    first = false;
  }
  if (extent.allocated) co_return extent;

  // Not ours: what is below says, as far as it reaches.
  if (!backing_ || offset >= backing_->size()) {
    extent.zero = true;
    extent.allocated = false;
    co_return extent;
  }
  extent.length = std::min(extent.length, backing_->size() - offset);
  Extent below = co_await backing_->status(offset, extent.length);
  // Depth 0 without `allocated` means that no layer has it.
  if (below.allocated || below.depth != 0) ++below.depth;
  below.allocated = false;
  co_return below;
}

}  // namespace byre
