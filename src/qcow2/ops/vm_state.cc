// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/vm_state.h"

#include "base/checked.h"
#include "qcow2/core/shape_change.h"
#include "qcow2/guest/guest_disk.h"
#include "qcow2/guest/read.h"
#include "qcow2/guest/write.h"
#include "qcow2/ops/resize.h"

namespace byre {

static Result<GuestOffset> vm_state_range(const GuestDisk& disk, uint64_t offset, uint64_t length);

uint64_t vm_state_offset(const GuestDisk& disk) {
  return disk.geometry().l1_entries_for(disk.size) * disk.geometry().l1_span();
}

/// Where the range begins in the guest's address space.  The caller keeps the size as it is.
Result<GuestOffset> vm_state_range(const GuestDisk& disk, uint64_t offset, uint64_t length) {
  const auto at = checked_add(vm_state_offset(disk), offset);
  if (!at || !within(*at, length, disk.geometry().size_max())) {
    return invalid("VM state at ", hex(offset), " of ", length,
                   " bytes: an image with clusters of ", disk.cluster_size(), " bytes ends before");
  }
  return GuestOffset{*at};
}

Task<void> read_vm_state(GuestDisk& disk, uint64_t offset, MutableBytes data) {
  const Request request(disk);
  co_await request.begin();
  KeepSize keep_size(disk);
  co_await keep_size;
  const GuestOffset at = co_await vm_state_range(disk, offset, data.size());
  co_await read_pinned(disk, at, data, IoTag::vm_state_read);
}

Task<void> write_vm_state(GuestDisk& disk, uint64_t offset, Bytes data) {
  const Request request(disk);
  co_await request.begin();
  if (disk.data) co_await fail(unsupported("VM state in an image with an external data file"));
  ShapeChange change(disk);  // The L1 table may grow.
  co_await change.begin();
  KeepSize keep_size(disk);
  co_await keep_size;
  co_await disk.check_can_write();
  if (data.empty()) co_return;
  const GuestOffset at = co_await vm_state_range(disk, offset, data.size());
  const Geometry& g = disk.geometry();
  const uint64_t entries = g.l1_index(g.cluster_of(at + (data.size() - 1))) + 1;
  if (entries > disk.map->l1().size())
    co_await grow_l1(disk, change, entries).doing("grow the L1 table");
  (void)co_await write_checked(disk, keep_size, at, data, false);
}

}  // namespace byre
