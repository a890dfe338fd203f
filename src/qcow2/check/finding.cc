// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/finding.h"

namespace byre {

std::string_view name_of(FindingKind kind) {
  switch (kind) {
    case FindingKind::oddity:
      return "oddity";
    case FindingKind::unreadable:
      return "unreadable";
    case FindingKind::behind_end:
      return "behind-end";
    case FindingKind::misaligned:
      return "misaligned";
    case FindingKind::reserved_bits:
      return "reserved-bits";
    case FindingKind::stray_flag:
      return "stray-flag";
    case FindingKind::subclusters:
      return "subclusters";
    case FindingKind::two_owners:
      return "two-owners";
    case FindingKind::shared_table:
      return "shared-table";
    case FindingKind::overlapping_streams:
      return "overlapping-streams";
    case FindingKind::bad_stream:
      return "bad-stream";
    case FindingKind::refcount_too_small:
      return "refcount-too-small";
    case FindingKind::refcount_too_large:
      return "refcount-too-large";
    case FindingKind::copied:
      return "copied-flag";
    case FindingKind::refcount_table:
      return "refcount-table";
    case FindingKind::refcount_block:
      return "refcount-block";
    case FindingKind::snapshot:
      return "snapshot";
    case FindingKind::bitmap:
      return "bitmap";
    case FindingKind::backing:
      return "backing";
    case FindingKind::header:
      return "header";
    case FindingKind::misplaced:
      return "misplaced";
  }
  return "unknown";
}

std::string_view name_of(Cause cause) {
  switch (cause) {
    case Cause::unknown:
      return "unknown";
    case Cause::vmd_refcount_block:
      return "vmd-refcount-block";
    case Cause::reuse_race:
      return "reuse-race";
    case Cause::stale_packing:
      return "stale-packing";
    case Cause::failed_l1_update:
      return "failed-l1-update";
    case Cause::truncated_file:
      return "truncated-file";
    case Cause::bit_flip:
      return "bit-flip";
    case Cause::cut_short:
      return "cut-short";
  }
  return "unknown";
}

std::string_view name_of(RepairKind repair) {
  switch (repair) {
    case RepairKind::none:
      return "none";
    case RepairKind::refuse:
      return "refuse";
    case RepairKind::set_refcount:
      return "set-refcount";
    case RepairKind::rewrite_counts:
      return "rewrite-refcounts";
    case RepairKind::free_cluster:
      return "free";
    case RepairKind::set_aside:
      return "set-aside";
    case RepairKind::unshare:
      return "copy-for-each-owner";
    case RepairKind::fix_flag:
      return "fix-flag";
    case RepairKind::complete:
      return "complete";
    case RepairKind::drop:
      return "drop";
  }
  return "unknown";
}

}  // namespace byre
