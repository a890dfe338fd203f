// SPDX-License-Identifier: Apache-2.0
/// Compressed writes (docs/engine.md, P): compress -> place -> write -> stage, under an exclusive
/// lock.  A failure before the last step leaves the map as it was, and the references go to limbo.
#include <algorithm>

#include "coro/scope.h"
#include "format/codec.h"
#include "qcow2/image.h"
#include "qcow2/working.h"

namespace byre {

namespace {
/// Clusters compressed under one lock, and placed in one turn.
constexpr uint64_t kPieceMax = 2 * MiB;
/// What one worker is given at least: less is not worth the way there.
constexpr uint64_t kWorkMin = 64 * KiB;
}  // namespace

Task<void> Image::write_compressed(uint64_t offset, Bytes data, int level) {
  const Geometry& g = head_.geometry;
  if (g.data_file) co_await fail(unsupported("compressed data in an external data file"));
  if (g.encrypted) co_await fail(unsupported("compressed data in an encrypted image"));
  const uint64_t end = offset + data.size();
  if (offset % cluster_size() != 0 || (end % cluster_size() != 0 && end != size_)) {
    co_await fail(invalid("a compressed write of ", data.size(), " bytes at ", hex(offset),
                          " does not cover whole clusters of ", cluster_size(), " bytes"));
  }
  while (!data.empty()) {
    const uint64_t table_end = (g.l1_index(g.cluster_of(GuestOffset{offset})) + 1) * g.l1_span();
    const uint64_t piece = std::min({uint64_t{data.size()}, kPieceMax, table_end - offset});
    const std::vector<Stream> streams = co_await write_streams(offset, data.first(piece), level);
    // What does not get smaller is written as it is (trap 59), in runs.
    const auto start_of = [&](uint64_t i) { return std::min(i * cluster_size(), piece); };
    for (uint64_t i = 0; i < streams.size();) {
      uint64_t next = i + 1;
      if (streams[i]) {
        i = next;
        continue;
      }
      while (next < streams.size() && !streams[next]) ++next;
      const Bytes run = data.subspan(start_of(i), start_of(next) - start_of(i));
      co_await write_checked(offset + start_of(i), run, false);
      i = next;
    }
    offset += piece;
    data = data.subspan(piece);
  }
}

/// Writes those clusters of a piece inside one L2 table that get smaller, and returns the streams.
Task<std::vector<Image::Stream>> Image::write_streams(uint64_t offset, Bytes data, int level) {
  const Geometry& g = head_.geometry;
  const GuestCluster first = g.cluster_of(GuestOffset{offset});
  const uint64_t count = g.clusters_for(data.size());
  co_await room_to_stage();
  // Asked for in one step: who comes later waits for this request in both (Packer::Turn).
  Packer::Turn turn(*packer_);
  RangeLock::Request lock(locks_, first.value, first.value + count, RangeLock::Mode::exclusive);
  co_await lock;
  if (!bitmaps_->mark_now(offset, data.size())) co_await bitmaps_->mark(offset, data.size());
  std::vector<Stream> streams = co_await compress_clusters(data, level);
  std::vector<Mapping> old(count);
  {
    const Epochs::Pin pin = epochs_.pin();
    for (uint64_t i = 0; i < count; ++i) old[i] = (co_await map_->find(first + i)).mapping;
  }
  for (uint64_t i = 0; i < count; ++i) {
    if (streams[i]) co_await load_old(old[i]);
  }
  co_await prepare_table(g.l1_index(first));
  co_await turn.come();

  bool reclaimed = false;
  std::vector<Packer::Placed> placed;
  Result<void> all_placed;
  for (uint64_t i = 0; i < count && all_placed; ++i) {
    if (!streams[i]) {
      placed.emplace_back();
      continue;
    }
    Result<Packer::Placed> place = co_await place_stream(*streams[i], reclaimed).result();
    if (place) {
      placed.push_back(*std::move(place));
    } else {
      all_placed = std::move(place).error();
    }
  }
  turn.end();
  for (uint64_t i = 0; i < placed.size(); ++i) {
    while (streams[i]) {
      Result<bool> written = co_await packer_->write(placed[i]).result();
      if (written && *written) break;
      if (!written && (written.error().code() != Errc::no_space || reclaimed))
        co_await fail(std::move(written).error());
      placed[i] = Packer::Placed();  // To limbo: its write may still land (H6).
      if (!written) {
        reclaimed = true;
        co_await reclaim_space();
      }
      placed[i] = co_await place_stream(*streams[i], reclaimed);
    }
    if (!streams[i]) continue;
    publish(first + i, placed[i].mapping(), old[i]);  // M3, P3: its bytes are down.
    placed[i].keep();
    ++stats_.clusters_compressed;
  }
  co_await std::move(all_placed);
  co_return std::move(streams);
}

/// Packer::place(), with a second try once freed space has been made usable.
Task<Packer::Placed> Image::place_stream(Bytes stream, bool& reclaimed) {
  Result<Packer::Placed> placed = co_await packer_->place(stream).result();
  if (!placed && placed.error().code() == Errc::no_space && !reclaimed) {
    reclaimed = true;
    co_await reclaim_space();
    placed = co_await packer_->place(stream).result();
  }
  co_return std::move(placed);
}

Task<void> Image::write_packed(uint64_t at, Bytes bytes) {
  const Epochs::Pin pin = epochs_.pin();
  co_await write_host(at, bytes, false, Mark::write_compressed);
}

/// The streams of `data`'s clusters, in their order, made on all cores.
Task<std::vector<Image::Stream>> Image::compress_clusters(Bytes data, int level) {
  const uint64_t at_once = std::max<uint64_t>(1, kWorkMin / cluster_size());
  std::vector<Stream> streams(head_.geometry.clusters_for(data.size()));
  Scope workers(reactor_.ready());
  for (uint64_t i = 0; i < streams.size(); i += at_once) {
    const uint64_t count = std::min<uint64_t>(at_once, streams.size() - i);
    const uint64_t start = i * cluster_size();
    const Bytes part =
        data.subspan(start, std::min<uint64_t>(count * cluster_size(), data.size() - start));
    workers.spawn(compress_some(part, level, std::span(streams).subspan(i, count)));
  }
  co_await workers.join();
  co_return std::move(streams);
}

Task<void> Image::compress_some(Bytes data, int level, std::span<Stream> streams) {
  const Compression compression = head_.header.compression;
  const uint64_t size = cluster_size();
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
  co_await reactor_.offload(std::cref(work));
  co_await std::move(result);
}

}  // namespace byre
