// SPDX-License-Identifier: Apache-2.0
/// The VM state: bytes that lie behind the disk, at the first L1 entry that the disk does not need.
///
/// A snapshot takes them along, since it shares the whole L1 table; applying one brings them back.
/// Nothing below an image has any, so what was never written reads as zeros. A write makes the L1
/// table longer where it must.  Growing or shrinking the disk gives the state up (resize.cc).
#include "base/checked.h"
#include "qcow2/image.h"
#include "qcow2/working.h"

namespace byre {

uint64_t Image::vm_state_offset() const {
  return geometry().l1_entries_for(size_) * geometry().l1_span();
}

/// Where the range begins in the guest's address space.  The caller keeps the size as it is.
Result<uint64_t> Image::vm_state_range(uint64_t offset, uint64_t length) const {
  const auto at = checked_add(vm_state_offset(), offset);
  if (!at || !within(*at, length, geometry().size_max())) {
    return invalid("VM state at ", hex(offset), " of ", length,
                   " bytes: an image with clusters of ", cluster_size(), " bytes ends before");
  }
  return *at;
}

Task<void> Image::read_vm_state(uint64_t offset, MutableBytes data) {
  const Working working(*this);
  co_await working.begin();
  RangeLock::Request keep_size(size_lock_, 0, 1, RangeLock::Mode::shared);
  co_await keep_size;
  const uint64_t at = co_await vm_state_range(offset, data.size());
  co_await read_pinned(at, data, Mark::vm_state_read);
}

Task<void> Image::write_vm_state(uint64_t offset, Bytes data) {
  const Working working(*this);
  co_await working.begin();
  if (data_) co_await fail(unsupported("VM state in an image with an external data file"));
  const Mutex::Hold hold = co_await resize_mutex_.lock();  // The L1 table may grow.
  RangeLock::Request keep_size(size_lock_, 0, 1, RangeLock::Mode::shared);
  co_await keep_size;
  co_await check_can_write();
  if (data.empty()) co_return;
  const uint64_t at = co_await vm_state_range(offset, data.size());
  const Geometry& g = geometry();
  const uint64_t entries = g.l1_index(g.cluster_of(GuestOffset{at + data.size() - 1})) + 1;
  if (entries > map_->l1().size()) co_await grow_l1(entries).doing("grow the L1 table");
  (void)co_await write_checked(at, data, false);
}

}  // namespace byre
