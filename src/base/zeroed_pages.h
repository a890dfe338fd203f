// SPDX-License-Identifier: Apache-2.0
/// ZeroedPages: memory that begins as zeros, for tables that grow with an image.
///
/// It comes from the kernel as it is, which has cleared it, and in pages of 2 MiB where it is that
/// large and the kernel has them: a table of 128 MiB then takes 64 page faults and not 32768.
/// Invariant: all bytes are zero until somebody writes.
/// Cost: a page fault for each page that is touched; nothing for what is not.
/// Errors: none; without memory the process ends, as with new.
/// Not here: memory for I/O (io/buffer.h).
#pragma once

#include <cstddef>
#include <utility>

namespace byre {

class ZeroedPages {
 public:
  explicit ZeroedPages(size_t size);  ///< In bytes; rounded up to whole pages.
  ZeroedPages(ZeroedPages&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  ZeroedPages& operator=(ZeroedPages&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~ZeroedPages();

  void* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace byre
