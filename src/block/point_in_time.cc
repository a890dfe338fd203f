// SPDX-License-Identifier: Apache-2.0
#include "block/point_in_time.h"

#include <algorithm>

#include "base/units.h"

namespace byre {

namespace {
/// Old contents are read in pieces of up to this many bytes.
constexpr uint64_t kFetchMax = MiB;
}  // namespace

/// Brings the wanted pieces of [offset, offset + length) into memory, those that are not there.
Task<void> PointInTimeFilter::keep(uint64_t offset, uint64_t length) {
  const std::shared_ptr<Moment> moment = moment_;
  if (!moment || !moment->wanted || length == 0) co_return;
  const uint64_t end = std::min(moment->size, offset + std::min(length, UINT64_MAX - offset));
  std::vector<std::pair<uint64_t, std::vector<std::shared_ptr<Piece>>>> runs;
  std::vector<std::shared_ptr<Piece>> fetched_by_others;
  for (uint64_t at = round_down(offset, kPiece);; at += kPiece) {
    const uint64_t next = moment->wanted(at);
    if (next >= end) break;
    at = round_down(next, kPiece);
    const uint64_t index = at / kPiece;
    if (const auto found = moment->pieces.find(index); found != moment->pieces.end()) {
      if (!found->second->done.is_set()) fetched_by_others.push_back(found->second);
      continue;
    }
    auto piece = std::make_shared<Piece>(reactor().ready());
    moment->pieces.emplace(index, piece);
    if (moment->kept + kPiece > moment->kept_max) {
      piece->lost = true;
      piece->done.set();
      continue;
    }
    moment->kept += kPiece;
    const bool follows = !runs.empty() && runs.back().first + runs.back().second.size() == index &&
                         runs.back().second.size() < kFetchMax / kPiece;
    if (!follows) runs.push_back({index, {}});
    runs.back().second.push_back(std::move(piece));
  }
  for (auto& [first, run] : runs) co_await fetch(moment, first, std::move(run));
  for (const std::shared_ptr<Piece>& piece : fetched_by_others) co_await piece->done.wait();
}

Task<void> PointInTimeFilter::fetch(std::shared_ptr<Moment> moment, uint64_t first,
                                    std::vector<std::shared_ptr<Piece>> run) {
  const uint64_t at = first * kPiece;
  std::vector<std::byte> bytes(std::min(run.size() * kPiece, moment->size - at));
  const Result<void> read = co_await below().read(at, bytes, IoTag::none).result();
  for (uint64_t i = 0; i < run.size(); ++i) {
    const Bytes part = Bytes(bytes).subspan(i * kPiece);
    if (read) {
      run[i]->bytes.assign(
          part.begin(),
          part.begin() + static_cast<std::ptrdiff_t>(std::min<uint64_t>(kPiece, part.size())));
    }
    run[i]->lost = !read;
    run[i]->done.set();
  }
}

Task<void> PointInTimeFilter::write_keeping(uint64_t offset, Bytes data, WriteOptions options) {
  co_await keep(offset, data.size());
  co_await below().write(offset, data, options);
}

Task<void> PointInTimeFilter::zero_keeping(uint64_t offset, uint64_t length, ZeroOptions options) {
  co_await keep(offset, length);
  co_await below().zero(offset, length, options);
}

Task<void> PointInTimeFilter::discard_keeping(uint64_t offset, uint64_t length,
                                              DiscardOptions options) {
  co_await keep(offset, length);
  co_await below().discard(offset, length, options);
}

Task<void> PointInTimeFilter::shrink_keeping(uint64_t size) {
  co_await keep(size, UINT64_MAX - size);
  co_await below().resize(size);
}

PointInTimeFilter::View::View(PointInTimeFilter& filter, uint64_t kept_max)
    : filter_(filter), moment_(std::make_shared<Moment>()) {
  BYRE_ASSERT(!filter.moment_);
  moment_->size = filter.size();
  moment_->kept_max = kept_max;
  filter.moment_ = moment_;
}

PointInTimeFilter::View::~View() { filter_.moment_.reset(); }

void PointInTimeFilter::View::keep(std::function<uint64_t(uint64_t from)> wanted) {
  moment_->wanted = std::move(wanted);
}

uint64_t PointInTimeFilter::View::kept_bytes() const { return moment_->kept; }
uint64_t PointInTimeFilter::View::size() const { return moment_->size; }

Task<void> PointInTimeFilter::View::read(uint64_t offset, MutableBytes data, ReadOptions options) {
  if (offset > size() || data.size() > size() - offset) {
    co_await fail(out_of_range("read", offset, data.size()));
  }
  Gate::Pass pass;
  if (gate_) pass = co_await gate_->enter();
  // First what is there, then over it what was kept: whatever was written while this read ran was
  // kept before.
  Device& below = filter_.below();
  for (;;) {
    const uint64_t end = below.size();
    const uint64_t there = offset < end ? std::min<uint64_t>(end - offset, data.size()) : 0;
    Result<void> read;
    if (there != 0) read = co_await below.read(offset, data.first(there), options).result();
    if (!read && below.size() < end) continue;  // It was cut off meanwhile.
    co_await std::move(read);
    fill_zero(data.subspan(there));
    break;
  }
  if (moment_->pieces.empty()) co_return;
  for (uint64_t at = round_down(offset, kPiece); at < offset + data.size(); at += kPiece) {
    const auto found = moment_->pieces.find(at / kPiece);
    if (found == moment_->pieces.end()) continue;
    const std::shared_ptr<Piece> piece = found->second;
    co_await piece->done.wait();
    if (piece->lost) {
      co_await fail(Error(Errc::busy, cat("what ", quoted(name()), " held at ", hex(at),
                                          " was overwritten before it was read")));
    }
    const uint64_t from = std::max(at, offset);
    const uint64_t to = std::min<uint64_t>(at + piece->bytes.size(), offset + data.size());
    if (from < to)
      copy(data.subspan(from - offset), Bytes(piece->bytes).subspan(from - at, to - from));
  }
}

Task<void> PointInTimeFilter::View::write(uint64_t, Bytes, WriteOptions) {
  co_await fail(Error(Errc::read_only, "what a device held at one moment cannot be changed"));
}
Task<void> PointInTimeFilter::View::zero(uint64_t, uint64_t, ZeroOptions) {
  co_await fail(Error(Errc::read_only, "what a device held at one moment cannot be changed"));
}
Task<void> PointInTimeFilter::View::discard(uint64_t, uint64_t, DiscardOptions) {
  co_await fail(Error(Errc::read_only, "what a device held at one moment cannot be changed"));
}
Task<void> PointInTimeFilter::View::flush(IoTag) { co_return; }
Task<Extent> PointInTimeFilter::View::status(uint64_t, uint64_t length) {
  co_return Extent{.length = length};
}
Task<void> PointInTimeFilter::View::close() { co_return; }

}  // namespace byre
