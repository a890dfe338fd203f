// SPDX-License-Identifier: Apache-2.0
/// GiveUp: what tables led to that no durable pointer leads to any more.
///
///     GiveUp give_up(disk);
///     co_await give_up.table(at);     // an L2 table with all that its entries lead to
///     co_await give_up.end();         // the first reason why something was not given up
/// Clusters that a snapshot still refers to stay; the others go to limbo, and become free once all
/// I/O that resolved to them has ended (docs/engine.md, H2, H3).
/// Invariant: what cannot be believed (an entry that is damaged, a cluster without a refcount) is
/// left as a leak, never freed.
/// Cost: reads each L2 table; commits now and then, so that what is in limbo stays bounded.
/// Not here: the switch that made them unreachable (shrink.h, empty.h).
#pragma once

#include "format/l2.h"

namespace byre {

class GuestDisk;

class GiveUp {
 public:
  explicit GiveUp(GuestDisk& disk) : disk_(disk) {}

  /// The table and what is in it.
  Task<void> table(HostCluster at);
  /// The table alone; its refcount is loaded.
  void table_alone(HostCluster at);
  Task<void> mapping(const Mapping& mapping);
  Task<void> end();

 private:
  GuestDisk& disk_;
  uint64_t released_ = 0;
  Error first_;
};

}  // namespace byre
