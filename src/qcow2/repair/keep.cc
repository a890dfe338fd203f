// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/keep.h"

#include <algorithm>

#include "qcow2/repair/header_repair.h"

namespace byre {
namespace {

bool is_list(const UnknownExtension& extension) { return extension.type == kKeptClustersExtension; }

}  // namespace

Task<void> remember_kept(RepairState& state, const KeptClusters& kept) {
  const auto edit = [&](Header&, Extensions& extensions) {
    std::erase_if(extensions.unknown, is_list);
    if (!kept.empty()) extensions.unknown.push_back({kKeptClustersExtension, kept.serialize()});
  };
  co_await change_head(state, edit);
  state.kept = kept;
}

Task<void> remember_orphans(RepairState& state) {
  for (size_t ranges_max = KeptClusters::kRangesMax;; ranges_max /= 2) {
    const auto kept = KeptClusters::covering(state.found.orphans, ranges_max);
    Result<void> done = co_await remember_kept(state, kept).result();
    if (done) co_return;
    if (done.error().code() != Errc::no_space || ranges_max == 1) co_await std::move(done);
  }
}

}  // namespace byre
