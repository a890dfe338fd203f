// SPDX-License-Identifier: Apache-2.0
/// dd: which part of a disk `bs`, `count` and `skip` mean.
///
/// The part is copied by Convert (convert.h) over a Slice (block/slice.h).
/// Not here: copying, words.
#pragma once

#include <cstdint>
#include <optional>

namespace byre {

struct BlockRange {
  uint64_t block_size = 512;
  std::optional<uint64_t> count;  ///< In blocks; none: to the end.
  uint64_t skip = 0;              ///< In blocks.
  /// The count begins at the start of the disk and not behind what is skipped, as qemu-img has it.
  bool count_from_start = false;
};

struct DiskPart {
  uint64_t offset = 0;
  uint64_t length = 0;
  bool skips_all = false;  ///< Even the first byte that was meant lies behind the end.
};

/// The part of a disk of that size.
DiskPart part_of(uint64_t disk_size, const BlockRange& range);

}  // namespace byre
