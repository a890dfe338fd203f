// SPDX-License-Identifier: Apache-2.0
#include "job/holes.h"

#include <algorithm>

namespace byre {

Task<void> look_for_holes(const Disk& disk, Extent& extent) {
  if (!disk.image || extent.depth != 0 || !extent.data || !extent.host_offset) co_return;
  Device& file = disk.image->data_file();
  const uint64_t at = *extent.host_offset;
  if (at >= file.size()) {
    extent.zero = true;
    co_return;
  }
  const uint64_t there = std::min(extent.length, file.size() - at);
  const Extent below = co_await file.status(at, there);
  extent.zero = below.zero;
  // What lies behind the end of the file is no other extent than the hole before it.
  if (!below.zero || below.length < there) extent.length = std::min(extent.length, below.length);
}

}  // namespace byre
