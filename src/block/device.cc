// SPDX-License-Identifier: Apache-2.0
#include "block/device.h"

namespace byre {

std::string_view name_of(Mark mark) {
  switch (mark) {
    case Mark::none:
      return "none";
    case Mark::read_guest:
      return "read_guest";
    case Mark::read_backing:
      return "read_backing";
    case Mark::read_compressed:
      return "read_compressed";
    case Mark::write_guest:
      return "write_guest";
    case Mark::write_compressed:
      return "write_compressed";
    case Mark::vm_state_read:
      return "vm_state_read";
    case Mark::vm_state_write:
      return "vm_state_write";
    case Mark::copy_up_read:
      return "copy_up_read";
    case Mark::copy_up_write:
      return "copy_up_write";
    case Mark::header_read:
      return "header_read";
    case Mark::header_update:
      return "header_update";
    case Mark::l1_load:
      return "l1_load";
    case Mark::l1_update:
      return "l1_update";
    case Mark::l1_grow:
      return "l1_grow";
    case Mark::l1_shrink:
      return "l1_shrink";
    case Mark::l1_shrink_load:
      return "l1_shrink_load";
    case Mark::l2_load:
      return "l2_load";
    case Mark::l2_update:
      return "l2_update";
    case Mark::l2_allocate:
      return "l2_allocate";
    case Mark::refcount_load:
      return "refcount_load";
    case Mark::refcount_update:
      return "refcount_update";
    case Mark::refcount_allocate:
      return "refcount_allocate";
    case Mark::refcount_table_load:
      return "refcount_table_load";
    case Mark::refcount_table_update:
      return "refcount_table_update";
    case Mark::refcount_table_grow:
      return "refcount_table_grow";
    case Mark::snapshot_load:
      return "snapshot_load";
    case Mark::snapshot_update:
      return "snapshot_update";
    case Mark::bitmap_load:
      return "bitmap_load";
    case Mark::bitmap_update:
      return "bitmap_update";
    case Mark::flush:
      return "flush";
    case Mark::commit_sync:
      return "commit_sync";
    case Mark::cluster_punch:
      return "cluster_punch";
  }
  return "unknown";
}

Task<void> Device::allocate(uint64_t, uint64_t) { co_return; }

Task<void> Device::resize(uint64_t) {
  co_await fail(
      unsupported("resize ", quoted(name()), ": this kind of disk cannot change its size"));
}

Error Device::out_of_range(std::string_view what, uint64_t offset, uint64_t length) const {
  return invalid(what, " of ", length, " bytes at ", hex(offset), " passes the end of ",
                 quoted(name()), " at ", hex(size()));
}

Error Device::no_compression() const {
  return unsupported(quoted(name()), " cannot store compressed data");
}

}  // namespace byre
