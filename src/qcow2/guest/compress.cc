// SPDX-License-Identifier: Apache-2.0
#include "qcow2/guest/compress.h"

#include <algorithm>

#include "coro/scope.h"
#include "format/codec.h"
#include "qcow2/core/space_retry.h"
#include "qcow2/guest/change.h"
#include "qcow2/guest/guest_disk.h"
#include "qcow2/guest/write.h"

namespace byre {

namespace {
/// Clusters compressed under one lock, and placed in one turn.
constexpr uint64_t kPieceMax = 2 * MiB;
/// What one worker is given at least: less is not worth the way there.
constexpr uint64_t kWorkMin = 64 * KiB;
}  // namespace

using Stream = std::optional<std::vector<std::byte>>;  ///< None: it would not be smaller.
static Task<std::vector<Stream>> write_streams(GuestDisk& disk, GuestOffset offset, Bytes data,
                                               int level, std::vector<Stream> streams,
                                               ArrivalOrder::Ticket* turn);
static Task<void> write_others(GuestDisk& disk, SizeKept size, GuestOffset offset, Bytes piece,
                               std::span<const Stream> streams, ArrivalOrder::Ticket* turn);
static Task<std::vector<Stream>> compress_clusters(GuestDisk& disk, Bytes data, int level);
static Task<void> compress_some(GuestDisk& disk, Bytes data, int level, std::span<Stream> streams);

Task<void> write_compressed(GuestDisk& disk, SizeKept size, GuestOffset offset, Bytes data,
                            int level, ArrivalOrder::Ticket& turn) {
  const Geometry& g = disk.head.geometry;
  if (g.data_file) co_await fail(unsupported("compressed data in an external data file"));
  if (g.encrypted) co_await fail(unsupported("compressed data in an encrypted image"));
  const GuestOffset end = offset + data.size();
  if (g.offset_in_cluster(offset) != 0 ||
      (g.offset_in_cluster(end) != 0 && end.value != disk.size)) {
    co_await fail(invalid("a compressed write of ", data.size(), " bytes at ", offset,
                          " does not cover whole clusters of ", disk.cluster_size(), " bytes"));
  }
  std::vector<Stream> all;
  if (disk.allocation_order.wanted()) {
    all = co_await compress_clusters(disk, data, level);
    co_await turn.wait();
  }
  auto next_ready = all.begin();
  while (!data.empty()) {
    const uint64_t piece =
        std::min({uint64_t{data.size()}, kPieceMax, g.end_of_table(offset) - offset});
    std::vector<Stream> streams;
    if (!all.empty()) {
      const auto piece_end = next_ready + static_cast<std::ptrdiff_t>(g.clusters_for(piece));
      streams.assign(std::move_iterator(next_ready), std::move_iterator(piece_end));
      next_ready = piece_end;
    }
    ArrivalOrder::Ticket* const last_turn = piece == data.size() ? &turn : nullptr;
    streams = co_await write_streams(disk, offset, data.first(piece), level, std::move(streams),
                                     last_turn);
    co_await write_others(disk, size, offset, data.first(piece), streams, last_turn);
    offset += piece;
    data = data.subspan(piece);
  }
}

/// What does not get smaller is written as it is (trap 59), in runs.
Task<void> write_others(GuestDisk& disk, SizeKept size, GuestOffset offset, Bytes piece,
                        std::span<const Stream> streams, ArrivalOrder::Ticket* turn) {
  const auto start_of = [&](uint64_t i) {
    return std::min<uint64_t>(i * disk.cluster_size(), piece.size());
  };
  const auto end_of_run = [&](uint64_t i) {
    while (i < streams.size() && !streams[i]) ++i;
    return i;
  };
  const auto next_run = [&](uint64_t i) {
    while (i < streams.size() && streams[i]) ++i;
    return i;
  };
  for (uint64_t i = next_run(0); i < streams.size();) {
    const uint64_t end = end_of_run(i);
    const uint64_t next = next_run(end);
    const Bytes run = piece.subspan(start_of(i), start_of(end) - start_of(i));
    co_await write_checked(disk, size, offset + start_of(i), run, false,
                           next == streams.size() ? turn : nullptr);
    i = next;
  }
}

/// Writes those clusters of a piece inside one L2 table that get smaller, and returns the streams.
/// They are made here, unless they are there.  `turn` ends when none is left to be placed, and
/// nothing else.
Task<std::vector<Stream>> write_streams(GuestDisk& disk, GuestOffset offset, Bytes data, int level,
                                        std::vector<Stream> streams, ArrivalOrder::Ticket* turn) {
  const Geometry& g = disk.head.geometry;
  const GuestCluster first = g.cluster_of(offset);
  const uint64_t count = g.clusters_for(data.size());
  co_await disk.throttle_staging();
  // Asked for in one step: who comes later waits for this request in both (ArrivalOrder).
  ArrivalOrder::Ticket ticket(disk.packer->order());
  ExclusiveRange range(disk.clusters, first, first + count);
  co_await range;
  co_await record_change(disk, range, offset, data.size());
  if (streams.empty()) streams = co_await compress_clusters(disk, data, level);
  std::vector<Mapping> old(count);
  {
    const Epochs::Pin pin = disk.epochs.pin();
    for (uint64_t i = 0; i < count; ++i) old[i] = co_await find_old(disk, first + i, true);
  }
  for (uint64_t i = 0; i < count; ++i) {
    if (streams[i]) co_await disk.load_refcounts_of(old[i]);
  }
  co_await disk.prepare_table(range);
  co_await ticket.wait();

  SpaceRetry retry(disk);
  std::vector<CompressedPacker::Placed> placed;
  Result<void> all_placed;
  for (uint64_t i = 0; i < count && all_placed; ++i) {
    if (!streams[i]) {
      placed.emplace_back();
      continue;
    }
    const Bytes stream = *streams[i];
    Result<CompressedPacker::Placed> place =
        co_await retry.run(&CompressedPacker::place, *disk.packer, stream).result();
    if (place) {
      placed.push_back(*std::move(place));
    } else {
      all_placed = std::move(place).error();
    }
  }
  ticket.end();
  const bool all_smaller = std::all_of(streams.begin(), streams.end(),
                                       [](const Stream& stream) { return stream.has_value(); });
  if (turn && all_smaller) turn->end();
  for (uint64_t i = 0; i < placed.size(); ++i) {
    while (streams[i]) {
      Result<bool> written = co_await disk.packer->write(placed[i]).result();
      if (written && *written) break;
      placed[i] = CompressedPacker::Placed();  // To limbo: its write may still land (H6).
      if (!written) co_await retry.reclaim_after(std::move(written).error());
      const Bytes stream = *streams[i];
      placed[i] = co_await retry.run(&CompressedPacker::place, *disk.packer, stream);
    }
    if (!streams[i]) continue;
    disk.publish(range, first + i, placed[i].mapping(), old[i]);  // M3, P3: its bytes are down.
    placed[i].keep();
    ++disk.stats.clusters_compressed;
  }
  co_await std::move(all_placed);
  co_return std::move(streams);
}

Task<void> GuestDisk::write_packed(HostOffset at, Bytes bytes) {
  const Epochs::Pin pin = epochs.pin();
  co_await store.write(pin, at, bytes, false, IoTag::write_compressed);
}

/// The streams of `data`'s clusters, in their order, made on all cores.
Task<std::vector<Stream>> compress_clusters(GuestDisk& disk, Bytes data, int level) {
  const uint64_t at_once = std::max<uint64_t>(1, kWorkMin / disk.cluster_size());
  std::vector<Stream> streams(disk.head.geometry.clusters_for(data.size()));
  Scope workers(disk.reactor.ready());
  for (uint64_t i = 0; i < streams.size(); i += at_once) {
    const uint64_t count = std::min<uint64_t>(at_once, streams.size() - i);
    const uint64_t start = i * disk.cluster_size();
    const Bytes part =
        data.subspan(start, std::min<uint64_t>(count * disk.cluster_size(), data.size() - start));
    workers.spawn(compress_some(disk, part, level, std::span(streams).subspan(i, count)));
  }
  co_await workers.join();
  co_return std::move(streams);
}

Task<void> compress_some(GuestDisk& disk, Bytes data, int level, std::span<Stream> streams) {
  const Compression compression = disk.head.header.compression;
  const uint64_t size = disk.cluster_size();
  Result<void> result;
  const auto work = [&] {
    for (uint64_t i = 0; i < streams.size() && result; ++i) {
      const Bytes part = data.subspan(i * size, std::min<uint64_t>(size, data.size() - i * size));
      std::vector<std::byte> padded;  // The disk's last cluster, if it is a part of one (trap 60).
      if (part.size() < size) {
        padded.assign(part.begin(), part.end());
        padded.resize(size);
      }
      Result<Stream> stream = compress(compression, padded.empty() ? part : padded, level);
      if (stream) {
        streams[i] = *std::move(stream);
      } else {
        result = std::move(stream).error();
      }
    }
  };
  co_await disk.reactor.offload(std::cref(work));
  co_await std::move(result);
}

}  // namespace byre
