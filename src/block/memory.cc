// SPDX-License-Identifier: Apache-2.0
#include "block/memory.h"

#include <algorithm>

#include "base/checked.h"
#include "base/units.h"

namespace byre {
namespace {

constexpr uint64_t kSizeMax = INT64_MAX;

}  // namespace

MemoryDevice::MemoryDevice(Reactor& reactor, Bytes bytes, std::string name)
    : MemoryDevice(reactor, bytes.size(), std::move(name)) {
  poke(0, bytes);
}

Task<void> MemoryDevice::read(uint64_t offset, MutableBytes data, ReadOptions) {
  co_await check_inside("read", offset, data.size());
  peek(offset, data);
}

Task<void> MemoryDevice::write(uint64_t offset, Bytes data, WriteOptions options) {
  if (options.compressed) co_await fail(no_compression());
  co_await grow("write", offset, data.size());
  poke(offset, data);
}

Task<void> MemoryDevice::zero(uint64_t offset, uint64_t length, ZeroOptions) {
  co_await grow("zero", offset, length);
  clear(offset, length);
}

Task<void> MemoryDevice::discard(uint64_t offset, uint64_t length, DiscardOptions) {
  co_await check_inside("discard", offset, length);
  clear(offset, length);
}

Task<void> MemoryDevice::flush(IoTag) { co_return; }

Task<Extent> MemoryDevice::status(uint64_t offset, uint64_t length) {
  co_await check_inside("status", offset, length);
  const auto here = [&](uint64_t at) { return pages_.contains(at / kPage); };
  const bool data = here(offset);
  uint64_t end = offset;
  // A hole may be huge: what is behind a few pages is told by the next call.
  for (int page = 0; page < 64 && end < offset + length && here(end) == data; ++page) {
    end = std::min(round_down(end, kPage) + kPage, offset + length);
  }
  co_return Extent{
      .length = end - offset, .data = data, .zero = !data, .host_offset = offset, .file = name_};
}

Task<void> MemoryDevice::resize(uint64_t size) {
  if (fixed) co_await Device::resize(size);
  if (size > kSizeMax) co_await fail(out_of_range("resize", 0, size));
  if (size < size_) clear(size, size_ - size);
  size_ = size;
}

Task<void> MemoryDevice::close() { co_return; }

void MemoryDevice::peek(uint64_t offset, MutableBytes data) const {
  while (!data.empty()) {
    const uint64_t inside = offset % kPage;
    const uint64_t n = std::min<uint64_t>(kPage - inside, data.size());
    if (const auto page = pages_.find(offset / kPage); page != pages_.end()) {
      copy(data.first(n), Bytes(*page->second).subspan(inside, n));
    } else {
      fill_zero(data.first(n));
    }
    offset += n;
    data = data.subspan(n);
  }
}

void MemoryDevice::poke(uint64_t offset, Bytes data) {
  size_ = std::max(size_, offset + data.size());
  while (!data.empty()) {
    const uint64_t inside = offset % kPage;
    const uint64_t n = std::min<uint64_t>(kPage - inside, data.size());
    if (pages_.contains(offset / kPage) || !is_zero(data.first(n))) {
      std::unique_ptr<Page>& page = pages_[offset / kPage];
      if (!page) page = std::make_unique<Page>();
      copy(MutableBytes(*page).subspan(inside, n), data.first(n));
    }
    offset += n;
    data = data.subspan(n);
  }
}

std::vector<std::byte> MemoryDevice::bytes() const {
  std::vector<std::byte> all(size_);
  peek(0, all);
  return all;
}

Result<void> MemoryDevice::check_inside(std::string_view what, uint64_t offset,
                                        uint64_t length) const {
  if (!within(offset, length, size_)) return out_of_range(what, offset, length);
  return {};
}

Result<void> MemoryDevice::grow(std::string_view what, uint64_t offset, uint64_t length) {
  if (!within(offset, length, fixed ? size_ : kSizeMax)) {
    return out_of_range(what, offset, length);
  }
  size_ = std::max(size_, offset + length);
  return {};
}

void MemoryDevice::clear(uint64_t offset, uint64_t length) {
  const uint64_t end = offset + length;
  const auto clear_in = [&](uint64_t index, Page& page) {
    const uint64_t from = std::max(offset, index * kPage) - index * kPage;
    const uint64_t to = std::min(end, (index + 1) * kPage) - index * kPage;
    fill_zero(MutableBytes(page).subspan(from, to - from));
  };
  std::erase_if(pages_, [&](auto& entry) {
    const uint64_t first = entry.first * kPage;
    if (first + kPage <= offset || first >= end) return false;
    if (offset <= first && first + kPage <= end) return true;
    clear_in(entry.first, *entry.second);
    return false;
  });
}

}  // namespace byre
