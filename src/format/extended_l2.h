// SPDX-License-Identifier: Apache-2.0
/// Units of a cluster as masks: which subclusters a byte range touches, which runs alike.
///
/// All of it works for standard entries too, where a cluster has one unit (l2.h, types.h).
/// Cost: a few shifts.
#pragma once

#include <bit>
#include <cstdint>

#include "format/l2.h"
#include "format/types.h"

namespace byre {

/// The mask of units first, first + 1, ..., first + count - 1; first + count <= 32.
constexpr uint32_t unit_mask(uint32_t first, uint32_t count) {
  if (count == 0) return 0;
  return (~uint32_t{0} >> (32 - count)) << first;
}
/// Units that [offset, offset + length) of a cluster touches, even partly.
constexpr uint32_t units_touched(uint64_t offset, uint64_t length, const Geometry& geometry) {
  if (length == 0) return 0;
  const uint64_t first = offset >> geometry.unit_bits();
  const uint64_t last = (offset + length - 1) >> geometry.unit_bits();
  return unit_mask(static_cast<uint32_t>(first), static_cast<uint32_t>(last - first + 1));
}
/// Units that [offset, offset + length) of a cluster covers from end to end.
constexpr uint32_t units_covered(uint64_t offset, uint64_t length, const Geometry& geometry) {
  const uint64_t first = (offset + geometry.unit_size() - 1) >> geometry.unit_bits();
  const uint64_t end = (offset + length) >> geometry.unit_bits();
  if (end <= first) return 0;
  return unit_mask(static_cast<uint32_t>(first), static_cast<uint32_t>(end - first));
}

/// Do these units give zeros without a look at a host cluster?  `shows_below`: what is in neither
/// mask reads from the backing file.
constexpr bool reads_zero(const Mapping& mapping, uint32_t units, bool shows_below) {
  if (mapping.compressed || (mapping.allocated & units) != 0) return false;
  return !shows_below || (mapping.zero & units) == units;
}

enum class UnitKind : uint8_t {
  unallocated,  ///< Reads from the backing file.
  zero,
  data,        ///< In the host cluster.
  compressed,  ///< All units of the cluster at once.
};
struct UnitRun {
  UnitKind kind = UnitKind::unallocated;
  uint32_t count = 0;
};
/// What unit `first` is, and how many from there on are the same.
constexpr UnitRun unit_run(const Mapping& mapping, uint32_t first, const Geometry& geometry) {
  const uint32_t left = geometry.units() - first;
  if (mapping.compressed) return {UnitKind::compressed, left};
  const uint32_t allocated = mapping.allocated >> first;
  const uint32_t zero = mapping.zero >> first;
  const auto run = [&](UnitKind kind, uint32_t others) {
    const auto same = static_cast<uint32_t>(std::countr_zero(others));
    return UnitRun{kind, same < left ? same : left};
  };
  if (allocated & 1) return run(UnitKind::data, ~allocated);
  if (zero & 1) return run(UnitKind::zero, ~zero);
  return run(UnitKind::unallocated, allocated | zero);
}

}  // namespace byre
