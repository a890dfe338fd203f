// SPDX-License-Identifier: Apache-2.0
/// Buffer: memory that any disk can transfer to and from: aligned to 4096 bytes.
///
/// Freed buffers are kept by size and handed out again, so that steady-state requests allocate
/// nothing.  Sizes are powers of two from 4 KiB to 2 MiB; larger ones come from the heap.
/// One pool a thread, bounded; a buffer may die on another thread and then belongs to that pool.
/// Contents are whatever was there before: fill what you show to anybody.
#pragma once

#include <cstddef>
#include <utility>

#include "base/bytes.h"

namespace byre {

inline constexpr size_t kBufferAlignment = 4096;

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size);
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  MutableBytes bytes() const { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace byre
