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
    case FindingKind::crossed_streams:
      return "crossed-streams";
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

std::string_view name_of(Remedy remedy) {
  switch (remedy) {
    case Remedy::none:
      return "none";
    case Remedy::refuse:
      return "refuse";
    case Remedy::set_refcount:
      return "set-refcount";
    case Remedy::rewrite_counts:
      return "rewrite-refcounts";
    case Remedy::free_cluster:
      return "free";
    case Remedy::set_aside:
      return "set-aside";
    case Remedy::separate:
      return "copy-for-each-owner";
    case Remedy::fix_flag:
      return "fix-flag";
    case Remedy::complete:
      return "complete";
    case Remedy::drop:
      return "drop";
  }
  return "unknown";
}

}  // namespace byre
