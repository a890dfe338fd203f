// SPDX-License-Identifier: Apache-2.0
/// Internal snapshots: a second L1 table inside the image, whose tables and clusters it shares.
///
/// Creating, applying and deleting one (SnapshotChange, snapshot.cc) takes every lock: the
/// guest's reads go on, its writes wait.  What was staged is committed first and limbo is emptied,
/// so that disk and memory agree.  Then, each line made durable before the next
/// (docs/engine.md, S1):
///   create   dirty bit; COPIED=0 in the L1 and L2 tables; refcounts + 1, the copy of the L1 table;
///            snapshot table and dirty bit off, in one sector of the header
///   apply    dirty bit; refcounts + 1, the new L1 table; L1 table and size, in one sector; what
///   was
///            there before: refcounts - 1, once nobody reads it any more; dirty bit off
///   delete   snapshot table and dirty bit, in one sector; refcounts - 1; COPIED=1 where one
///            reference is left; dirty bit off
/// What does not fit (refcounts, the table) is found before anything changes (A5).  A failure is
/// undone in reverse; where that fails as well the dirty bit stays, and the next open rebuilds.
///
/// Invariant: references <= refcount, and COPIED only where the refcount is 1, at every moment,
/// also in version 2, which has no dirty bit: a cut there leaves leaks and missing COPIED flags at
/// worst.
/// Cost: reads every L2 table concerned once or twice, writes those whose flags change and the
/// refcounts of what they map: by the tables, not by the disk.
/// Memory: one byte for each cluster of the regions concerned (refcount_changes.h).
/// Not here: the table's format (format/snapshot.h), reading a snapshot (ImageOptions::snapshot),
/// the VM state (vm_state.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coro/task.h"
#include "format/snapshot.h"

namespace byre {

/// Which snapshot is meant.
struct SnapshotKey {
  std::string word;
  enum class By : uint8_t { id_or_name, id, name } by = By::id_or_name;
};

struct NewSnapshot {
  std::string name;
  uint32_t date_seconds = 0;
  uint32_t date_nanoseconds = 0;
  uint64_t vm_clock_nanoseconds = 0;
  uint64_t vm_state_size = 0;  ///< Bytes of VM state behind the disk that belong to it.
  uint64_t icount = 0;
};

/// Its index.  Errc::not_found, or Errc::invalid when it could be several: an id of one may be the
/// name of another, and neither need be unique.
Result<size_t> find_snapshot(const std::vector<Snapshot>& snapshots, const SnapshotKey& key);
/// One more than the largest there is, in decimal.
std::string next_snapshot_id(const std::vector<Snapshot>& snapshots);

class GuestDisk;
// Each is durable when it ends.
Task<void> create_snapshot(GuestDisk& disk, NewSnapshot snapshot);
/// The disk becomes what it was, its size as well; what it is now is lost.
Task<void> apply_snapshot(GuestDisk& disk, SnapshotKey which);
Task<void> delete_snapshot(GuestDisk& disk, SnapshotKey which);
Task<void> rename_snapshot(GuestDisk& disk, SnapshotKey which, std::string name);
/// What version 3 wants of every entry: the disk's size then, which was the disk's size always.
Task<void> complete_snapshots(GuestDisk& disk);

}  // namespace byre
