// SPDX-License-Identifier: Apache-2.0
#include "block/copy_on_read.h"

#include <algorithm>

#include "base/checked.h"
#include "base/units.h"
#include "io/buffer.h"

namespace byre {
namespace {

/// A copy is made in pieces of whole clusters of about this size.
constexpr uint64_t kCopyMax = 1 * MiB;

}  // namespace

Result<void> CopyOnRead::fits(const Device& below) {
  if (below.writable()) return {};
  return Error(Errc::read_only,
               cat("copy-on-read: ", quoted(below.name()), " is read-only: open it for writing"));
}

Result<uint32_t> CopyOnRead::depth_of(const Device& top, std::string_view node) {
  uint32_t depth = 0;
  for (const Device* at = &top; at;) {
    if (at->node() && at->node()->name() == node) {
      if (depth != 0) return depth;
      return invalid("Bottom node '", node, "' is the disk itself: name one that lies below it");
    }
    const Child* down = nullptr;
    for (const Child* edge : at->children()) {
      if (edge->role() == Role::filtered || edge->role() == Role::backing) down = edge;
    }
    if (down && down->role() == Role::backing) ++depth;
    at = down ? down->get() : nullptr;
  }
  return invalid("Bottom node '", node, "' not found");
}

Result<std::unique_ptr<CopyOnRead>> CopyOnRead::make(Child below, std::optional<uint32_t> bottom) {
  if (Result<void> refused = fits(*below); !refused) {
    below.abandon();
    return std::move(refused).error();
  }
  return std::unique_ptr<CopyOnRead>(new CopyOnRead(std::move(below), bottom));
}

CopyOnRead::CopyOnRead(Child below, std::optional<uint32_t> bottom)
    : Filter(std::move(below)),
      cluster_(std::max(Filter::below().preferred_size(), Filter::below().alignment())),
      bottom_(bottom),
      locks_(reactor().ready()) {}

/// Is it to be copied?
bool CopyOnRead::wants(const Extent& extent) const {
  if (extent.allocated || !bottom_) return !extent.allocated;
  return extent.depth != 0 && extent.depth <= *bottom_;  // 0: no layer has it.
}

RangeLock::Request CopyOnRead::lock(uint64_t offset, uint64_t length, RangeLock::Mode mode) {
  return {locks_, offset / cluster_, div_ceil(offset + length, cluster_), mode};
}

/// Where the first part of [offset, end) begins that is to be copied; `end` without one.
Task<uint64_t> CopyOnRead::unwanted_until(uint64_t offset, uint64_t end) {
  while (offset < end) {
    const Extent extent = co_await below().status(offset, end - offset);
    if (wants(extent)) break;
    offset += extent.length;
  }
  co_return offset;
}

Task<void> CopyOnRead::read(uint64_t offset, MutableBytes data, ReadOptions options) {
  ++guest_requests_;
  if (!within(offset, data.size(), below().size()))
    co_await fail(out_of_range("read", offset, data.size()));
  while (!data.empty()) {
    const uint64_t end = co_await unwanted_until(offset, offset + data.size());
    uint64_t done = end - offset;
    if (done != 0) {
      co_await below().read(offset, data.first(done), options);
    } else {
      // Up to the end of a cluster, so that the next piece begins with one.
      const uint64_t most = round_up(std::max(kCopyMax, cluster_), cluster_) - offset % cluster_;
      done = std::min<uint64_t>(data.size(), most);
      co_await copy_clusters(offset, data.first(done), options.tag);
    }
    offset += done;
    data = data.subspan(done);
  }
}

/// Reads `data`, and copies what its clusters lack.
Task<void> CopyOnRead::copy_clusters(uint64_t offset, MutableBytes data, IoTag tag) {
  RangeLock::Request held = lock(offset, data.size(), RangeLock::Mode::exclusive);
  co_await held;
  const uint64_t wanted_end = offset + data.size();
  const uint64_t end = std::min(round_up(wanted_end, cluster_), below().size());
  for (uint64_t at = round_down(offset, cluster_); at < end;) {
    Extent extent = co_await below().status(at, end - at);
    const uint64_t from = std::clamp(at, offset, wanted_end);
    const uint64_t to = std::clamp(at + extent.length, offset, wanted_end);
    const MutableBytes wanted = data.subspan(from - offset, to - from);
    if (wants(extent)) {
      co_await copy_extent(extent, at, tag, from, wanted);
    } else if (!wanted.empty()) {
      co_await below().read(from, wanted, tag);
    }
    at += extent.length;
  }
}

Task<void> CopyOnRead::fill(uint64_t offset, uint64_t length) {
  const uint64_t end = std::min(round_up(offset + length, cluster_), below().size());
  RangeLock::Request held = lock(offset, length, RangeLock::Mode::exclusive);
  co_await held;
  for (uint64_t at = round_down(offset, cluster_); at < end;) {
    Extent extent = co_await below().status(at, end - at);
    if (!extent.zero) extent.length = std::min(extent.length, std::max(kCopyMax, cluster_));
    if (wants(extent)) co_await copy_extent(extent, at, IoTag::read_backing, at, {});
    at += extent.length;
  }
}

Task<void> CopyOnRead::fill_with_zeros(uint64_t offset, uint64_t length) {
  const uint64_t end = std::min(offset + length, below().size());
  RangeLock::Request held = lock(offset, length, RangeLock::Mode::exclusive);
  co_await held;
  for (uint64_t at = offset; at < end;) {
    Extent extent = co_await below().status(at, end - at);
    if (!extent.allocated) {
      co_await below().zero(at, extent.length, {.may_unmap = true, .tag = IoTag::copy_on_read});
      // Where it read as zeros anyway nothing need have been stored.
      const Extent now = co_await below().status(at, extent.length);
      extent.length = std::min(now.length, std::max(kCopyMax, cluster_));
      if (!now.allocated) {
        Buffer zeros(extent.length);
        fill_zero(zeros.bytes());
        co_await below().write(at, zeros.bytes(), {.tag = IoTag::copy_on_read});
      }
    }
    at += extent.length;
  }
}

/// Writes the extent at `at` into the device, and gives the part of it that was asked for.
Task<void> CopyOnRead::copy_extent(const Extent& extent, uint64_t at, IoTag tag, uint64_t wanted_at,
                                   MutableBytes wanted) {
  if (extent.zero) {
    fill_zero(wanted);
    co_await below()
        .zero(at, extent.length, {.may_unmap = true, .tag = IoTag::copy_on_read})
        .doing("copy-on-read: write back ", extent.length, " zeros at ", hex(at));
  } else {
    const Buffer buffer(extent.length);
    co_await below().read(at, buffer.bytes(), tag);
    copy(wanted, buffer.bytes().subspan(wanted.empty() ? 0 : wanted_at - at, wanted.size()));
    co_await below()
        .write(at, buffer.bytes(), {.tag = IoTag::copy_on_read})
        .doing("copy-on-read: write back ", extent.length, " bytes at ", hex(at));
  }
  bytes_copied_ += extent.length;
}

Task<void> CopyOnRead::write(uint64_t offset, Bytes data, WriteOptions options) {
  ++guest_requests_;
  if (data.empty() || !within(offset, data.size(), INT64_MAX)) {
    co_await below().write(offset, data, options);
    co_return;
  }
  RangeLock::Request held = lock(offset, data.size(), RangeLock::Mode::shared);
  co_await held;
  co_await below().write(offset, data, options);
}

Task<void> CopyOnRead::zero(uint64_t offset, uint64_t length, ZeroOptions options) {
  ++guest_requests_;
  if (length == 0 || !within(offset, length, INT64_MAX)) {
    co_await below().zero(offset, length, options);
    co_return;
  }
  RangeLock::Request held = lock(offset, length, RangeLock::Mode::shared);
  co_await held;
  co_await below().zero(offset, length, options);
}

Task<void> CopyOnRead::discard(uint64_t offset, uint64_t length, DiscardOptions options) {
  ++guest_requests_;
  if (length == 0 || !within(offset, length, INT64_MAX)) {
    co_await below().discard(offset, length, options);
    co_return;
  }
  RangeLock::Request held = lock(offset, length, RangeLock::Mode::shared);
  co_await held;
  co_await below().discard(offset, length, options);
}

Task<void> CopyOnRead::resize(uint64_t size) {
  RangeLock::Request held(locks_, std::min(size, below().size()) / cluster_, UINT64_MAX,
                          RangeLock::Mode::exclusive);
  co_await held;
  co_await below().resize(size);
}

}  // namespace byre
