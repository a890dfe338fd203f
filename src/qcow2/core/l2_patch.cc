// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/l2_patch.h"

#include <algorithm>

namespace byre {

Task<L2Patch> L2Patch::load(Device& file, const Geometry& geometry, HostCluster table) {
  const HostOffset at = geometry.start_of(table);
  std::vector<std::byte> bytes(geometry.cluster_size());
  co_await file.read(at.value, bytes, IoTag::l2_load).doing("L2 table at ", at);
  co_return L2Patch(geometry, at, std::move(bytes));
}

void L2Patch::set(uint64_t index, L2Entry entry) {
  store_l2(bytes_, index, entry, *geometry_);
  low_ = std::min(low_, index * geometry_->l2_entry_size());
  high_ = std::max(high_, (index + 1) * geometry_->l2_entry_size());
}

Task<void> L2Patch::write(Device& file) const {
  if (!changed()) co_return;
  const uint64_t low = round_down(low_, kSectorSize);
  const uint64_t high = round_up(high_, kSectorSize);
  co_await file
      .write(at_.value + low, Bytes(bytes_).subspan(low, high - low), {.tag = IoTag::l2_update})
      .doing("L2 table at ", at_);
}

Task<void> L2Patch::write_copy(Device& file, HostCluster to) const {
  const HostOffset at = geometry_->start_of(to);
  co_await file.write(at.value, bytes_, {.tag = IoTag::l2_allocate}).doing("L2 table at ", at);
}

}  // namespace byre
