// SPDX-License-Identifier: Apache-2.0
#include "base/zeroed_pages.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include "base/units.h"

namespace byre {
namespace {

constexpr size_t kPage = 4 * KiB;
constexpr size_t kLargePage = 2 * MiB;

void* map(size_t size) {
  void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) {
    if (const std::new_handler handler = std::get_new_handler()) handler();
    std::abort();
  }
  return at;
}

/// At a multiple of a large page, as only such memory can be one.
void* map_large(size_t size) {
  void* const all = map(size + kLargePage);
  void* at = all;
  size_t space = size + kLargePage;
  std::align(kLargePage, size, at, space);  // At most kLargePage - 1 bytes further: it fits.
  const size_t before = size + kLargePage - space;
  if (before != 0) munmap(all, before);
  munmap(static_cast<std::byte*>(at) + size, kLargePage - before);
  madvise(at, size, MADV_HUGEPAGE);  // A kernel without them gives small ones.
  return at;
}

}  // namespace

ZeroedPages::ZeroedPages(size_t size) : size_(round_up(size, kPage)) {
  data_ = size_ < kLargePage ? map(size_) : map_large(size_);
}

ZeroedPages::~ZeroedPages() {
  if (data_) munmap(data_, size_);
}

}  // namespace byre
