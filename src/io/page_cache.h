// SPDX-License-Identifier: Apache-2.0
/// What the kernel keeps of a file in memory, and how a reader gets past it.
///
/// Cost: a call on a worker thread; the reads that follow come from the disk.
/// Not here: what was not yet written back, which stays: sync the file first (file.h).
#pragma once

#include "io/file.h"

namespace byre {

/// What is read from the file next comes from the disk, as far as it was synced.  A wish: the
/// kernel keeps what others have mapped, and a file system may have no disk (tmpfs).
Task<void> drop_page_cache(File& file);

}  // namespace byre
