// SPDX-License-Identifier: Apache-2.0
/// Finding: one thing that a check found, as data: what, where, whom it touches, why, and what a
/// repair would do about it.
///
/// `text` is the sentence for people.  The other fields say the same to programs, and are as
/// complete as what was asked for: guest ranges with the names of the snapshots that see them cost
/// another look at the tables (CheckOptions::attribute).
/// Invariant: a finding with `host_length` 0 names no place in the file; `guests` holds at most
/// kGuestsMax ranges, `guests_count` says how many there are.
/// Not here: who finds (metadata_scan.h), who repairs (repair.h, unshare.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace byre {

enum class Severity : uint8_t { corruption, leak, note };

enum class FindingKind : uint8_t {
  oddity,               ///< Every reader accepts it.
  unreadable,           ///< The disk did not give it.
  behind_end,           ///< A pointer to what the file does not have.
  misaligned,           ///< A pointer that is no cluster's offset.
  reserved_bits,        ///< Bits that must be zero.
  stray_flag,           ///< A flag that means nothing, or another thing, where it is.
  subclusters,          ///< Subclusters that contradict each other, or have no host.
  two_owners,           ///< A host cluster that two things use.
  shared_table,         ///< An L2 table for two places of the disk.
  overlapping_streams,  ///< Compressed streams that overlap.
  bad_stream,           ///< A compressed stream that does not inflate.
  refcount_too_small,   ///< Fewer than there are references.
  refcount_too_large,   ///< More: a leak.
  copied,               ///< COPIED and the refcount say different things.
  refcount_table,
  refcount_block,
  snapshot,
  bitmap,
  backing,
  header,     ///< What other readers refuse.
  misplaced,  ///< Data of an external file at another guest cluster's offset.
};
std::string_view name_of(FindingKind kind);

/// What has probably done it; known by the trace that it leaves.
enum class Cause : uint8_t {
  unknown,
  vmd_refcount_block,  ///< A refcount block in the second cluster of its region, not counted.
  reuse_race,          ///< A cluster was freed while a write to it was under way, and given away.
  stale_packing,       ///< Compressed data were packed into a cluster that had a new owner.
  failed_l1_update,    ///< An L2 table was freed although the L1 table pointed to it already.
  truncated_file,      ///< The file is shorter than it was.
  bit_flip,            ///< One bit of a pointer is wrong; `intended` is the offset without that.
  cut_short,           ///< The writer died before it had freed, or linked, what it reserved.
};
std::string_view name_of(Cause cause);

enum class RepairKind : uint8_t {
  none,            ///< Nothing needs to be done.
  refuse,          ///< A repair cannot know what was there.
  set_refcount,    ///< The refcount becomes the number of references.
  rewrite_counts,  ///< All refcount structures are written anew.
  free_cluster,    ///< Nothing uses it; it can be freed.
  set_aside,       ///< Nothing uses it, but it may hold the only copy of lost data.
  unshare,         ///< Each owner gets a copy of its own.
  fix_flag,        ///< The flag is set, or cleared.
  complete,        ///< What is missing is what readers take when it is missing.
  drop,            ///< It says nothing that anybody can use, and goes.
};
std::string_view name_of(RepairKind repair);

struct Finding {
  /// A part of the disk that reads through what was found.
  struct Guest {
    uint64_t offset = 0;
    uint64_t length = 0;
    bool active = false;                 ///< The disk as it is now sees it,
    std::vector<std::string> snapshots;  ///< and these snapshots.
    friend bool operator==(const Guest&, const Guest&) = default;
  };
  static constexpr uint64_t kGuestsMax = 16;

  Severity severity = Severity::note;
  FindingKind kind = FindingKind::oddity;
  std::string structure;  ///< "L2 entry", "refcount block", ...
  uint64_t host_offset = 0;
  uint64_t host_length = 0;
  std::vector<Guest> guests;
  uint64_t guests_count = 0;
  Cause cause = Cause::unknown;
  uint64_t intended = 0;  ///< With Cause::bit_flip.
  RepairKind repair = RepairKind::none;
  std::string text;  ///< One sentence: structure, where, what is wrong.
  bool repaired = false;
  std::string file;  ///< Which file of the backing chain; empty: the image itself.

  /// Where it was met, for whoever looks further: the L2 table, 0 when it was not in one.
  uint64_t l2_table = 0;
  /// The pointer as it is, when one is wrong.
  uint64_t entry = 0;
};

}  // namespace byre
