// SPDX-License-Identifier: Apache-2.0
#include "job/salvage.h"

#include <algorithm>

#include "base/units.h"

namespace byre {

namespace {
constexpr uint64_t kBlock = 4 * KiB;
}  // namespace

Task<void> Salvage::read(uint64_t offset, MutableBytes data, ReadOptions options) {
  const Result<void> whole = co_await below().read(offset, data, options).result();
  if (whole) co_return;
  co_await read_piecewise(offset, data, options.tag,
                          std::max<uint64_t>(below().preferred_size(), kBlock));
}

Task<void> Salvage::read_piecewise(uint64_t offset, MutableBytes data, IoTag tag, uint64_t step) {
  while (!data.empty()) {
    const uint64_t length =
        std::min<uint64_t>(data.size(), round_down(offset, step) + step - offset);
    const MutableBytes piece = data.first(length);
    const Result<void> read = co_await below().read(offset, piece, tag).result();
    if (!read) {
      // Of a broken entry or stream all is lost; a bad block of the disk is no more than that.
      const bool divides = read.error().code() == Errc::io && step > kSectorSize;
      if (divides) {
        co_await read_piecewise(offset, piece, tag, step > kBlock ? kBlock : kSectorSize);
      } else {
        fill_zero(piece);
        lose(offset, length, read.error());
      }
    }
    offset += length;
    data = data.subspan(length);
  }
}

Task<Extent> Salvage::status(uint64_t offset, uint64_t length) {
  const uint64_t cluster = std::max<uint64_t>(below().preferred_size(), kBlock);
  const uint64_t one = std::min(length, round_down(offset, cluster) + cluster - offset);
  for (;;) {
    Result<Extent> extent = co_await below().status(offset, length).result();
    if (extent) co_return *std::move(extent);
    if (length == one) co_return Extent{.length = one};
    length = std::max(one, length / 2);
  }
}

void Salvage::lose(uint64_t offset, uint64_t length, const Error& error) {
  // Several reads may run side by side, each losing one piece behind the other.
  const size_t recent = lost_.size() - std::min<size_t>(lost_.size(), 32);
  for (size_t i = lost_.size(); i > recent; --i) {
    Lost& there = lost_[i - 1];
    if (there.code != error.code() || there.offset + there.length != offset) continue;
    there.length += length;
    return;
  }
  lost_.push_back(
      {.offset = offset, .length = length, .code = error.code(), .reason = error.message()});
}

std::vector<Salvage::Lost> Salvage::lost() const {
  std::vector<Lost> sorted = lost_;
  std::sort(sorted.begin(), sorted.end(),
            [](const Lost& a, const Lost& b) { return a.offset < b.offset; });
  // Pieces that were read side by side.
  std::vector<Lost> merged;
  for (Lost& range : sorted) {
    if (!merged.empty() && merged.back().code == range.code &&
        merged.back().offset + merged.back().length >= range.offset) {
      Lost& last = merged.back();
      last.length = std::max(last.length, range.offset + range.length - last.offset);
    } else {
      merged.push_back(std::move(range));
    }
  }
  return merged;
}

}  // namespace byre
