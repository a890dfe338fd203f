// SPDX-License-Identifier: Apache-2.0
/// Runs of bytes, and integers as they lie on disk and wire.
///
/// be16, be32 and be64 have alignment 1, so a struct of them is the on-disk layout itself.  This is
/// the only file that may reinterpret_cast.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

namespace byre {

using Bytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;

template <class Int>
constexpr Int swap_big(Int value) {
  if constexpr (std::endian::native == std::endian::big) return value;
  return std::byteswap(value);
}

/// A big-endian integer of alignment 1; loads as one mov and one bswap.
template <class Int>
class BigEndian {
 public:
  BigEndian() = default;
  BigEndian(Int value) { *this = value; }
  operator Int() const {
    Int value;
    std::memcpy(&value, bytes_, sizeof value);
    return swap_big(value);
  }
  BigEndian& operator=(Int value) {
    value = swap_big(value);
    std::memcpy(bytes_, &value, sizeof value);
    return *this;
  }

 private:
  std::byte bytes_[sizeof(Int)] = {};
};
using be16 = BigEndian<uint16_t>;
using be32 = BigEndian<uint32_t>;
using be64 = BigEndian<uint64_t>;

template <class Int>
Int load_be(Bytes bytes, size_t at = 0) {
  Int value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return swap_big(value);
}
template <class Int>
void store_be(MutableBytes bytes, size_t at, Int value) {
  value = swap_big(value);
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

/// The start of `bytes` as a T of alignment 1, or null when they are too few.
template <class T>
const T* view_as(Bytes bytes) {
  static_assert(std::is_trivially_copyable_v<T> && alignof(T) == 1);
  return bytes.size() < sizeof(T) ? nullptr : reinterpret_cast<const T*>(bytes.data());
}

/// The bytes of one object.
template <class T>
Bytes bytes_of(const T& object) {
  static_assert(std::is_trivially_copyable_v<T>);
  return std::as_bytes(std::span(&object, 1));
}
inline Bytes bytes_of(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
inline std::string_view text_of(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// For C interfaces that want unsigned char, char or void.
inline const uint8_t* u8(Bytes bytes) { return reinterpret_cast<const uint8_t*>(bytes.data()); }
inline uint8_t* u8(MutableBytes bytes) { return reinterpret_cast<uint8_t*>(bytes.data()); }
/// The bytes at an address that a C interface gave.
inline Bytes bytes_at(const void* address, size_t size) {
  return {static_cast<const std::byte*>(address), size};
}
/// A pointer to one C struct as a pointer to another that starts alike (sockaddr).
template <class To, class From>
To* c_cast(From* from) {
  return reinterpret_cast<To*>(from);
}

inline void fill_zero(MutableBytes bytes) {
  if (!bytes.empty()) std::memset(bytes.data(), 0, bytes.size());
}
inline void copy(MutableBytes to, Bytes from) {
  if (!from.empty()) std::memcpy(to.data(), from.data(), from.size());
}
inline bool equal(Bytes a, Bytes b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}
/// True when every byte is zero.  Several GiB/s: compares the run with itself, shifted by one.
inline bool is_zero(Bytes bytes) {
  if (bytes.empty()) return true;
  return bytes[0] == std::byte{0} &&
         std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

}  // namespace byre
