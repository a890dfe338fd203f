// SPDX-License-Identifier: Apache-2.0
/// copy_range(): bytes of one file into another without passing through this process
/// (copy_file_range): the kernel copies them, or a file system that can lets both files share them.
///
/// Invariant: true means that all of it is in `to`, as a write would have put it there; after false
/// any part of it may be, and the caller reads and writes.
/// Cost: a job of the worker pool.
/// Not here: where in the files a disk has its bytes; File::size() of `to`, which does not follow.
#pragma once

#include <cstdint>

#include "io/file.h"

namespace byre {

struct FileRange {
  File& file;
  uint64_t offset = 0;
};

Task<bool> copy_range(FileRange from, FileRange to, uint64_t length);

}  // namespace byre
