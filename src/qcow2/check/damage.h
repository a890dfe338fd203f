// SPDX-License-Identifier: Apache-2.0
/// ImageDamage: what a scan of all references found that a writer must know before it changes
/// anything (docs/engine.md, V).
///
/// A value: reference_scan.h makes it, the engine heals by it, commands describe it.
/// Invariant: `undercounted`, `lost` and `leaks` are ascending, and the ranges of `lost` do not
/// overlap.
/// Cost: memory as long as the lists are; each is bounded by the scan's options.
/// Not here: every other thing that a check reports (finding.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "format/types.h"
#include "qcow2/check/finding.h"

namespace byre {

struct ImageDamage {
  /// A cluster whose refcount is below its references: whoever trusts the refcount overwrites it.
  struct Undercounted {
    HostCluster cluster;
    uint64_t references = 0;
    uint64_t refcount = 0;
    bool metadata = false;
  };
  /// An entry of the active disk that has COPIED although its cluster is not its own.
  struct WrongCopied {
    uint64_t l1_index = 0;
    bool in_l1 = false;  ///< The L1 entry itself; else entry `l2_index` of its table,
    uint64_t l2_index = 0;
    HostOffset at;  ///< which lies there in the file.
  };
  /// A part of the active disk whose entry leads nowhere, or into metadata.
  struct Lost {
    GuestCluster first;
    uint64_t count = 1;
    bool whole_table = false;  ///< The L1 entry is at fault.
    enum class Why : uint8_t { unreadable_entry, behind_end, in_metadata } why = Why::behind_end;
    HostOffset host;  ///< Where it leads.
  };
  /// What an entry leads to behind the end of the file, of the active disk or of snapshots.
  struct BehindEnd {
    HostSpan clusters;
    uint64_t references = 1;  ///< How many L1 entries lead there by this one.
  };
  /// A part of the disk, or of a snapshot, that reads what something else may have written.
  struct InDoubt {
    GuestOffset offset;
    uint64_t length = 0;
    bool active = true;  ///< Of the disk as it is now; else of snapshots only.
  };

  std::vector<Undercounted> undercounted;  ///< Ascending.
  std::vector<WrongCopied> copied;
  std::vector<BehindEnd> behind_end;
  std::vector<Lost> lost;  ///< Ascending, without overlaps.
  /// The scan's lost_max was passed: `lost` or `behind_end` has gaps, and so nobody may write.
  bool too_many_lost = false;
  std::vector<InDoubt> in_doubt;
  uint64_t in_doubt_count = 0;  ///< With those that the list has no room for.
  /// What raising refcounts cannot make safe; each a sentence.
  std::vector<std::string> beyond_healing;
  std::vector<Cause> causes;    ///< Each once, `unknown` left out.
  std::vector<HostSpan> leaks;  ///< Clusters that have a refcount and no reference, ascending.
  uint64_t leaked_clusters = 0;
  uint64_t lost_in_snapshots = 0;  ///< Entries that only snapshots have.
  uint64_t table_bytes = 0;        ///< L2 tables and refcount blocks that were read.
  uint64_t memory_bytes = 0;       ///< At most, for counting.
  uint64_t file_size = 0;          ///< When the scan began.

  /// Nothing is wrong but leaks, which endanger nothing.
  bool sound() const {
    return undercounted.empty() && copied.empty() && lost.empty() && beyond_healing.empty() &&
           lost_in_snapshots == 0;
  }
};

/// What was found, a sentence each; empty when sound().  `name` is the image's.
std::vector<std::string> describe(const ImageDamage& damage, const Geometry& geometry);

}  // namespace byre
