// SPDX-License-Identifier: Apache-2.0
#include "block/overlay.h"

#include <algorithm>
#include <vector>

#include "base/units.h"

namespace byre {

Task<void> OverlayDevice::read_below(uint64_t offset, MutableBytes data, IoTag tag) {
  const uint64_t there =
      offset < below_.size() ? std::min<uint64_t>(below_.size() - offset, data.size()) : 0;
  if (there != 0) co_await below_.read(offset, data.first(there), tag);
  fill_zero(data.subspan(there));
}

Task<void> OverlayDevice::read(uint64_t offset, MutableBytes data, ReadOptions options) {
  if (offset > size_ || data.size() > size_ - offset) {
    co_await fail(out_of_range("read", offset, data.size()));
  }
  co_await read_below(offset, data, options.tag);
  if (pages_.empty()) co_return;
  for (uint64_t at = offset; at < offset + data.size();) {
    const uint64_t count = std::min(kPage - at % kPage, offset + data.size() - at);
    if (const auto page = pages_.find(at / kPage); page != pages_.end()) {
      copy(data.subspan(at - offset, count), Bytes(page->second->bytes).subspan(at % kPage, count));
    }
    at += count;
  }
}

Task<void> OverlayDevice::write(uint64_t offset, Bytes data, WriteOptions) {
  if (offset > size_ || data.size() > size_ - offset) {
    if (!can_grow()) co_await fail(out_of_range("write", offset, data.size()));
    size_ = offset + data.size();
  }
  bytes_written_ += data.size();
  for (uint64_t at = offset; at < offset + data.size();) {
    const uint64_t count = std::min(kPage - at % kPage, offset + data.size() - at);
    std::unique_ptr<Page>& page = pages_[at / kPage];
    if (!page) {
      page = std::make_unique<Page>();
      co_await read_below(round_down(at, kPage), page->bytes, IoTag::none);
    }
    copy(MutableBytes(page->bytes).subspan(at % kPage), data.subspan(at - offset, count));
    at += count;
  }
}

Task<void> OverlayDevice::zero(uint64_t offset, uint64_t length, ZeroOptions) {
  const std::vector<std::byte> zeros(std::min<uint64_t>(length, MiB));
  for (uint64_t done = 0; done < length;) {
    const uint64_t count = std::min<uint64_t>(zeros.size(), length - done);
    co_await write(offset + done, Bytes(zeros).first(count), {});
    done += count;
  }
}

Task<void> OverlayDevice::discard(uint64_t, uint64_t, DiscardOptions) { co_return; }
Task<void> OverlayDevice::flush(IoTag) { co_return; }
Task<Extent> OverlayDevice::status(uint64_t, uint64_t length) {
  co_return Extent{.length = length};
}

Task<void> OverlayDevice::resize(uint64_t size) {
  if (size < size_) co_await fail(unsupported("an overlay does not become smaller"));
  size_ = size;
}

Task<void> OverlayDevice::close() { co_return; }

}  // namespace byre
