// SPDX-License-Identifier: Apache-2.0
#include "block/snapshot_access.h"

#include <algorithm>

namespace byre {
namespace {

const CopyBeforeWrite* filter_at(const Device& device) {
  return dynamic_cast<const CopyBeforeWrite*>(&device);
}

Error unchangeable() { return unsupported("a snapshot cannot be changed"); }

}  // namespace

Result<void> SnapshotAccess::fits(const Device& below) {
  if (filter_at(below)) return {};
  return invalid("snapshot-access: ", quoted(below.name()),
                 " keeps no snapshot: put it directly over a copy-before-write node");
}

SnapshotAccess::SnapshotAccess(Child below)
    : below_(std::move(below)), filter_(dynamic_cast<CopyBeforeWrite&>(*below_)) {
  below_.belong_to(*this, Role::name);
}

uint32_t SnapshotAccess::alignment() const {
  return std::max(filter_.alignment(), filter_.target().alignment());
}
uint32_t SnapshotAccess::preferred_size() const {
  return static_cast<uint32_t>(std::min<uint64_t>(filter_.cluster_size(), UINT32_MAX / 2 + 1));
}

BYRE_CORO_WRAPPER Task<void> SnapshotAccess::read(uint64_t offset, MutableBytes data,
                                                  ReadOptions options) {
  return filter_.read_snapshot(offset, data, options.tag);
}
Task<void> SnapshotAccess::write(uint64_t, Bytes, WriteOptions) { co_await fail(unchangeable()); }
Task<void> SnapshotAccess::zero(uint64_t, uint64_t, ZeroOptions) { co_await fail(unchangeable()); }
BYRE_CORO_WRAPPER Task<void> SnapshotAccess::discard(uint64_t offset, uint64_t length,
                                                     DiscardOptions) {
  return filter_.let_go(offset, length);
}
Task<void> SnapshotAccess::flush(IoTag) { co_return; }
Task<Extent> SnapshotAccess::status(uint64_t offset, uint64_t length) {
  Extent extent = co_await filter_.snapshot_status(offset, length);
  extent.allocated = true;
  extent.depth = 0;
  extent.compressed = false;
  co_return extent;
}
BYRE_CORO_WRAPPER Task<void> SnapshotAccess::close() { return below_.close(); }
void SnapshotAccess::abandon() { below_.abandon(); }

}  // namespace byre
