// SPDX-License-Identifier: Apache-2.0
/// DirtyBits: which granules of a disk have been written, a bit for each, by parts.
///
/// A part is a power of two of bytes as the format stores them (bit i of the disk is bit i % 8 of
/// byte i / 8).  A part that is all zeros or all ones has no bytes of its own.
/// Invariant: bits behind the end of the disk are never set in what store() gives.
/// Cost: test and set of one granule are a few instructions; memory follows what is mixed.
/// Not here: where the bits lie in the image (bitmaps.h).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/units.h"

namespace byre {

class DirtyBits {
 public:
  /// Of a disk of `size` bytes, all clear.  `part_bytes`: a power of two, 8 at least.
  DirtyBits(uint64_t size, uint32_t granularity_bits, uint64_t part_bytes);

  uint64_t size() const { return size_; }
  uint32_t granularity_bits() const { return granularity_bits_; }
  uint64_t granules() const { return granules_; }
  uint64_t part_bytes() const { return part_bytes_; }
  uint64_t parts() const { return parts_.size(); }
  uint64_t granule_of(uint64_t offset) const { return offset >> granularity_bits_; }
  uint64_t part_of(uint64_t granule) const { return granule >> part_shift_; }
  /// The granules of a part: [first, end).
  std::pair<uint64_t, uint64_t> granules_of(uint64_t part) const;

  bool get(uint64_t granule) const;
  /// Are all of [first, end) set?  Inside one part.
  bool all_set(uint64_t first, uint64_t end) const;
  /// Sets [first, end), across parts.
  void set(uint64_t first, uint64_t end);
  void fill(bool ones);
  /// The bytes [offset, offset + length) of the disk, cut off at its end, and what shares their
  /// granules.
  void set_bytes(uint64_t offset, uint64_t length);
  /// Everything that is dirty in `other`, of whatever granularity.
  void merge(const DirtyBits& other);

  enum class Fill : uint8_t { zeros, ones, mixed };
  /// What [first, end) of the parts are together.
  Fill fill_of(uint64_t first_part, uint64_t end_part) const;
  void load(uint64_t part, Bytes bytes);
  void load(uint64_t part, bool ones);
  void store(uint64_t part, MutableBytes out) const;

  /// The first run of dirty bytes at or behind `from`: offset and length, to the end of the disk at
  /// most.
  std::optional<std::pair<uint64_t, uint64_t>> next_run(uint64_t from) const;
  /// Bytes in dirty granules, to the end of the disk.
  uint64_t dirty_bytes() const;
  /// The same of a disk of another size: what is added is clear.
  DirtyBits resized(uint64_t size) const;

 private:
  struct Part {
    bool ones = false;  ///< When there are no bytes.
    std::unique_ptr<uint8_t[]> bytes;
  };
  uint8_t* bytes_of(Part& part) const;
  /// The first granule in [from, granules()) whose bit is `value`; granules() if there is none.
  uint64_t find(uint64_t from, bool value) const;

  uint64_t size_;
  uint32_t granularity_bits_;
  uint64_t granules_;
  uint64_t part_bytes_;
  uint32_t part_shift_;  ///< Granules of a part, as a power of two.
  std::vector<Part> parts_;
};

}  // namespace byre
