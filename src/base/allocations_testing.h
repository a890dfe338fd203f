// SPDX-License-Identifier: Apache-2.0
/// Counts what a program takes from the heap: replaces operator new, so one file of a program may
/// include it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace byre {
inline uint64_t heap_allocations = 0;
}

void* operator new(size_t size) {
  ++byre::heap_allocations;
  if (void* memory = std::malloc(size)) return memory;
  std::abort();
}
void* operator new(size_t size, std::align_val_t align) {
  ++byre::heap_allocations;
  const auto unit = static_cast<size_t>(align);
  if (void* memory = std::aligned_alloc(unit, (size + unit - 1) / unit * unit)) return memory;
  std::abort();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
