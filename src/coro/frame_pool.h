// SPDX-License-Identifier: Apache-2.0
/// Memory for coroutine frames: freed frames are kept by size and handed out again, so that a
/// request allocates nothing once the paths it takes are warm.
///
/// One pool a thread; a frame may be freed on another thread and then belongs to that one's pool.
/// Bounded: a frame that would make a class keep more than 1 MiB goes back to the heap.  Sanitizer
/// builds do not pool, so that use after free is seen.
#pragma once

#include <cstddef>

namespace byre {

void* allocate_frame(size_t size);
void free_frame(void* frame, size_t size) noexcept;

}  // namespace byre
