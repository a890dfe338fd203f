// SPDX-License-Identifier: Apache-2.0
#include "block/device.h"

#include "io/buffer.h"

namespace byre {

std::string_view name_of(IoTag tag) {
  switch (tag) {
    case IoTag::none:
      return "none";
    case IoTag::read_guest:
      return "read_guest";
    case IoTag::read_backing:
      return "read_backing";
    case IoTag::read_compressed:
      return "read_compressed";
    case IoTag::write_guest:
      return "write_guest";
    case IoTag::write_compressed:
      return "write_compressed";
    case IoTag::vm_state_read:
      return "vm_state_read";
    case IoTag::vm_state_write:
      return "vm_state_write";
    case IoTag::copy_up_read:
      return "copy_up_read";
    case IoTag::copy_up_write:
      return "copy_up_write";
    case IoTag::header_read:
      return "header_read";
    case IoTag::header_update:
      return "header_update";
    case IoTag::l1_load:
      return "l1_load";
    case IoTag::l1_update:
      return "l1_update";
    case IoTag::l1_grow:
      return "l1_grow";
    case IoTag::l1_shrink:
      return "l1_shrink";
    case IoTag::l1_shrink_load:
      return "l1_shrink_load";
    case IoTag::l2_load:
      return "l2_load";
    case IoTag::l2_update:
      return "l2_update";
    case IoTag::l2_allocate:
      return "l2_allocate";
    case IoTag::refcount_load:
      return "refcount_load";
    case IoTag::refcount_update:
      return "refcount_update";
    case IoTag::refcount_allocate:
      return "refcount_allocate";
    case IoTag::refcount_table_load:
      return "refcount_table_load";
    case IoTag::refcount_table_update:
      return "refcount_table_update";
    case IoTag::refcount_table_grow:
      return "refcount_table_grow";
    case IoTag::snapshot_load:
      return "snapshot_load";
    case IoTag::snapshot_update:
      return "snapshot_update";
    case IoTag::bitmap_load:
      return "bitmap_load";
    case IoTag::bitmap_update:
      return "bitmap_update";
    case IoTag::flush:
      return "flush";
    case IoTag::commit_sync:
      return "commit_sync";
    case IoTag::cluster_punch:
      return "cluster_punch";
    case IoTag::copy_on_read:
      return "copy_on_read";
  }
  return "unknown";
}

Task<void> Device::read_pieces(uint64_t offset, IoVec pieces, ReadOptions options) {
  if (pieces.size() == 1) {
    co_await read(offset, memory_of(pieces.front()), options);
    co_return;
  }
  const uint64_t size = size_of(pieces);
  const Buffer buffer(size);
  co_await read(offset, buffer.bytes().first(size), options);
  scatter(buffer.bytes().first(size), pieces);
}

Task<void> Device::write_pieces(uint64_t offset, IoVec pieces, WriteOptions options) {
  if (pieces.size() == 1) {
    co_await write(offset, memory_of(pieces.front()), options);
    co_return;
  }
  const uint64_t size = size_of(pieces);
  const Buffer buffer(size);
  gather(pieces, 0, buffer.bytes().first(size));
  co_await write(offset, buffer.bytes().first(size), options);
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
