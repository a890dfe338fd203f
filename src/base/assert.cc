// SPDX-License-Identifier: Apache-2.0
#include "base/assert.h"

#include <cstdio>
#include <cstdlib>

namespace byre {

void assert_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "byre: %s:%d: assertion failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace byre
