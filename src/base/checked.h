// SPDX-License-Identifier: Apache-2.0
/// Arithmetic on numbers that an image or a client chose: nothing wraps unseen.
#pragma once

#include <cstdint>
#include <optional>

namespace byre {

inline std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
  uint64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}
inline std::optional<uint64_t> checked_multiply(uint64_t a, uint64_t b) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}
/// Is [offset, offset + length) inside [0, size)?
inline bool within(uint64_t offset, uint64_t length, uint64_t size) {
  return length <= size && offset <= size - length;
}

}  // namespace byre
