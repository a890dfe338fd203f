// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/data_store.h"

#include <algorithm>
#include <vector>

#include "base/checked.h"

namespace byre {

namespace {
constexpr uint64_t kZerosAtOnce = 1 * MiB;
}  // namespace

Result<void> DataStore::check(HostOffset at, uint64_t length) const {
  if (external_ || length == 0) return {};
  const HostCluster first = geometry_.cluster_of(at);
  const HostCluster last = geometry_.cluster_of(at + (length - 1));
  if (const auto hit = metadata_.find_in({first, last - first + 1})) {
    return corrupt("guest data is mapped to ", geometry_.start_of(*hit),
                   ", which holds metadata; run check -r all");
  }
  return {};
}

// The hot path: no coroutine of its own where nothing is wrong, so that no frame is added.

namespace {
Task<void> refuse(Error error) { co_await fail(std::move(error)); }

Task<void> read_past_end(Device& from, HostOffset at, MutableBytes bytes, IoTag tag) {
  const uint64_t there =
      at.value < from.size() ? std::min<uint64_t>(bytes.size(), from.size() - at.value) : 0;
  if (there != 0) co_await from.read(at.value, bytes.first(there), tag);
  fill_zero(bytes.subspan(there));
}
}  // namespace

BYRE_CORO_WRAPPER Task<void> DataStore::read(HostAccess, HostOffset at, MutableBytes bytes,
                                             IoTag tag) {
  Device& from = device();
  if (within(at.value, bytes.size(), from.size())) return from.read(at.value, bytes, tag);
  return read_past_end(from, at, bytes, tag);
}

BYRE_CORO_WRAPPER Task<void> DataStore::write(HostAccess, HostOffset at, Bytes bytes, bool fua,
                                              IoTag tag) {
  if (Result<void> sound = check(at, bytes.size()); !sound) {
    return refuse(std::move(sound).error());
  }
  return device().write(at.value, bytes, {.fua = fua, .tag = tag});
}

Task<void> DataStore::write_zeros(HostAccess access, HostOffset at, uint64_t length, IoTag tag) {
  const std::vector<std::byte> zeros(std::min(length, kZerosAtOnce));
  while (length != 0) {
    const uint64_t step = std::min<uint64_t>(length, zeros.size());
    co_await write(access, at, Bytes(zeros).first(step), false, tag);
    at += step;
    length -= step;
  }
}

Task<void> DataStore::zero(HostAccess, HostOffset at, uint64_t length, ZeroOptions options) {
  co_await check(at, length);
  co_await device().zero(at.value, length, options);
}

Task<void> DataStore::allocate(HostAccess, HostOffset at, uint64_t length) {
  co_await check(at, length);
  co_await device().allocate(at.value, length);
}

Task<void> DataStore::discard(HostAccess, HostOffset at, uint64_t length) {
  co_await check(at, length);
  co_await device().discard(at.value, length, {});
}

}  // namespace byre
