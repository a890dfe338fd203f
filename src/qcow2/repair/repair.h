// SPDX-License-Identifier: Apache-2.0
/// Repair: makes refcounts and COPIED flags agree with what a scan has counted.
///
/// Counts are raised, and flags cleared, before anything is freed.  Refcount structures that cannot
/// be believed are written anew into space that nothing uses, synced, and entered by one sector of
/// the header (docs/engine.md, O1, O3, O6).  Stopped at any write, it can be run again.
/// Invariant: nothing is freed while the image is damaged, that is, while references may be
/// missing.
/// Cost: the refcount blocks are read once to raise counts and once to lower them, and a block that
/// changes is written; new structures are written as a whole.
/// Not here: what to do about entries that lead nowhere; they are left as they are.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "qcow2/repair/repair_state.h"

namespace byre {

/// Something that a repair did, or would do.
struct RepairAction {
  enum class Kind : uint8_t {
    copy,
    set_refcounts,
    rewrite_refcounts,
    free_clusters,
    fix_flags,
    rewrite_table,  ///< Of snapshots or bitmaps.
    give_up,        ///< What leads nowhere (loss.h).
    keep,           ///< The header remembers clusters that stay (keep.h).
  };
  Kind kind = Kind::copy;
  uint64_t host_offset = 0;
  uint64_t to = 0;      ///< Where to, of what is written anew or copied.
  uint64_t length = 0;  ///< Bytes.
  uint64_t clusters = 0;
  uint64_t guest_offset = 0;
  std::string text;
};
std::string_view name_of(RepairAction::Kind kind);

struct RepairLog {
  static constexpr size_t kActionsMax = 10000;
  std::vector<RepairAction> actions;
  uint64_t actions_count = 0;
  /// Parts of the disk that may not hold what was last written there.
  std::vector<Finding::Guest> in_doubt;
  /// Parts of the disk, or of snapshots, that read as zeros now (loss.h),
  std::vector<Finding::Guest> lost;
  std::vector<std::string> lost_things;  ///< and snapshots and bitmaps that are gone.

  void add(RepairAction action) {
    ++actions_count;
    if (actions.size() < kActionsMax) actions.push_back(std::move(action));
  }
};

/// Would repair_image() change something?
bool can_repair(const RepairState& state, Repair repair);
/// One pass of it; the state is stale afterwards.
Task<void> repair_image(RepairState& state, Repair repair, RepairLog& log);
/// Clears, in L2 entries, what means nothing and hides nothing; the state is stale afterwards.
bool can_fix_entries(const RepairState& state, Repair repair);
Task<void> repair_entries(RepairState& state, RepairLog& log);
/// Runs of `count` clusters in all that nothing uses: one behind the end of a file that can grow,
/// else what is free in it.  Fails with Errc::no_space.
Task<std::vector<HostSpan>> find_room(RepairState& state, uint64_t count);
/// Writes a table that must lie in one piece where nothing is in use, and counts it, durably;
/// none when there is no room.  Nothing points to it yet.
Task<std::optional<HostOffset>> place_table(RepairState& state, RepairLog& log, Bytes table,
                                            IoTag tag);
/// What comes before the first write of a pass: forget_unknown_features(), and the promise to keep
/// what may be the only copy of something (keep.h), when `state.promise` says so.
Task<void> begin_writing(RepairState& state);
/// Clears autoclear features that say something which a change may make untrue, or nothing.
Task<void> forget_unknown_features(RepairState& state);
/// Clears the dirty and the corrupt bit, when they are set.
Task<void> clear_repaired_bits(Device& file);

}  // namespace byre
