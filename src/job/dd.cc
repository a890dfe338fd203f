// SPDX-License-Identifier: Apache-2.0
#include "job/dd.h"

#include <algorithm>

#include "base/checked.h"

namespace byre {

DiskPart part_of(uint64_t disk_size, const BlockRange& range) {
  const auto bytes_of = [&](uint64_t blocks) {
    return checked_multiply(blocks, range.block_size).value_or(UINT64_MAX);
  };
  const uint64_t skip = bytes_of(range.skip);
  const uint64_t count = range.count ? bytes_of(*range.count) : UINT64_MAX;
  const uint64_t end = range.count_from_start ? std::min(disk_size, count) : disk_size;
  if (skip > end) return {.offset = end, .length = 0, .skips_all = true};
  const uint64_t length = range.count_from_start ? end - skip : std::min(end - skip, count);
  return {.offset = skip, .length = length};
}

}  // namespace byre
