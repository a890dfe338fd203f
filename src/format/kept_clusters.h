// SPDX-License-Identifier: Apache-2.0
/// KeptClusters: leaked clusters that a repair has kept because they may be the only copy of lost
/// data, as the header remembers them (docs/engine.md, R1).
///
/// They lie in a header extension of byre's own.  Other programs keep extensions that they do not
/// know; what they do with leaked clusters they decide themselves.  No feature bit goes with it.
/// The list is bounded: what does not fit is put together with its neighbour, gap included, so the
/// ranges may cover more than was kept, and never less.  A range says nothing of clusters in it
/// that are referenced. Invariant: ranges ascend and do not touch each other. Not here: where in
/// the first sector the extension goes (header_change.h).
#pragma once

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "format/extension.h"
#include "format/types.h"

namespace byre {

inline constexpr uint32_t kKeptClustersExtension = 0x6b657074;  // "kept"

class KeptClusters {
 public:
  /// As many as a header has room for that is not crowded.
  static constexpr size_t kRangesMax = 12;

  KeptClusters() = default;
  /// Every cluster that there is.
  static KeptClusters all() { return KeptClusters({{HostCluster{0}, UINT64_MAX}}); }
  /// `spans` ascend.  At most `ranges_max` (one or more) ranges that cover them.
  static KeptClusters covering(const std::vector<HostSpan>& spans, size_t ranges_max);
  /// `data` is the extension's payload.
  static Result<KeptClusters> parse(Bytes data);

  std::vector<std::byte> serialize() const;
  bool empty() const { return ranges_.empty(); }
  bool contains(HostCluster cluster) const;
  const std::vector<HostSpan>& ranges() const { return ranges_; }
  friend bool operator==(const KeptClusters&, const KeptClusters&) = default;

 private:
  explicit KeptClusters(std::vector<HostSpan> ranges) : ranges_(std::move(ranges)) {}

  std::vector<HostSpan> ranges_;
};

/// What a header says; of a list that cannot be read: all clusters.
KeptClusters kept_clusters_of(const Extensions& extensions);

}  // namespace byre
