// SPDX-License-Identifier: Apache-2.0
/// What a job's filter lets others do with the node below it: as long as the job runs, nobody
/// writes past the filter, which would not see it.
///
/// Not here: how a filter enters and leaves (block/graph.h).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "block/graph.h"

namespace byre {

/// For a filter that has entered.  Errc::busy when somebody else can write the node.
inline Result<void> keep_writers_out(Device& filter) {
  for (Child* edge : filter.children()) {
    if (edge->role() != Role::filtered) continue;
    return edge->set_permissions({.uses = Access::reading(), .shares = Access::reading()});
  }
  return {};
}

/// What users call the node of the filter, if anything.
inline void name_filter(Child& filter, const std::string& name) {
  if (!name.empty()) filter.node().set_name(name);
}

/// The filter leaves, and its parents use the node below again.
inline Task<void> leave_graph(Child& filter) {
  for (Child* edge : filter->children()) {
    if (edge->role() == Role::filtered) (void)edge->set_permissions({});
  }
  co_await remove_filter(filter);
}

/// What kept disks there ends; those that nobody else uses are closed, the first first.
inline Task<void> close_all(std::vector<Child> edges) {
  for (Child& edge : edges) {
    (void)co_await edge.close().result();
    edge.reset();
  }
}

}  // namespace byre
