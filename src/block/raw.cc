// SPDX-License-Identifier: Apache-2.0
#include "block/raw.h"

#include <algorithm>
#include <limits>

#include "base/checked.h"

namespace byre {

uint32_t RawDevice::preferred_size() const {
  return std::max<uint32_t>(4096, file_->properties().block_size);
}

Capabilities RawDevice::capabilities() const {
  return {.zeroes_fast = file_->properties().can_zero,
          .fua = true,
          .discard_granularity = preferred_size()};
}

/// A request that may not grow the file keeps within it.
Result<void> RawDevice::check(std::string_view what, uint64_t offset, uint64_t length) const {
  const uint64_t end = growable_ ? std::numeric_limits<int64_t>::max() : size();
  if (!within(offset, length, end)) return out_of_range(what, offset, length);
  return {};
}

Task<void> RawDevice::read(uint64_t offset, MutableBytes data, ReadOptions) {
  if (!within(offset, data.size(), size())) {
    co_await fail(out_of_range("read", offset, data.size()));
  }
  co_await file_->read(offset, data);
}

Task<void> RawDevice::write(uint64_t offset, Bytes data, WriteOptions options) {
  if (options.compressed) co_await fail(no_compression());
  co_await check("write", offset, data.size());
  co_await file_->write(offset, data, options.fua);
  wrote(offset + data.size());
}

Task<void> RawDevice::read_pieces(uint64_t offset, IoVec pieces, ReadOptions) {
  const uint64_t size_of_all = size_of(pieces);
  if (!within(offset, size_of_all, size())) {
    co_await fail(out_of_range("read", offset, size_of_all));
  }
  co_await file_->read_pieces(offset, pieces);
}

Task<void> RawDevice::write_pieces(uint64_t offset, IoVec pieces, WriteOptions options) {
  if (options.compressed) co_await fail(no_compression());
  co_await check("write", offset, size_of(pieces));
  co_await file_->write_pieces(offset, pieces, options.fua);
  wrote(offset + size_of(pieces));
}

Task<void> RawDevice::zero(uint64_t offset, uint64_t length, ZeroOptions options) {
  co_await check("zero", offset, length);
  bool punched = false;
  if (options.may_unmap && offset + length <= size()) {
    Result<void> result = co_await file_->punch(offset, length).result();
    punched = result.has_value();
    if (!result && result.error().code() != Errc::unsupported) {
      co_await fail(std::move(result).error());
    }
  }
  if (!punched) co_await file_->zero(offset, length, !options.no_fallback);
  wrote(offset + length);
  if (options.fua) co_await file_->sync();
}

Task<void> RawDevice::discard(uint64_t offset, uint64_t length, DiscardOptions options) {
  if (!within(offset, length, size())) co_await fail(out_of_range("discard", offset, length));
  Result<void> punched = co_await file_->punch(offset, length).result();
  if (punched) {
    ++counts_.discards;
    counts_.bytes_discarded += length;
  } else {
    ++counts_.discards_failed;
  }
  // Advisory: where holes cannot be made the bytes stay.
  if (!punched && punched.error().code() != Errc::unsupported) {
    co_await fail(std::move(punched).error());
  }
  if (options.fua) co_await file_->sync();
}

Task<void> RawDevice::flush(IoTag) { return file_->sync(); }

Task<Extent> RawDevice::status(uint64_t offset, uint64_t length) {
  if (!within(offset, length, size())) co_return out_of_range("status", offset, length);
  const File::Extent extent = co_await file_->extent(offset, length);
  co_return Extent{.length = extent.length,
                   .data = extent.data,
                   .zero = !extent.data,
                   .host_offset = offset,
                   .file = name()};
}

Task<void> RawDevice::allocate(uint64_t offset, uint64_t length) {
  return file_->allocate(offset, length);
}

Task<void> RawDevice::resize(uint64_t size) { return file_->truncate(size); }

Task<void> RawDevice::reopen(bool writable) {
  co_await file_->reopen(writable);
  growable_ = writable && !file_->properties().block_device;
}

Task<void> RawDevice::close() {
  if (writable() && !file_->latched()) co_await file_->sync();
}

}  // namespace byre
