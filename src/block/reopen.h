// SPDX-License-Identifier: Apache-2.0
/// Reopening: a disk that was open for reading can be written, or a disk that could be written is
/// only read again, while others use it.
///
/// Devices change from the bottom up for writing, from the top down for reading.  Each in these
/// steps:
///   1. For reading: nobody may write to it from here on.
///   2. What it does of itself is ended (Reopens::end_own_work()).
///   3. It is drained, and with it all above: no request runs.
///   4. It changes.
/// Invariant: a failure leaves every device as it was; the locks of a file (io/file_lock.h) are a
/// writer's before the first device above it counts as writable.
/// Cost: a drain; an image that is to be written is scanned first (docs/engine.md, V).
/// Not here: who may ask for it (the daemon), for how long (job/live/write_loans.h).
#pragma once

#include <functional>
#include <vector>

#include "block/graph.h"
#include "coro/task.h"

namespace byre {

/// A device that can be reopened.
class Reopens {
 public:
  /// Before the drain.  Nothing of what it may have to do later is left.
  virtual Task<void> end_own_work() { co_return; }
  /// No request runs.  What is below is writable already, or still.
  virtual Task<void> reopen(bool writable) = 0;

 protected:
  ~Reopens() = default;
};

/// May a node below the one that was asked for change, too?  One that may not is a reason not to
/// write; when a disk is to be read only, it stays as it is.
using MayReopen = std::function<Result<void>(const Node&)>;

/// Devices that have changed, from the bottom up; they are kept open.
using Reopened = std::vector<Child>;

/// Of the device and what its bytes lie in; not of its backing disk.  Errc::read_only for devices
/// that cannot, Errc::busy when somebody else has a file, or uses a node in another way.  What has
/// changed is given back by set_back() or keep().
Task<Reopened> set_writable(Node& node, bool writable, MayReopen may = {});
/// They are to be what they were before.  Those that somebody has changed since stay.
Task<void> set_back(Reopened reopened, bool was_writable);
/// They stay what they are.
Task<void> keep(Reopened reopened);

}  // namespace byre
