// SPDX-License-Identifier: Apache-2.0
/// Byte sizes, and offsets that cannot be mixed up.
///
/// GuestOffset counts bytes of the disk that a guest sees, HostOffset bytes of the image file;
/// GuestCluster and HostCluster are indices in units of one cluster.  None converts to another or
/// to an integer by itself.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace byre {

inline constexpr uint64_t KiB = 1024;
inline constexpr uint64_t MiB = 1024 * KiB;
inline constexpr uint64_t GiB = 1024 * MiB;
inline constexpr uint64_t TiB = 1024 * GiB;

/// The unit of atomicity of disks, and of qcow2's compressed sizes.
inline constexpr uint64_t kSectorSize = 512;

/// A 64-bit count of something, named by its tag.
template <class Tag>
struct Quantity {
  uint64_t value = 0;
  friend auto operator<=>(const Quantity&, const Quantity&) = default;
  friend Quantity operator+(Quantity a, uint64_t n) { return {a.value + n}; }
  friend Quantity operator-(Quantity a, uint64_t n) { return {a.value - n}; }
  /// The distance between two of them.
  friend uint64_t operator-(Quantity a, Quantity b) { return a.value - b.value; }
  Quantity& operator+=(uint64_t n) {
    value += n;
    return *this;
  }
  Quantity& operator++() {
    ++value;
    return *this;
  }
};

using GuestOffset = Quantity<struct GuestOffsetTag>;
using HostOffset = Quantity<struct HostOffsetTag>;
using GuestCluster = Quantity<struct GuestClusterTag>;
using HostCluster = Quantity<struct HostClusterTag>;

constexpr uint64_t round_down(uint64_t value, uint64_t unit) { return value / unit * unit; }
constexpr uint64_t div_ceil(uint64_t value, uint64_t unit) {
  return value / unit + (value % unit != 0);
}
/// Rounds up to a multiple of `unit`; the caller knows that the result fits.
constexpr uint64_t round_up(uint64_t value, uint64_t unit) { return div_ceil(value, unit) * unit; }

}  // namespace byre

template <class Tag>
struct std::hash<byre::Quantity<Tag>> {
  size_t operator()(const byre::Quantity<Tag>& quantity) const noexcept {
    uint64_t x = quantity.value * 0x9e3779b97f4a7c15u;
    return x ^ x >> 29;
  }
};
