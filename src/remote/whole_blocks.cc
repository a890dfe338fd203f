// SPDX-License-Identifier: Apache-2.0
#include "remote/whole_blocks.h"

#include <algorithm>

#include "base/checked.h"
#include "base/units.h"
#include "io/buffer.h"

namespace byre::nbd {

WholeBlocks::WholeBlocks(Child below)
    : Filter(std::move(below)),
      block_(Filter::below().alignment()),
      blocks_(Filter::below().reactor().ready()) {}

uint64_t WholeBlocks::size() const { return round_down(below().size(), block_); }

Task<void> WholeBlocks::check(std::string_view what, uint64_t offset, uint64_t length) const {
  if (!within(offset, length, size())) co_await fail(out_of_range(what, offset, length));
}

Task<void> WholeBlocks::read(uint64_t offset, MutableBytes data, ReadOptions options) {
  co_await check("read", offset, data.size());
  if (offset % block_ == 0 && data.size() % block_ == 0) {
    co_return co_await below().read(offset, data, options);
  }
  if (data.empty()) co_return;
  constexpr uint64_t kPieceMax = 2 * MiB;
  while (!data.empty()) {
    const uint64_t first = round_down(offset, block_);
    const uint64_t end = std::min(round_up(offset + data.size(), block_), first + kPieceMax);
    const Buffer whole(end - first);
    const MutableBytes bytes = whole.bytes().first(end - first);
    co_await below().read(first, bytes, options);
    const uint64_t here = std::min<uint64_t>(data.size(), end - offset);
    copy(data.first(here), bytes.subspan(offset - first, here));
    offset += here;
    data = data.subspan(here);
  }
}

template <class Change>
Task<void> WholeBlocks::change_block(uint64_t offset, uint64_t length, WriteOptions options,
                                     Change change) {
  const uint64_t first = round_down(offset, block_);
  RangeLock::Request alone(blocks_, first / block_, first / block_ + 1, RangeLock::Mode::exclusive);
  co_await alone;
  const Buffer whole(block_);
  const MutableBytes bytes = whole.bytes().first(block_);
  co_await below().read(first, bytes, IoTag::copy_up_read);
  change(bytes.subspan(offset - first, length));
  co_await below().write(first, bytes, options);
}

Task<void> WholeBlocks::write(uint64_t offset, Bytes data, WriteOptions options) {
  if (options.compressed) co_await fail(no_compression());
  co_await check("write", offset, data.size());
  while (!data.empty()) {
    const uint64_t in_block = offset % block_;
    uint64_t here = data.size() - data.size() % block_;
    if (in_block != 0 || here == 0) {
      here = std::min<uint64_t>(data.size(), block_ - in_block);
      const Bytes part = data.first(here);
      co_await change_block(offset, here, options, [part](MutableBytes old) { copy(old, part); });
    } else {
      RangeLock::Request shared(blocks_, offset / block_, (offset + here) / block_,
                                RangeLock::Mode::shared);
      co_await shared;
      co_await below().write(offset, data.first(here), options);
    }
    offset += here;
    data = data.subspan(here);
  }
}

Task<void> WholeBlocks::zero(uint64_t offset, uint64_t length, ZeroOptions options) {
  co_await check("zero", offset, length);
  while (length > 0) {
    const uint64_t in_block = offset % block_;
    uint64_t here = length - length % block_;
    if (in_block != 0 || here == 0) {
      here = std::min(length, block_ - in_block);
      co_await change_block(offset, here, {.fua = options.fua},
                            [](MutableBytes old) { fill_zero(old); });
    } else {
      RangeLock::Request shared(blocks_, offset / block_, (offset + here) / block_,
                                RangeLock::Mode::shared);
      co_await shared;
      co_await below().zero(offset, here, options);
    }
    offset += here;
    length -= here;
  }
}

Task<void> WholeBlocks::discard(uint64_t offset, uint64_t length, DiscardOptions options) {
  co_await check("discard", offset, length);
  const uint64_t first = round_up(offset, block_);
  const uint64_t end = round_down(offset + length, block_);
  if (first >= end) co_return;
  RangeLock::Request shared(blocks_, first / block_, end / block_, RangeLock::Mode::shared);
  co_await shared;
  co_await below().discard(first, end - first, options);
}

Task<Extent> WholeBlocks::status(uint64_t offset, uint64_t length) {
  co_await check("status", offset, length);
  if (length == 0) co_return Extent{};
  const uint64_t first = round_down(offset, block_);
  const uint64_t end = round_up(offset + length, block_);
  Extent extent = co_await below().status(first, end - first);
  const uint64_t stop = std::min(first + extent.length, offset + length);
  if (stop <= offset) co_return Error(Errc::io, "the server speaks of less than a block");
  extent.length = stop - offset;
  if (extent.host_offset) *extent.host_offset += offset - first;
  co_return extent;
}

}  // namespace byre::nbd
