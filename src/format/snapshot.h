// SPDX-License-Identifier: Apache-2.0
/// The snapshot table (spec: Snapshots).
///
/// Entries have variable length and the header does not say how long the table is; it ends after
/// `count` entries.  snapshot_table_size() tells from a prefix, so that a reader need not read the
/// most it could be.  Ids and names are any bytes, not unique, not terminated.  Extra data that
/// byre does not know are kept byte for byte.
/// A parsed table is well formed; each snapshot's L1 table must still pass check_l1_table(), so
/// that one bad snapshot does not hide the others. Not here: which snapshot a user means by a name,
/// what creating one does (the engine).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "format/types.h"

namespace byre {

struct Snapshot {
  HostOffset l1_offset;
  uint32_t l1_entries = 0;
  std::string id;
  std::string name;
  uint32_t date_seconds = 0;  ///< Since the Epoch.
  uint32_t date_nanoseconds = 0;
  uint64_t vm_clock_nanoseconds = 0;
  uint64_t vm_state_size = 0;
  std::optional<uint64_t> disk_size;  ///< Missing in old version 2 images: the active disk's.
  std::optional<uint64_t> icount;     ///< All ones when record/replay was off.
  /// Extra data as found.  serialize_snapshots() writes the three known fields over it, and
  /// makes it longer when they do not fit; new snapshots leave it empty.
  std::vector<std::byte> extra_data;

  friend bool operator==(const Snapshot&, const Snapshot&) = default;
};

/// Bytes of a table of `count` entries that starts with `prefix`, or none when the prefix is too
/// short to tell; fails when it is larger than kSnapshotTableSizeMax.
Result<std::optional<uint64_t>> snapshot_table_size(Bytes prefix, uint32_t count);

/// `bytes` may be longer than the table.
Result<std::vector<Snapshot>> parse_snapshots(Bytes bytes, uint32_t count);

/// Fails when there are too many, a string is longer than 65535 bytes, or the whole too large.
/// Version 3 wants disk_size in every entry; a snapshot without it is written without it.
Result<std::vector<std::byte>> serialize_snapshots(const std::vector<Snapshot>& snapshots);

/// Zeros where an entry should be: the header counts more than there are, or one was lost.
bool is_empty_entry(const Snapshot& snapshot);

/// Is its L1 table aligned, not too large, not in the first cluster, and below 2^56?
Result<void> check_l1_table(const Snapshot& snapshot, const Geometry& geometry);

/// The host clusters of the snapshot's L1 table itself; needs check_l1_table().
HostSpan hosts(const Snapshot& snapshot, const Geometry& geometry);

}  // namespace byre
