// SPDX-License-Identifier: Apache-2.0
#include "block/preallocate.h"

#include <algorithm>
#include <utility>

#include "base/checked.h"

namespace byre {

Result<void> check_preallocate(const PreallocateOptions& options) {
  if (options.prealloc_align == 0 || options.prealloc_align % kSectorSize != 0) {
    return invalid("preallocate: prealloc-align=", options.prealloc_align,
                   ": it is a multiple of 512, and at least that");
  }
  constexpr uint64_t kMax = uint64_t{1} << 62;
  if (options.prealloc_align > kMax || options.prealloc_size > kMax)
    return invalid("preallocate: prealloc-align and prealloc-size are at most 2^62");
  return {};
}

Preallocate::Preallocate(Child below, PreallocateOptions options)
    : Filter(std::move(below)),
      options_(options),
      written_(Filter::below().size()),
      mutex_(reactor().ready()) {
  BYRE_ASSERT(bool(check_preallocate(options)));
}

Result<void> Preallocate::check_inside(std::string_view what, uint64_t offset,
                                       uint64_t length) const {
  if (!within(offset, length, written_)) return out_of_range(what, offset, length);
  return {};
}

/// Makes room for a request that ends at `end`, if it passes the end of the file.
Task<void> Preallocate::extend(uint64_t end) {
  if (end <= below().size() || !below().can_grow() || !below().new_space_is_zero()) co_return;
  const Mutex::Hold hold = co_await mutex_.lock();
  const uint64_t old = below().size();
  if (end <= old) co_return;
  const auto ahead = checked_add(end, options_.prealloc_size);
  if (!ahead || *ahead > INT64_MAX - options_.prealloc_align) co_return;
  const uint64_t target = round_up(*ahead, options_.prealloc_align);
  // Without success the request tries by itself, with what it needs alone.
  const Result<void> allocated = co_await below().allocate(old, target - old).result();
  if (allocated && below().size() < target) (void)co_await below().resize(target).result();
  extended_ |= below().size() > old;
}

/// One that failed may have left some of its bytes.
void Preallocate::wrote(uint64_t end, const Result<void>& result) {
  if (result) {
    written_ = std::max(written_, end);
  } else if (end > written_) {
    leftovers_ = true;
  }
}

Task<void> Preallocate::read(uint64_t offset, MutableBytes data, ReadOptions options) {
  co_await check_inside("read", offset, data.size());
  co_await below().read(offset, data, options);
}

Task<void> Preallocate::write(uint64_t offset, Bytes data, WriteOptions options) {
  if (!within(offset, data.size(), INT64_MAX))
    co_await fail(out_of_range("write", offset, data.size()));
  if (!data.empty()) co_await extend(offset + data.size());
  Result<void> written = co_await below().write(offset, data, options).result();
  if (!data.empty()) wrote(offset + data.size(), written);
  co_await std::move(written);
}

Task<void> Preallocate::zero(uint64_t offset, uint64_t length, ZeroOptions options) {
  if (!within(offset, length, INT64_MAX)) co_await fail(out_of_range("zero", offset, length));
  if (length != 0) co_await extend(offset + length);
  Result<void> zeroed = co_await below().zero(offset, length, options).result();
  if (length != 0) wrote(offset + length, zeroed);
  co_await std::move(zeroed);
}

Task<void> Preallocate::discard(uint64_t offset, uint64_t length, DiscardOptions options) {
  co_await check_inside("discard", offset, length);
  co_await below().discard(offset, length, options);
}

Task<Extent> Preallocate::status(uint64_t offset, uint64_t length) {
  co_await check_inside("status", offset, length);
  co_return co_await below().status(offset, length);
}

Task<void> Preallocate::allocate(uint64_t offset, uint64_t length) {
  if (!within(offset, length, INT64_MAX)) co_await fail(out_of_range("allocate", offset, length));
  if (length != 0) co_await extend(offset + length);
  co_await below().allocate(offset, length);
  if (length != 0 && offset + length <= below().size()) wrote(offset + length, {});
}

Task<void> Preallocate::resize(uint64_t size) {
  const Mutex::Hold hold = co_await mutex_.lock();
  if (leftovers_ && size > written_) {
    co_await below().resize(written_);
    leftovers_ = false;
  }
  // Larger, up to the end of the file: that reads as zeros already.
  if (size < written_ || size > below().size()) co_await below().resize(size);
  written_ = size;
}

/// Once, whatever becomes of it: later the rest may be somebody else's.
Task<void> Preallocate::cut_rest() {
  if (!std::exchange(extended_, false) || below().size() <= written_) co_return;
  co_await below().resize(written_).doing("preallocate: cut what was not used off ",
                                          quoted(name()));
}

BYRE_CORO_WRAPPER Task<void> Preallocate::settle() { return cut_rest(); }

Task<void> Preallocate::close() {
  Result<void> cut = co_await cut_rest().result();
  co_await Filter::close();
  co_await std::move(cut);
}

}  // namespace byre
