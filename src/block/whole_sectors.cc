// SPDX-License-Identifier: Apache-2.0
#include "block/whole_sectors.h"

#include <algorithm>

namespace byre {

Task<void> WholeSectors::grow() {
  const Mutex::Hold hold = co_await grow_mutex_.lock();
  if (below().size() < size()) co_await below().resize(size());
}

Task<void> WholeSectors::read_rest(uint64_t offset, MutableBytes data, IoTag tag) {
  const uint64_t there = offset < below().size() ? below().size() - offset : 0;
  const uint64_t own = std::min<uint64_t>(there, data.size());
  if (own != 0) co_await below().read(offset, data.first(own), tag);
  fill_zero(data.subspan(own));
}

Task<void> WholeSectors::write_rest(uint64_t offset, Bytes data, WriteOptions options) {
  co_await grow();
  co_await below().write(offset, data, options);
}

/// What is not there reads as zeros already.
Task<void> WholeSectors::zero_rest(uint64_t offset, uint64_t length, ZeroOptions options) {
  const uint64_t there = offset < below().size() ? below().size() - offset : 0;
  if (there != 0) co_await below().zero(offset, std::min(there, length), options);
}

Task<void> WholeSectors::discard_rest(uint64_t offset, uint64_t length, DiscardOptions options) {
  const uint64_t there = offset < below().size() ? below().size() - offset : 0;
  if (there != 0) co_await below().discard(offset, std::min(there, length), options);
}

Task<Extent> WholeSectors::status(uint64_t offset, uint64_t length) {
  const uint64_t end = below().size();
  if (offset >= end && offset + length <= size()) {
    // A raw file goes on one to one, as qemu-img has it.
    Extent rest = co_await below().status(end - 1, 1);
    if (rest.host_offset == end - 1) {
      rest.host_offset = offset;
    } else {
      rest.host_offset.reset();
    }
    rest.length = length;
    rest.data = rest.compressed = false;
    rest.zero = rest.allocated = true;
    rest.depth = 0;
    co_return rest;
  }
  const uint64_t own = offset + length <= size() ? std::min(length, end - offset) : length;
  co_return co_await below().status(offset, own);
}

}  // namespace byre
