// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/l2_tables.h"

namespace byre {

Error unreadable_table(const Error& error, std::string_view what, HostCluster cluster,
                       const Geometry& geometry) {
  return error.copy().while_doing(cat(what, " at ", hex(geometry.start_of(cluster).value)));
}

Task<void> each_l2(Device& file, const ScanResult& found, VisitL2 visit, ReadHooks hooks) {
  TableReader reader(file, found.geometry(), found.file_size());
  const auto cluster = [&](uint64_t i) { return HostCluster{found.l2_uses[i].cluster}; };
  const auto visit_table = [&](uint64_t i, MutableBytes table) { visit(found.l2_uses[i], table); };
  const auto failed = [&](uint64_t i, const Error& error) {
    if (!hooks.unreadable) return;
    hooks.unreadable(unreadable_table(error, "L2 table", cluster(i), found.geometry()));
  };
  co_await reader.each({.count = found.l2_uses.size(), .cluster = cluster, .tag = IoTag::l2_load},
                       visit_table, failed, {.go_on = hooks.go_on, .progress = hooks.progress});
}

}  // namespace byre
