// SPDX-License-Identifier: Apache-2.0
#include "job/compare.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "coro/scope.h"

namespace byre {

namespace {

/// The first sector of the piece in which the two differ; nothing when they do not.
std::optional<uint64_t> first_difference(Bytes left, Bytes right, uint64_t from) {
  for (uint64_t at = from; at < left.size(); at += kSectorSize) {
    const size_t length = std::min<uint64_t>(kSectorSize, left.size() - at);
    if (std::memcmp(left.data() + at, right.data() + at, length) != 0) return at;
  }
  return std::nullopt;
}

bool are_equal(Bytes left, Bytes right) {
  return std::memcmp(left.data(), right.data(), left.size()) == 0;
}

}  // namespace

bool Compare::Run::operator==(const Run& other) const {
  return data == other.data && zero == other.zero && present == other.present &&
         compressed == other.compressed && has_offset == other.has_offset;
}

Compare::Compare(Device& left, Device& right, CompareOptions options, Progress& progress)
    : disks_{&left, &right},
      options_(std::move(options)),
      progress_(progress),
      cursor_lock_(left.reactor().ready()) {
  BYRE_ASSERT(options_.requests_max > 0 && options_.step > 0 && options_.piece_size > 0);
  BYRE_ASSERT(options_.step % kSectorSize == 0);
}

Task<CompareResult> Compare::run() {
  const uint64_t shorter = std::min(disks_[0]->size(), disks_[1]->size());
  const uint64_t longer = std::max(disks_[0]->size(), disks_[1]->size());
  if (longer != 0) progress_.set_total(longer);
  if (options_.strict && shorter != longer) {
    result_.difference = Difference::size;
    result_.offset = shorter;
    if (!options_.all) co_return std::move(result_);
  }
  co_await scan(0, shorter);
  if (!is_over() && shorter != longer) {
    if (options_.on_rest) options_.on_rest();
    co_await scan(shorter, longer);
  }
  std::sort(result_.ranges.begin(), result_.ranges.end(),
            [](const auto& a, const auto& b) { return a.start < b.start; });
  std::vector<DifferentRange> merged;
  for (const DifferentRange& range : result_.ranges) {
    if (!merged.empty() && merged.back().start + merged.back().length == range.start) {
      merged.back().length += range.length;
    } else {
      merged.push_back(range);
    }
  }
  result_.ranges = std::move(merged);
  co_return std::move(result_);
}

/// All of [from, to), to its first finding or failure.
Task<void> Compare::scan(uint64_t from, uint64_t to) {
  position_ = from;
  end_ = to;
  runs_ = {};
  Scope workers(disks_[0]->reactor().ready());
  for (unsigned i = 0; i < options_.requests_max && !is_over(); ++i) workers.spawn(work());
  co_await workers.join();
  co_await progress_.check("comparison");
  // A difference in front of what could not be read is the answer.
  if (failure_ && (result_.difference == Difference::none || failure_->offset <= result_.offset)) {
    co_await fail(std::move(error_));
  }
}

Task<void> Compare::work() {
  Buffers buffers;
  while (!is_over()) {
    std::optional<Piece> piece;
    {
      const auto hold = co_await cursor_lock_.lock();
      if (is_over() || progress_.stopped()) break;
      piece = co_await next();
    }
    if (!piece) break;
    co_await compare(*piece, buffers);
  }
}

/// All pieces up to the first that has not ended are done.
void Compare::finish(uint64_t sequence) {
  begun_[sequence - first_begun_].ended = true;
  while (!begun_.empty() && begun_.front().ended) {
    progress_.advance(begun_.front().length);
    begun_.pop_front();
    ++first_begun_;
  }
}

/// What a disk is at the position; behind its end it reads as zeros.
Task<void> Compare::look(int side) {
  Run& run = runs_[static_cast<size_t>(side)];
  if (run.end > position_) co_return;
  Device& disk = *disks_[static_cast<size_t>(side)];
  if (position_ >= disk.size()) {
    run = {.end = end_, .zero = true};
    co_return;
  }
  Result<Extent> extent = co_await disk.status(position_, disk.size() - position_).result();
  if (extent && extent->length == 0) {
    extent = Error(Errc::io, cat("no status for ", hex(position_), " of ", quoted(disk.name())));
  }
  if (!extent) {
    failed({.stage = CompareFailure::Stage::map, .side = side, .offset = position_},
           std::move(extent).error());
    co_return;
  }
  run = {.end = position_ + extent->length,
         .data = extent->data,
         .zero = extent->zero,
         .present = extent->allocated || extent->depth > 0,
         .compressed = extent->compressed,
         .has_offset = extent->host_offset.has_value(),
         .is_last = position_ + extent->length == disk.size()};
}

/// The next piece that has to be read; none at the end, or when it is over.
Task<std::optional<Compare::Piece>> Compare::next() {
  while (position_ < end_) {
    for (int side = 0; side < 2 && !is_over(); ++side) co_await look(side);
    if (is_over() || progress_.stopped()) break;
    const bool in_both = position_ < std::min(disks_[0]->size(), disks_[1]->size());
    const bool ends_differ = options_.ends_count && runs_[0].is_last != runs_[1].is_last;
    if (options_.strict && in_both && (runs_[0] != runs_[1] || ends_differ)) {
      found(Difference::allocation, position_);
      if (is_over()) break;
    }
    Piece piece{.at = position_,
                .length = std::min({runs_[0].end, runs_[1].end, end_}) - position_,
                .reads = {!runs_[0].zero, !runs_[1].zero}};
    const bool is_read = piece.reads[0] || piece.reads[1];
    if (is_read) piece.length = std::min(piece.length, options_.piece_size);
    piece.sequence = first_begun_ + begun_.size();
    begun_.push_back({.length = piece.length});
    position_ += piece.length;
    if (is_read) co_return std::optional(piece);
    finish(piece.sequence);
  }
  co_return std::optional<Piece>();
}

Task<void> Compare::compare(Piece piece, Buffers& buffers) {
  for (size_t side = 0; side < 2; ++side) {
    Buffer& buffer = buffers.of[side];
    if (buffer.size() == 0) buffer = Buffer(options_.step);
    if (!piece.reads[side]) fill_zero(buffer.bytes());
  }
  bool differs = false;
  for (uint64_t done = 0; done < piece.length; done += options_.step) {
    const uint64_t length = std::min(options_.step, piece.length - done);
    for (int side = 0; side < 2; ++side) {
      const auto index = static_cast<size_t>(side);
      if (!piece.reads[index]) continue;
      Result<void> read = co_await disks_[index]
                              ->read(piece.at + done, buffers.of[index].bytes().first(length))
                              .result();
      if (read) continue;
      // The whole piece counts as not read, as it would be in one request.
      failed({.stage = CompareFailure::Stage::read, .side = side, .offset = piece.at},
             std::move(read).error());
      co_return;
    }
    const Bytes left = buffers.of[0].bytes().first(length);
    const Bytes right = buffers.of[1].bytes().first(length);
    if (are_equal(left, right)) continue;
    note(piece, piece.at + done, left, right);
    differs = true;
  }
  if (!differs || options_.all) finish(piece.sequence);
}

/// The two differ somewhere.
void Compare::note(const Piece& piece, uint64_t at, Bytes left, Bytes right) {
  // A piece may begin inside a sector, behind the end of a raw file; sectors count from its start.
  BYRE_ASSERT((at - piece.at) % kSectorSize == 0);
  std::optional<uint64_t> sector = first_difference(left, right, 0);
  found(Difference::content, at + *sector);
  if (!options_.all) return;
  while (sector) {
    add_range(
        {.start = at + *sector, .length = std::min<uint64_t>(kSectorSize, left.size() - *sector)});
    sector = first_difference(left, right, *sector + kSectorSize);
  }
}

void Compare::add_range(DifferentRange range) {
  if (!result_.ranges.empty()) {
    DifferentRange& last = result_.ranges.back();
    if (last.start + last.length == range.start) {
      last.length += range.length;
      return;
    }
  }
  result_.ranges.push_back(range);
}

void Compare::found(Difference difference, uint64_t offset) {
  const bool is_first = result_.difference == Difference::none ||
                        (result_.difference != Difference::size && offset < result_.offset);
  if (is_first) {
    result_.difference = difference;
    result_.offset = offset;
  }
  if (!options_.all) over_ = true;
}

void Compare::failed(CompareFailure failure, Error error) {
  over_ = true;
  if (!failure_ || failure.offset < failure_->offset) {
    failure_ = failure;
    error_ = std::move(error);
  }
}

}  // namespace byre
