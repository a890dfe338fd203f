// SPDX-License-Identifier: Apache-2.0
/// How every change of the disk by a guest begins.
///
///     ChangeRequest request(disk, "write", at, length);
///     co_await request.begin();               // admitted, the size kept, may write, in range
///     ExclusiveRange range(disk.clusters, first, end);
///     co_await begin_change(disk, range, at, length);      // room to stage, lock, bitmaps
/// What follows is up to the request: look up under a pin, reserve, write, publish.
/// The order is that of docs/engine.md, L5; bitmaps record a change under its lock and before its
/// I/O (B).
/// Invariant: what begin() has admitted lies within the disk, and the disk's size stays until
/// release_size() or the request's end.
/// Cost: where nobody waits, no coroutine.
/// Not here: the changes themselves (write.h, zero.h, compress.h), the locks (guards.h).
#pragma once

#include <string_view>

#include "base/checked.h"
#include "coro/fast_path.h"
#include "qcow2/core/guards.h"
#include "qcow2/core/shape_change.h"
#include "qcow2/guest/guest_disk.h"

namespace byre {

/// A request that changes [offset, offset + length) of the disk, from its admission to its end.
class ChangeRequest {
 public:
  ChangeRequest(GuestDisk& disk, std::string_view what, GuestOffset offset, uint64_t length)
      : disk_(disk), what_(what), offset_(offset), length_(length), request_(disk), size_(disk) {}
  ChangeRequest(const ChangeRequest&) = delete;

  struct Begin {
    ChangeRequest& request;
    bool try_now() { return request.try_begin(); }
    BYRE_CORO_WRAPPER Task<void> wait() { return request.wait(); }
  };
  FastPath<Begin> begin() { return FastPath<Begin>(Begin{*this}); }
  SizeKept size() const { return size_; }
  /// What follows does not depend on where the disk ends.
  void release_size() { size_.release(); }

 private:
  bool try_begin() {
    return !disk_.closing && size_.try_lock() && disk_.check_can_write() && in_range();
  }
  Task<void> wait() {
    co_await request_.begin();
    if (!size_.held()) co_await size_;
    // Not sooner: what was waited for may have been a change that failed (M4).
    co_await disk_.check_can_write();
    if (!in_range()) co_await fail(disk_.out_of_range(what_, offset_.value, length_));
  }
  bool in_range() const { return within(offset_.value, length_, disk_.size); }

  GuestDisk& disk_;
  std::string_view what_;
  GuestOffset offset_;
  uint64_t length_;
  Request request_;
  KeepSize size_;
};

namespace detail {

/// Of no bytes: nothing changes that the guest can see.
struct RecordStep {
  GuestDisk& disk;
  GuestOffset offset;
  uint64_t length;
  bool try_now() {
    if (length == 0) return bool(disk.check_can_write());
    return disk.bitmaps->try_set_dirty(offset.value, length);
  }
  Task<void> wait() {
    if (length == 0) co_return co_await disk.check_can_write();
    co_await disk.bitmaps->set_dirty(offset.value, length);
  }
};

/// The lock, and before it room to stage, if `stages`.
struct LockStep {
  GuestDisk& disk;
  RangeLock::Request& range;
  bool stages;
  bool try_now() {
    return (stages ? disk.can_stage_now() : disk.references.is_open()) && range.try_lock();
  }
  Task<void> wait() {
    if (stages) co_await disk.throttle_staging();
    if (needs_references()) co_await disk.references.wait();
    co_await range;
  }
  /// A bitmap that records may need a cluster for it (V).
  bool needs_references() const { return !disk.references.decided() && disk.bitmaps->tracking(); }
};

struct LockAndRecordStep {
  LockStep lock;
  RecordStep record;
  bool try_now() { return lock.try_now() && record.try_now(); }
  Task<void> wait() {
    const bool recorded_in_vain = lock.range.held();
    if (!recorded_in_vain) co_await lock.wait();
    if (recorded_in_vain || !record.try_now()) co_await record.wait();
  }
};

}  // namespace detail

/// What `cluster` is, for a request that will give it new contents: when that is all of it, a part
/// of the disk that was lost (V) counts as unallocated.  Awaits table loads only.
Task<Mapping> find_old(GuestDisk& disk, GuestCluster cluster, bool whole);

/// The bitmaps record that [offset, offset + length) changes; `range` covers it.
inline FastPath<detail::RecordStep> record_change(GuestDisk& disk, const RangeLock::Request& range,
                                                  GuestOffset offset, uint64_t length) {
  BYRE_ASSERT(range.held());
  return FastPath(detail::RecordStep{disk, offset, length});
}
/// A change that stages nothing.
inline FastPath<detail::LockAndRecordStep> begin_change(GuestDisk& disk, SharedRange& range,
                                                        GuestOffset offset, uint64_t length) {
  return FastPath(detail::LockAndRecordStep{{disk, range, false}, {disk, offset, length}});
}
/// A change of mappings.
inline FastPath<detail::LockAndRecordStep> begin_change(GuestDisk& disk, ExclusiveRange& range,
                                                        GuestOffset offset, uint64_t length) {
  return FastPath(detail::LockAndRecordStep{{disk, range, true}, {disk, offset, length}});
}
/// Likewise, when it is not known yet what changes: record_change() follows.
inline FastPath<detail::LockStep> begin_change(GuestDisk& disk, ExclusiveRange& range) {
  return FastPath(detail::LockStep{disk, range, true});
}

}  // namespace byre
