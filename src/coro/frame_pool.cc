// SPDX-License-Identifier: Apache-2.0
#include "coro/frame_pool.h"

#include <new>

namespace byre {

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer)
#define BYRE_POOL_OFF 1
#endif
#endif

#ifdef BYRE_POOL_OFF

void* allocate_frame(size_t size) { return ::operator new(size); }
void free_frame(void* frame, size_t) noexcept { ::operator delete(frame); }

#else

namespace {

constexpr size_t kGrain = 64;
constexpr size_t kClasses = 64;  // Frames up to 4 KiB; larger ones are rare and go to the heap.
constexpr size_t kKeptBytesMax = 1 << 20;

struct Free {
  Free* next;
};

struct Pool {
  Free* free[kClasses + 1] = {};
  size_t kept[kClasses + 1] = {};
  ~Pool() {
    for (Free* list : free) {
      while (list) {
        Free* next = list->next;
        ::operator delete(list);
        list = next;
      }
    }
  }
};

thread_local Pool pool;

}  // namespace

void* allocate_frame(size_t size) {
  const size_t index = (size + kGrain - 1) / kGrain;
  if (index > kClasses) return ::operator new(size);
  if (Free* frame = pool.free[index]) {
    pool.free[index] = frame->next;
    --pool.kept[index];
    return frame;
  }
  return ::operator new(index * kGrain);
}

void free_frame(void* frame, size_t size) noexcept {
  const size_t index = (size + kGrain - 1) / kGrain;
  if (index > kClasses || (pool.kept[index] + 1) * index * kGrain > kKeptBytesMax) {
    ::operator delete(frame);
    return;
  }
  Free* freed = static_cast<Free*>(frame);
  freed->next = pool.free[index];
  pool.free[index] = freed;
  ++pool.kept[index];
}

#endif

}  // namespace byre
