// SPDX-License-Identifier: Apache-2.0
/// CheckOptions and CheckReport: what a check of an image is asked for, and what it says.
/// Invariant: a count in CheckReport covers all that was found, also where the list of findings is
/// full.
/// Cost: memory for at most `findings_max` findings with words.
/// Not here: checking (metadata_scan.h), repairing (repair/check.h), words for people.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "qcow2/check/finding.h"

namespace byre {

enum class Repair : uint8_t {
  none,
  leaks,      ///< What nothing uses is freed.
  refcounts,  ///< And refcounts and flags become true.
  all,        ///< And what two things use is copied, so that each has its own (unshare.h).
};

/// When the header has no room for it, `always` refuses to repair what would have to be kept.
enum class Remember : uint8_t { never, if_room, always };

struct CheckOptions {
  Repair repair = Repair::none;
  Progress* progress = nullptr;  ///< Null: nobody asks.
  Result<void> go_on() const { return progress ? progress->check("check") : Result<void>(); }
  uint64_t findings_max = 10000;  ///< Kept with words; all are counted.
  /// Find out whom each finding touches: guest ranges, snapshots, likely causes.  Costs another
  /// read of the L2 tables, and only when something was found.
  bool attribute = false;
  /// Check whether compressed streams overlap, and whether each inflates (compressed_check.h).
  bool streams = false;
  bool decode = false;
  /// Check the bits of persistent bitmaps (bitmap_check.h), and at snapshots as such
  /// (snapshot_check.h).
  bool bitmaps = false;
  bool snapshots = false;
  /// With a repair: leave what nothing refers to as it is.  It is left anyway where damage was
  /// found, since it may be the only copy of what was lost.
  bool keep_orphans = false;
  /// What is left so is noted in the header (keep.h), so that it stays with the next repair, too.
  Remember remember = Remember::always;
  /// With Repair::all: what leads nowhere is given up (loss.h).
  bool accept_loss = false;
};

struct CheckReport {
  std::vector<Finding> findings;
  /// After a repair of clusters with two owners: parts of the disk that may not hold what was last
  /// written there.
  std::vector<Finding::Guest> in_doubt;
  /// Of `leaks`: left because they may be the only copy of something, now or since an earlier
  /// repair; after Repair::leaks, all that were left because something else is wrong.
  uint64_t orphans_kept = 0;
  uint64_t corruptions = 0;  ///< Left after repair.
  uint64_t leaks = 0;        ///< Leaked clusters left after repair.
  /// Of `corruptions`: what qemu-img 7.2 does not count: two owners of one cluster where the
  /// refcount is large enough, zero flags in images that have none, COPIED on entries that lead
  /// nowhere, data at another offset of the data file than its own.
  uint64_t corruptions_beyond_qemu = 0;
  uint64_t corruptions_fixed = 0;
  uint64_t leaks_fixed = 0;
  uint64_t check_errors = 0;        ///< Places that could not be read.
  uint64_t total_clusters = 0;      ///< Guest clusters of the disk.
  uint64_t allocated_clusters = 0;  ///< Guest clusters with data (compressed ones too).
  uint64_t compressed_clusters = 0;
  uint64_t fragmented_clusters = 0;  ///< Data clusters that do not follow their predecessor.
  uint64_t image_end_offset = 0;     ///< Behind the last host cluster in use.
};

}  // namespace byre
