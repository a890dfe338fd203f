// SPDX-License-Identifier: Apache-2.0
/// A Reactor on io_uring: an Op becomes an SQE, a CQE completes an Op, and nothing else.
///
/// Linux 5.10 will do; newer kernels give cheaper completions (DEFER_TASKRUN).  An Op that does not
/// fit the submission queue waits in a list; submit() never blocks and never fails.  Truncation,
/// which has no opcode before Linux 6.9, and CPU work go to worker threads.
/// Cost: one system call a turn, for all that the turn submits and reaps; no allocation per Op.
#pragma once

#include <memory>

#include "io/reactor.h"

namespace byre {

/// Fails where the kernel or a sandbox forbids io_uring, or lacks what byre needs of it.
Result<std::unique_ptr<Reactor>> make_uring_reactor();

}  // namespace byre
