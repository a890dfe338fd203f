// SPDX-License-Identifier: Apache-2.0
/// The time of day, for dates that an image records.  Nothing waits by it and nothing is decided by
/// it: it may jump.
#pragma once

#include <cstdint>

namespace byre {

struct WallTime {
  uint64_t seconds = 0;  ///< Since the Epoch.
  uint32_t nanoseconds = 0;
};

WallTime wall_time();

}  // namespace byre
