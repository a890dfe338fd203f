// SPDX-License-Identifier: Apache-2.0
#include "io/file_limit.h"

#include <sys/resource.h>

namespace byre {

void raise_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  // Where it is not allowed, the first file too many says so.
  (void)setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace byre
