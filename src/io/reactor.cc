// SPDX-License-Identifier: Apache-2.0
#include "io/reactor.h"

#include "io/posix_reactor.h"
#include "io/uring_reactor.h"

namespace byre {

Task<void> Reactor::sleep(int64_t ns) {
  Op op{.kind = Op::Kind::timer, .deadline = now() + ns};
  co_await perform(op);
}

Result<std::unique_ptr<Reactor>> make_reactor(ReactorKind kind) {
  if (kind == ReactorKind::posix) return make_posix_reactor();
  Result<std::unique_ptr<Reactor>> uring = make_uring_reactor();
  if (uring || kind == ReactorKind::uring) return uring;
  return make_posix_reactor();
}

}  // namespace byre
