// SPDX-License-Identifier: Apache-2.0
#include "io/buffer.h"

#include <bit>
#include <cstdint>
#include <new>

namespace byre {

namespace {

constexpr std::align_val_t kAlign{kBufferAlignment};
constexpr unsigned kClassMin = 12;         // 4 KiB
constexpr unsigned kClassMax = 21;         // 2 MiB
constexpr size_t kKeptBytesMax = 8 << 20;  // Of each class.

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer)
constexpr bool kPool = false;  // So that use after free is seen.
#else
constexpr bool kPool = true;
#endif
#else
constexpr bool kPool = true;
#endif

struct Free {
  Free* next;
};

struct Pool {
  Free* free[kClassMax + 1] = {};
  size_t kept[kClassMax + 1] = {};
  ~Pool() {
    for (Free* list : free) {
      while (list) {
        Free* next = list->next;
        ::operator delete(list, kAlign);
        list = next;
      }
    }
  }
};

thread_local Pool pool;

/// The smallest power of two that holds `size`.
unsigned class_of(size_t size) {
  const size_t least = size_t{1} << kClassMin;
  return size <= least ? kClassMin : static_cast<unsigned>(std::bit_width(size - 1));
}

}  // namespace

Buffer::Buffer(size_t size) : size_(size) {
  const unsigned index = class_of(size);
  if (index > kClassMax) {
    data_ = static_cast<std::byte*>(::operator new(size, kAlign));
  } else if (Free* kept = pool.free[index]) {
    pool.free[index] = kept->next;
    --pool.kept[index];
    data_ = static_cast<std::byte*>(static_cast<void*>(kept));
  } else {
    data_ = static_cast<std::byte*>(::operator new(size_t{1} << index, kAlign));
  }
}

Buffer::~Buffer() {
  if (!data_) return;
  const unsigned index = class_of(size_);
  if (!kPool || index > kClassMax || (pool.kept[index] + 1) << index > kKeptBytesMax) {
    ::operator delete(data_, kAlign);
    return;
  }
  Free* freed = new (data_) Free{pool.free[index]};
  pool.free[index] = freed;
  ++pool.kept[index];
}

}  // namespace byre
