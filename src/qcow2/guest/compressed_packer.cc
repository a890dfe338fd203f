// SPDX-License-Identifier: Apache-2.0
#include "qcow2/guest/compressed_packer.h"

#include <utility>

#include "format/refcount.h"

namespace byre {

struct CompressedPacker::Run {
  Run(ReadyQueue& ready, uint64_t at) : start(at), written_end(at), moved(ready) {}

  uint64_t start;  ///< Where `bytes` begin: on a sector.
  std::vector<std::byte> bytes;
  uint64_t written_end;  ///< Streams up to here are on the disk.
  uint64_t issued_end = 0;
  bool writing = false;
  bool ended = false;  ///< Nothing more is placed in it or issued.
  Error error;         ///< Of the write that failed.
  Event moved;
};

CompressedPacker::CompressedPacker(ReadyQueue& ready, const Geometry& geometry,
                                   Allocator& allocator, Writer& writer)
    : ready_(ready),
      geometry_(geometry),
      allocator_(allocator),
      writer_(writer),
      mutex_(ready),
      order_(ready) {}

CompressedPacker::~CompressedPacker() = default;

CompressedPacker::Placed& CompressedPacker::Placed::operator=(Placed&& other) noexcept {
  Placed old(std::move(*this));  // Ends as any other.
  at_ = other.at_;
  size_ = other.size_;
  run_ = std::move(other.run_);
  shared_ = std::move(other.shared_);
  fresh_ = std::move(other.fresh_);
  return *this;
}

CompressedPacker::Placed::~Placed() {
  if (!run_ || run_->written_end >= at_.value + size_) return;
  run_->ended = true;
  run_->moved.notify();
}

void CompressedPacker::Placed::keep() {
  shared_.keep();
  fresh_.keep();
}

Task<CompressedPacker::Placed> CompressedPacker::place(Bytes stream) {
  const uint64_t cluster_size = geometry_.cluster_size();
  BYRE_ASSERT(!stream.empty() && stream.size() < cluster_size);
  const Mutex::Hold hold = co_await mutex_.lock();
  const auto can_share = [&] {
    return has_cursor() && !run_->ended &&
           (used_ == cluster_size ||
            allocator_.refcount(cluster_) < refcount_max(geometry_.refcount_order));  // A5
  };
  if (can_share() && used_ + stream.size() <= cluster_size) {
    const HostOffset at = geometry_.start_of(cluster_) + used_;
    Reservation shared = allocator_.share(cluster_);
    Placed placed = append(at, stream);
    placed.shared_ = std::move(shared);
    used_ += stream.size();
    co_return std::move(placed);
  }

  Reservation fresh = can_share() ? co_await allocator_.reserve_behind(cluster_)
                                  : co_await allocator_.reserve(1, Allocator::Use::data);
  const HostCluster next = fresh.first();
  // The cursor may be gone by now: the last stream of its cluster was discarded meanwhile.
  Reservation shared;
  HostOffset at = geometry_.start_of(next);
  if (can_share() && next == cluster_ + 1) {
    at = geometry_.start_of(cluster_) + used_;
    if (used_ < cluster_size) shared = allocator_.share(cluster_);
  } else {
    run_ = std::make_shared<Run>(ready_, at.value);
  }
  if (!can_describe_compressed(at, stream.size(), geometry_)) {
    run_ = nullptr;
    co_await fail(unsupported("a compressed cluster cannot lie at ", at));
  }
  cluster_ = next;
  used_ = at.value + stream.size() - geometry_.start_of(next).value;
  allocator_.set_packing(next);
  Placed placed = append(at, stream);
  placed.shared_ = std::move(shared);
  placed.fresh_ = std::move(fresh);
  co_return std::move(placed);
}

CompressedPacker::Placed CompressedPacker::append(HostOffset at, Bytes stream) {
  BYRE_ASSERT(run_->start + run_->bytes.size() == at.value);
  run_->bytes.insert(run_->bytes.end(), stream.begin(), stream.end());
  Placed placed;
  placed.at_ = at;
  placed.size_ = stream.size();
  placed.run_ = run_;
  return placed;
}

Task<bool> CompressedPacker::write(const Placed& placed) {
  const std::shared_ptr<Run> run = placed.run_;
  const uint64_t end = placed.at_.value + placed.size_;
  for (;;) {
    if (run->written_end >= end) co_return true;
    if (!run->writing && run->issued_end >= end) co_return run->error.copy();
    if (!run->writing && run->ended) co_return false;
    if (run->writing) {
      co_await run->moved.wait();
    } else {
      co_await lead(*run);
    }
  }
}

/// Writes all that waits in the run.
Task<void> CompressedPacker::lead(Run& run) {
  std::vector<std::byte> bytes = std::exchange(run.bytes, {});
  const uint64_t at = run.start;
  const uint64_t end = at + bytes.size();
  // P2: the next stream begins in the last sector; it goes down again with what is in it now.
  const uint64_t shared = end % kSectorSize;
  run.bytes.assign(bytes.end() - static_cast<std::ptrdiff_t>(shared), bytes.end());
  run.start = end - shared;
  bytes.resize(round_up(bytes.size(), kSectorSize));
  run.writing = true;
  run.issued_end = end;
  Result<void> written = co_await writer_.write_packed(HostOffset{at}, bytes).result();
  run.writing = false;
  if (written) {
    run.written_end = end;
  } else {
    run.ended = true;
    run.error = std::move(written).error();
  }
  run.moved.notify();
}

}  // namespace byre
