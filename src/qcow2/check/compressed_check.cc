// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/compressed_check.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "coro/scope.h"
#include "format/codec.h"

namespace byre {
namespace {

constexpr size_t kInFlight = 64;

struct Stream {
  uint64_t at = 0;
  uint64_t size = 0;
  GuestCluster guest;
  uint32_t use = 0;  ///< Index of the table's use.
  uint64_t end() const { return at + size; }
  auto key() const { return std::tie(at, size, guest); }
};

class StreamCheck {
 public:
  explicit StreamCheck(ScanContext& scan) : scan_(scan) {}

  Task<void> run(bool inflate) {
    co_await collect();
    std::sort(streams_.begin(), streams_.end(),
              [](const Stream& a, const Stream& b) { return a.key() < b.key(); });
    streams_.erase(std::unique(streams_.begin(), streams_.end(),
                               [](const Stream& a, const Stream& b) { return a.key() == b.key(); }),
                   streams_.end());
    find_overlaps();
    if (inflate) co_await inflate_all();
  }

 private:
  const Geometry& geometry() const { return scan_.geometry(); }

  Task<void> collect() {
    const L2Use* first = scan_.result().l2_uses.data();
    const VisitL2 visit = [&](const L2Use& use, MutableBytes table) {
      for (uint64_t i = 0; i < geometry().l2_entries(); ++i) {
        const L2Entry entry = load_l2(table, i, geometry());
        if ((entry.descriptor & kCompressed) == 0) continue;
        const Result<Mapping> mapping = decode_l2(entry, geometry());
        if (!mapping || mapping->compressed_at.value >= scan_.result().file_size()) continue;
        streams_.push_back({.at = mapping->compressed_at.value,
                            .size = mapping->compressed_size,
                            .guest = geometry().first_of_l1(use.l1_index) + i,
                            .use = static_cast<uint32_t>(&use - first)});
      }
    };
    co_await scan_.each_l2(visit);
  }

  FindingPlace place_of(const Stream& stream, FindingKind kind) const {
    return {.kind = kind,
            .structure = "compressed data",
            .at = stream.at,
            .length = stream.size,
            .use = &scan_.result().l2_uses[stream.use],
            .guest = stream.guest};
  }

  void find_overlaps() {
    const Stream* longest = nullptr;
    const Stream* previous = nullptr;
    for (const Stream& stream : streams_) {
      if (longest && stream.at < longest->end() - kSectorSize) {
        add_overlap(*longest, stream);
      } else if (previous && stream.at == previous->at) {
        add_overlap(*previous, stream);  // Both in one sector.
      }
      if (!longest || stream.end() > longest->end()) longest = &stream;
      previous = &stream;
    }
  }

  void add_overlap(const Stream& one, const Stream& other) {
    FindingPlace place = place_of(other, FindingKind::overlapping_streams);
    place.cause = Cause::stale_packing;
    place.repair = RepairKind::unshare;
    scan_.damage_beyond_qemu(1, place, "guest offset ", geometry().start_of(other.guest),
                             ": compressed data at ", hex(other.at),
                             " overlap those of guest offset ", geometry().start_of(one.guest),
                             " at ", hex(one.at));
    scan_.result().overlapping.insert(geometry().cluster_of(HostOffset{other.at}));
  }

  Task<void> inflate_all() {
    for (size_t done = 0; done < streams_.size(); done += kInFlight) {
      const size_t count = std::min(kInFlight, streams_.size() - done);
      Scope scope(scan_.file().reactor().ready());
      for (size_t i = 0; i < count; ++i) scope.spawn(inflate(streams_[done + i]));
      co_await scope.join();
    }
  }

  Task<void> inflate(const Stream& stream) {
    std::vector<std::byte> bytes(stream.size);
    Result<void> read =
        co_await scan_.read_padded(stream.at, bytes, IoTag::read_compressed).result();
    if (!read) {
      scan_.unreadable(std::move(read).error().while_doing(
          cat("compressed data of guest offset ", geometry().start_of(stream.guest))));
      co_return;
    }
    Result<void> inflated;
    const Compression compression = scan_.result().head.header.compression;
    const uint64_t size = geometry().cluster_size();
    auto work = [&] {
      std::vector<std::byte> cluster(size);
      inflated = decompress(compression, bytes, cluster);
    };
    co_await scan_.file().reactor().offload(work);
    if (inflated) co_return;
    scan_.result().bad_streams.insert({stream.at, stream.size});
    scan_.lost_beyond_qemu(1, place_of(stream, FindingKind::bad_stream), "guest offset ",
                           geometry().start_of(stream.guest), ": compressed data at ",
                           hex(stream.at), " do not inflate: ", inflated.error().message());
  }

  ScanContext& scan_;
  std::vector<Stream> streams_;
};

}  // namespace

Task<void> check_streams(ScanContext& scan, bool inflate) {
  StreamCheck check(scan);
  co_await check.run(inflate);
}

}  // namespace byre
