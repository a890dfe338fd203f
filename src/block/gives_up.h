// SPDX-License-Identifier: Apache-2.0
/// Devices whose requests may never be answered, such as another server's disk, and how their
/// requests are ended all the same.
///
/// Cost: none until somebody gives up.
/// Not here: who decides that it has taken too long (job/live/job.h, daemon/daemon.h).
#pragma once

#include "block/graph.h"

namespace byre {

class GivesUp {
 public:
  /// What is under way fails soon, and so does every request that follows: the device can only be
  /// closed.
  virtual void give_up() = 0;

 protected:
  ~GivesUp() = default;
};

/// Of the device and what its bytes lie in; not of its backing disk, which others read as well.
inline void give_up_requests(Device& device) {
  if (auto* const here = dynamic_cast<GivesUp*>(&device)) here->give_up();
  for (const Child* edge : device.children()) {
    if (edge->role() != Role::backing) give_up_requests(**edge);
  }
}

}  // namespace byre
