// SPDX-License-Identifier: Apache-2.0
#include "qcow2/guest/change.h"

namespace byre {

Task<Mapping> find_old(GuestDisk& disk, GuestCluster cluster, bool whole) {
  const bool replaces = whole && disk.map->lost().replaceable(cluster);
  if (replaces && !disk.stages.find(cluster).entry) co_return Mapping{};
  co_return (co_await disk.map->find(cluster)).mapping;
}

}  // namespace byre
