// SPDX-License-Identifier: Apache-2.0
/// Orphans: clusters that have a refcount and no owner, catalogued and saved before they are freed.
///
/// After a crash they are what was reserved and never linked, or unlinked and not yet freed: of no
/// use.  After damage one of them may be the only copy of what a guest wrote (peer defect j: two
/// entries point to one cluster, and the cluster that one of them had before is a "leak").
/// Saving keeps places: in the file that is written, each cluster lies where it lay in the image;
/// the rest is a hole.
/// Invariant: the image itself is not written to.
/// Cost: the catalogue reads clusters one by one until it is full; saving reads and writes all
/// orphans, 1 MiB at a time.
/// Not here: freeing (repair.h).
#pragma once

#include <array>
#include <string_view>
#include <vector>

#include "qcow2/check/scan_result.h"

namespace byre {

/// A run of clusters that look alike.
struct Orphan {
  enum class Looks : uint8_t {
    zeros,
    l2_table,  ///< Every word of it could be an L2 entry of this image.
    data,
  };
  HostOffset at;
  uint64_t length = 0;
  Looks looks = Looks::data;
  std::array<std::byte, 16> start{};  ///< Its first bytes.
};
std::string_view name_of(Orphan::Looks looks);

/// The first `orphans_max` of them.
Task<std::vector<Orphan>> catalogue_orphans(Device& file, const ScanResult& found,
                                            size_t orphans_max);
/// Copies all of them into `to`, and makes that durable; the number of clusters.
Task<uint64_t> save_orphans(Device& file, const ScanResult& found, Device& to);

}  // namespace byre
