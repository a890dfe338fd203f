// SPDX-License-Identifier: Apache-2.0
#include "io/reactor.h"

namespace byre {

Task<void> Reactor::sleep(int64_t ns) {
  Op op{.kind = Op::Kind::timer, .deadline = now() + ns};
  co_await perform(op);
}

}  // namespace byre
