// SPDX-License-Identifier: Apache-2.0
/// L2Patch: entries of one L2 table, or of a slice of it, that go to the disk together.
///
/// It holds the bytes as they are on the disk, takes the new entries, and writes the sectors that
/// hold them and no others: a sector is the unit in which a power loss shows the old or the new.
/// Invariant: bytes outside the changed entries go down as they were read, so nobody else may
/// change the table between the load and the write; a commit does it alone, everybody else while
/// the disk is quiesced.
/// Cost: one copy of the table; one write.
/// Not here: when an entry may be written (docs/engine.md, O and M), the cache of tables: who
/// changes a table past the commit drops its slices (table_cache.h).
#pragma once

#include <cstdint>
#include <vector>

#include "block/device.h"
#include "format/l2.h"

namespace byre {

class L2Patch {
 public:
  /// `bytes` are what the disk has at `at`: whole entries, in whole sectors.
  L2Patch(const Geometry& geometry, HostOffset at, std::vector<std::byte> bytes)
      : geometry_(&geometry), at_(at), bytes_(std::move(bytes)), low_(bytes_.size()) {}

  /// The whole table.
  static Task<L2Patch> load(Device& file, const Geometry& geometry, HostCluster table);

  HostOffset at() const { return at_; }
  uint64_t entries() const { return bytes_.size() / geometry_->l2_entry_size(); }
  L2Entry entry(uint64_t index) const { return load_l2(bytes_, index, *geometry_); }
  void set(uint64_t index, L2Entry entry);
  /// Was an entry set?
  bool changed() const { return high_ != 0; }
  Bytes bytes() const { return bytes_; }
  /// For those who change more than entries, and write all of it.
  MutableBytes mutable_bytes() { return bytes_; }

  /// Writes the sectors of the entries that were set.
  Task<void> write(Device& file) const;
  /// Writes all of it to another place, where no L1 entry leads yet.
  Task<void> write_copy(Device& file, HostCluster to) const;

 private:
  const Geometry* geometry_;
  HostOffset at_;
  std::vector<std::byte> bytes_;
  uint64_t low_;  ///< Bytes [low_, high_) hold the entries that were set.
  uint64_t high_ = 0;
};

}  // namespace byre
