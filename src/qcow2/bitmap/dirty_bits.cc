// SPDX-License-Identifier: Apache-2.0
#include "qcow2/bitmap/dirty_bits.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/assert.h"
#include "base/checked.h"

namespace byre {

DirtyBits::DirtyBits(uint64_t size, uint32_t granularity_bits, uint64_t part_bytes)
    : size_(size),
      granularity_bits_(granularity_bits),
      granules_(div_ceil(size, uint64_t{1} << granularity_bits)),
      part_bytes_(part_bytes),
      part_shift_(static_cast<uint32_t>(std::countr_zero(part_bytes)) + 3) {
  BYRE_ASSERT(std::has_single_bit(part_bytes) && part_bytes >= 8);
  parts_.resize(div_ceil(granules_, uint64_t{1} << part_shift_));
}

std::pair<uint64_t, uint64_t> DirtyBits::granules_of(uint64_t part) const {
  return {part << part_shift_, std::min((part + 1) << part_shift_, granules_)};
}

bool DirtyBits::get(uint64_t granule) const {
  const Part& part = parts_[part_of(granule)];
  if (!part.bytes) return part.ones;
  const uint64_t bit = granule & ((uint64_t{1} << part_shift_) - 1);
  return (part.bytes[bit / 8] >> (bit % 8) & 1) != 0;
}

bool DirtyBits::all_set(uint64_t first, uint64_t end) const {
  const Part& part = parts_[part_of(first)];
  if (!part.bytes) return part.ones;
  for (uint64_t granule = first; granule < end;) {
    const uint64_t bit = granule & ((uint64_t{1} << part_shift_) - 1);
    if (bit % 8 == 0 && end - granule >= 8) {
      if (part.bytes[bit / 8] != 0xff) return false;
      granule += 8;
      continue;
    }
    if ((part.bytes[bit / 8] >> (bit % 8) & 1) == 0) return false;
    ++granule;
  }
  return true;
}

uint8_t* DirtyBits::bytes_of(Part& part) const {
  if (!part.bytes) {
    part.bytes = std::make_unique_for_overwrite<uint8_t[]>(part_bytes_);
    std::memset(part.bytes.get(), part.ones ? 0xff : 0, part_bytes_);
  }
  return part.bytes.get();
}

void DirtyBits::set(uint64_t first, uint64_t end) {
  end = std::min(end, granules_);
  while (first < end) {
    Part& part = parts_[part_of(first)];
    const auto [start, part_end] = granules_of(part_of(first));
    const uint64_t stop = std::min(end, part_end);
    if (first == start && stop == part_end) {
      part = {.ones = true, .bytes = nullptr};
    } else if (part.bytes || !part.ones) {
      uint8_t* bytes = bytes_of(part);
      uint64_t bit = first - start;
      const uint64_t bit_end = stop - start;
      for (; bit < bit_end && bit % 8 != 0; ++bit)
        bytes[bit / 8] |= static_cast<uint8_t>(1u << (bit % 8));
      if (bit < bit_end) {
        std::memset(bytes + bit / 8, 0xff, (bit_end - bit) / 8);
        for (bit += round_down(bit_end - bit, 8); bit < bit_end; ++bit)
          bytes[bit / 8] |= static_cast<uint8_t>(1u << (bit % 8));
      }
    }
    first = stop;
  }
}

void DirtyBits::fill(bool ones) {
  for (Part& part : parts_) part = {.ones = ones, .bytes = nullptr};
}

void DirtyBits::set_bytes(uint64_t offset, uint64_t length) {
  if (offset >= size_ || length == 0) return;
  length = std::min(length, size_ - offset);
  set(granule_of(offset), granule_of(offset + length - 1) + 1);
}

void DirtyBits::merge(const DirtyBits& other) {
  uint64_t from = 0;
  while (const auto run = other.next_run(from)) {
    set_bytes(run->first, run->second);
    from = run->first + run->second;
  }
}

DirtyBits::Fill DirtyBits::fill_of(uint64_t first_part, uint64_t end_part) const {
  const auto [first, unused] = granules_of(first_part);
  const auto [unused_too, end] = granules_of(end_part - 1);
  const bool ones = get(first);
  for (uint64_t i = first_part; i < end_part; ++i) {
    if (!parts_[i].bytes && parts_[i].ones != ones) return Fill::mixed;
  }
  if (find(first, !ones) < end) return Fill::mixed;
  return ones ? Fill::ones : Fill::zeros;
}

void DirtyBits::load(uint64_t part, Bytes bytes) {
  BYRE_ASSERT(bytes.size() == part_bytes_);
  if (is_zero(bytes)) return load(part, false);
  std::memcpy(bytes_of(parts_[part]), bytes.data(), bytes.size());
}

void DirtyBits::load(uint64_t part, bool ones) { parts_[part] = {.ones = ones, .bytes = nullptr}; }

void DirtyBits::store(uint64_t part, MutableBytes out) const {
  BYRE_ASSERT(out.size() == part_bytes_);
  const Part& from = parts_[part];
  if (from.bytes) {
    std::memcpy(out.data(), from.bytes.get(), part_bytes_);
  } else {
    std::memset(out.data(), from.ones ? 0xff : 0, part_bytes_);
  }
  const auto [start, end] = granules_of(part);
  uint64_t bits = end - start;
  if (bits == part_bytes_ * 8) return;
  if (bits % 8 != 0) out[bits / 8] &= static_cast<std::byte>((1u << (bits % 8)) - 1);
  fill_zero(out.subspan(div_ceil(bits, 8)));
}

uint64_t DirtyBits::find(uint64_t from, bool value) const {
  while (from < granules_) {
    const uint64_t index = part_of(from);
    const Part& part = parts_[index];
    const auto [start, end] = granules_of(index);
    if (!part.bytes) {
      if (part.ones == value) return from;
      from = end;
      continue;
    }
    const uint8_t dull = value ? 0 : 0xff;
    while (from < end) {
      const uint64_t bit = from - start;
      if (bit % 8 == 0 && part.bytes[bit / 8] == dull) {
        from = std::min(from + 8, end);
        continue;
      }
      if (((part.bytes[bit / 8] >> (bit % 8) & 1) != 0) == value) return from;
      ++from;
    }
  }
  return granules_;
}

std::optional<std::pair<uint64_t, uint64_t>> DirtyBits::next_run(uint64_t from) const {
  if (from >= size_) return std::nullopt;
  const uint64_t first = find(granule_of(from), true);
  if (first == granules_) return std::nullopt;
  const uint64_t end = find(first, false);
  const uint64_t start = std::max(from, first << granularity_bits_);
  const uint64_t stop = end == granules_ ? size_ : end << granularity_bits_;
  return std::pair(start, stop - start);
}

uint64_t DirtyBits::dirty_bytes() const {
  uint64_t sum = 0;
  uint64_t from = 0;
  while (const auto run = next_run(from)) {
    sum += run->second;
    from = run->first + run->second;
  }
  return sum;
}

DirtyBits DirtyBits::resized(uint64_t size) const {
  DirtyBits bits(size, granularity_bits_, part_bytes_);
  bits.merge(*this);
  return bits;
}

}  // namespace byre
