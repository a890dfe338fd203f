// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/damage.h"

#include "base/cat.h"
#include "format/types.h"

namespace byre {
namespace {

std::string counted(uint64_t count, std::string_view one, std::string_view many) {
  return count == 1 ? cat("1 ", one) : cat(count, " ", many);
}

std::string_view likely(Cause cause) {
  switch (cause) {
    case Cause::vmd_refcount_block:
      return "OpenBSD's vmd, which does not count its refcount blocks";
    case Cause::reuse_race:
      return "a write that was overtaken by a discard, and whose cluster was given away";
    case Cause::stale_packing:
      return "compressed data packed into a cluster that had a new owner";
    case Cause::failed_l1_update:
      return "a failed update of the L1 table, after which its table was used again";
    case Cause::truncated_file:
      return "a file that was cut off";
    default:
      return "";
  }
}

}  // namespace

std::vector<std::string> describe(const ImageDamage& damage, const Geometry& geometry) {
  std::vector<std::string> sentences;
  if (!damage.undercounted.empty()) {
    const ImageDamage::Undercounted& first = damage.undercounted.front();
    sentences.push_back(
        cat(counted(damage.undercounted.size(), "host cluster is", "host clusters are"),
            " used more often than counted, and could have been overwritten (the first is at ",
            geometry.start_of(first.cluster), ": ", first.references, " references, refcount ",
            first.refcount, ")"));
  }
  if (!damage.copied.empty()) {
    sentences.push_back(cat(counted(damage.copied.size(), "entry says", "entries say"),
                            " that a shared cluster may be overwritten (the first is at ",
                            damage.copied.front().at, ")"));
  }
  if (damage.in_doubt_count != 0) {
    const ImageDamage::InDoubt& first = damage.in_doubt.front();
    sentences.push_back(cat(counted(damage.in_doubt_count, "guest range", "guest ranges"),
                            " may hold what was written for another one (the first is ",
                            first.length, " bytes at guest offset ", first.offset,
                            first.active ? "" : " of a snapshot", ")"));
  }
  if (!damage.lost.empty()) {
    const ImageDamage::Lost& first = damage.lost.front();
    sentences.push_back(cat(counted(damage.lost.size(), "guest range leads", "guest ranges lead"),
                            " nowhere (the first is ", first.count << geometry.cluster_bits,
                            " bytes at guest offset ", geometry.start_of(first.first), ")"));
  }
  if (damage.lost_in_snapshots != 0) {
    sentences.push_back(
        cat(counted(damage.lost_in_snapshots, "entry", "entries"), " of snapshots lead nowhere"));
  }
  for (const std::string& sentence : damage.beyond_healing) sentences.push_back(sentence);
  for (const Cause cause : damage.causes) {
    if (const std::string_view words = likely(cause); !words.empty())
      sentences.push_back(cat("likely cause: ", words));
  }
  return sentences;
}

}  // namespace byre
