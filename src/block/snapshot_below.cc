// SPDX-License-Identifier: Apache-2.0
#include "block/snapshot_below.h"

#include <algorithm>
#include <utility>

#include "block/copy_before_write.h"
#include "block/slice.h"

namespace byre {

namespace {

/// The disk itself, below all filters that show what is below them.
const Device& without_filters(const Device& device) {
  const Device* at = &device;
  for (;;) {
    if (const auto* here = dynamic_cast<const SnapshotBelow*>(at)) {
      at = here->disk().get();
      continue;
    }
    const auto down = std::ranges::find(at->children(), Role::filtered, &Child::role);
    if (down == at->children().end() || dynamic_cast<const Slice*>(at)) return *at;
    at = (*down)->get();
  }
}

/// Does anybody but the owner of `edge` use what it leads to?
bool is_used_by_others(const Child& edge) {
  return std::ranges::any_of(edge.node().parents(), [&](const Child* other) {
    return other != &edge && other->role() != Role::name;
  });
}

}  // namespace

Child* SnapshotBelow::edge_that_shows(Device& target, const Device& disk) {
  const Device& wanted = without_filters(disk);
  for (Device* at = &target; at;) {
    Child* down = nullptr;
    for (Child* edge : at->children()) {
      if (edge->role() == Role::filtered || edge->role() == Role::backing) down = edge;
    }
    if (!down || dynamic_cast<const Slice*>(at)) return nullptr;
    if (down->role() == Role::backing) {
      if (!down->permissions().uses.read) return nullptr;
      if (&without_filters(**down) == &wanted) return down;
      if (is_used_by_others(*down)) return nullptr;
    }
    at = down->get();
  }
  return nullptr;
}

Device& SnapshotBelow::stands_for(Device& device) {
  const auto* const here = dynamic_cast<const SnapshotBelow*>(&device);
  return here ? *here->disk_ : device;
}

SnapshotBelow::SnapshotBelow(Child disk, CopyBeforeWrite& filter)
    : disk_(std::move(disk)),
      size_(filter.snapshot_size()),
      filter_(&filter),
      idle_(disk_->reactor().ready()) {
  disk_.belong_to(*this, Role::other);
}

class SnapshotBelow::Reading {
 public:
  explicit Reading(SnapshotBelow& of) : of_(of), filter(*of.filter_) { ++of_.readings_; }
  Reading(const Reading&) = delete;
  ~Reading() {
    if (--of_.readings_ == 0) of_.idle_.notify();
  }

 private:
  SnapshotBelow& of_;

 public:
  CopyBeforeWrite& filter;
};

Error SnapshotBelow::ended() const {
  return Error(Errc::denied, cat("the backup of ", quoted(name()),
                                 " has ended: what it held then is no longer kept"));
}

Task<void> SnapshotBelow::end() {
  filter_ = nullptr;
  while (readings_ != 0) co_await idle_.wait();
}

Task<void> SnapshotBelow::read(uint64_t offset, MutableBytes data, ReadOptions options) {
  if (!filter_) co_await fail(ended());
  const Reading reading(*this);
  co_await reading.filter.read_snapshot(offset, data, options.tag);
}

Task<Extent> SnapshotBelow::status(uint64_t offset, uint64_t length) {
  if (!filter_) co_return ended();
  const Reading reading(*this);
  co_return co_await reading.filter.snapshot_status(offset, length);
}

namespace {
Error unchangeable() { return unsupported("what a backup shows of a disk cannot be changed"); }
}  // namespace

Task<void> SnapshotBelow::write(uint64_t, Bytes, WriteOptions) { co_await fail(unchangeable()); }
Task<void> SnapshotBelow::zero(uint64_t, uint64_t, ZeroOptions) { co_await fail(unchangeable()); }
Task<void> SnapshotBelow::discard(uint64_t, uint64_t, DiscardOptions) {
  co_await fail(unchangeable());
}
BYRE_CORO_WRAPPER Task<void> SnapshotBelow::flush(IoTag tag) { return disk_->flush(tag); }

}  // namespace byre
