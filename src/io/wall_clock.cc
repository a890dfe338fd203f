// SPDX-License-Identifier: Apache-2.0
#include "io/wall_clock.h"

#include <ctime>

namespace byre {

WallTime wall_time() {
  timespec now{};
  if (clock_gettime(CLOCK_REALTIME, &now) != 0) return {};
  return {static_cast<uint64_t>(now.tv_sec), static_cast<uint32_t>(now.tv_nsec)};
}

}  // namespace byre
