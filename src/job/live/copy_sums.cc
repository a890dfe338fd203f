// SPDX-License-Identifier: Apache-2.0
#include "job/live/copy_sums.h"

#include <algorithm>
#include <utility>

#include "base/assert.h"
#include "format/checksum.h"

namespace byre {

namespace {

/// The checksum of zeros that follow what has the checksum `before`.
uint32_t sum_of_zeros(uint64_t length, uint32_t before) {
  static constexpr std::array<std::byte, 4096> kZeros{};
  for (uint64_t part = 0; length != 0; length -= part) {
    part = std::min<uint64_t>(length, kZeros.size());
    before = crc32_of(Bytes(kZeros).first(part), before);
  }
  return before;
}

/// Puts what `from` has of the pieces into `into`.
void add(const ClusterSet& from, CopySums::Pieces pieces, ClusterSet& into) {
  for (uint64_t at = from.next(true, pieces.first, pieces.end); at < pieces.end;) {
    const uint64_t end = from.next(false, at, pieces.end);
    into.insert(at, end);
    at = from.next(true, end, pieces.end);
  }
}

}  // namespace

// --- Noting --------------------------------------------------------------------------------------

void CopySums::set(uint64_t piece, uint32_t sum) {
  auto& chunk = sums_[piece / kChunk];
  if (!chunk) chunk = std::make_unique<std::array<uint32_t, kChunk>>();
  (*chunk)[piece % kChunk] = sum;
}

void CopySums::forget(Pieces pieces) {
  for (ClusterSet* set : {&known_, &zeros_, &open_, &due_, &checked_}) {
    set->erase(pieces.first, pieces.end);
  }
}

void CopySums::Noter::bytes(uint64_t at, Bytes data) {
  if (!sums_) return;
  while (!data.empty()) {
    const uint64_t rest = sums_->end_of(at / sums_->piece_) - at;
    const Bytes part = data.first(std::min<uint64_t>(rest, data.size()));
    add(at, part.size(), crc32_of(part, sum_), false);
    at += part.size();
    data = data.subspan(part.size());
  }
}

void CopySums::Noter::zeros(uint64_t at, uint64_t length) {
  if (!sums_) return;
  const uint64_t end = at + length;
  while (at < end) {
    const uint64_t piece = at / sums_->piece_;
    // Whole pieces, all at once.
    const uint64_t stop = end >= sums_->size_ ? sums_->all().end : end / sums_->piece_;
    if (filled_ == 0 && piece < stop) {
      sums_->forget({.first = piece, .end = stop});
      sums_->known_.insert(piece, stop);
      sums_->zeros_.insert(piece, stop);
      at = sums_->end_of(stop - 1);
      continue;
    }
    const uint64_t part = std::min(sums_->end_of(piece), end) - at;
    add(at, part, sum_of_zeros(part, sum_), true);
    at += part;
  }
}

/// A part of one piece; `sum` is that of the piece up to the end of the part.
void CopySums::Noter::add(uint64_t at, uint64_t length, uint32_t sum, bool zeros) {
  const uint64_t piece = at / sums_->piece_;
  BYRE_ASSERT(at == sums_->begin_of(piece) + filled_);
  filled_ += length;
  is_zero_ &= zeros;
  sum_ = sum;
  if (at + length != sums_->end_of(piece)) return;
  const Pieces whole{.first = piece, .end = piece + 1};
  sums_->forget(whole);
  sums_->known_.insert(whole.first, whole.end);
  if (is_zero_) sums_->zeros_.insert(whole.first, whole.end);
  if (!is_zero_) sums_->set(piece, sum_);
  filled_ = 0;
  sum_ = 0;
  is_zero_ = true;
}

void CopySums::wrote(Pieces pieces) { add(known_, pieces, open_); }

void CopySums::flushing() {
  add(open_, all(), due_);
  open_ = {};
}

// --- Comparing -----------------------------------------------------------------------------------

std::optional<CopySums::Taken> CopySums::take(uint64_t from, uint64_t most) {
  const uint64_t last = all().end;
  if (due_.empty()) return std::nullopt;
  uint64_t first = due_.next(true, std::min(from, last), last);
  if (first == last) first = due_.next(true, 0, last);
  Taken taken{{.first = first, .end = due_.next(false, first, last)}, zeros_.contains(first)};
  taken.end = zeros_.next(!taken.zeros, first, taken.end);
  if (!taken.zeros) {
    taken.end = std::min(taken.end, first + std::max<uint64_t>(1, most / piece_));
  }
  due_.erase(taken.first, taken.end);
  return taken;
}

CopySums::Pieces CopySums::still(const Taken& taken, uint64_t first) const {
  const auto is_so = [&](uint64_t piece) {
    return known_.contains(piece) && zeros_.contains(piece) == taken.zeros &&
           !open_.contains(piece) && !due_.contains(piece) && !checked_.contains(piece);
  };
  while (first < taken.end && !is_so(first)) ++first;
  uint64_t end = first;
  while (end < taken.end && is_so(end)) ++end;
  return {.first = first, .end = end};
}

bool CopySums::is_right(uint64_t piece, Bytes data) const {
  const auto chunk = sums_.find(piece / kChunk);
  BYRE_ASSERT(chunk != sums_.end());
  return (*chunk->second)[piece % kChunk] == crc32_of(data);
}

void CopySums::checked(Pieces pieces) { checked_.insert(pieces.first, pieces.end); }

void CopySums::put_back(const Taken& taken) {
  for (Pieces left = still(taken, taken.first); left.first < left.end;
       left = still(taken, left.end)) {
    due_.insert(left.first, left.end);
  }
}

}  // namespace byre
