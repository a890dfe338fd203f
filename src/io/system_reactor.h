// SPDX-License-Identifier: Apache-2.0
/// What the two real reactors share: the clock, chance, timers, worker threads for CPU work, and
/// the end of every Op.
///
/// Invariant: `outstanding_` counts the Ops between submit() and their waiter's place in the ready
/// queue.  A reactor with nothing outstanding and nothing ready that is told to wait would wait for
/// ever; that is a bug of its caller, and asserted.
/// Not here: how the kernel is asked (uring_reactor.cc, posix_reactor.cc).
#pragma once

#include <array>

#include "io/reactor.h"
#include "io/timer_heap.h"
#include "io/worker_pool.h"

namespace byre {

class SystemReactor : public Reactor {
 public:
  SystemReactor() : workers_(completions_, cpu_count()) {}

  /// CLOCK_MONOTONIC.
  Instant now() const final;
  /// From the kernel's generator, fetched by the page.
  uint64_t random() final;

 protected:
  void begin(Op& op) {
    BYRE_ASSERT(!op.pending);
    op.pending = true;
    ++outstanding_;
  }
  void complete(Op& op, int64_t result) {
    op.pending = false;
    op.result = result;
    --outstanding_;
    ready().push(op.waiter);
  }
  void give_to_workers(WorkerPool& pool, Op& op) {
    ++with_workers_;
    pool.submit(op);
  }
  bool take_back(WorkerPool& pool, Op& op) {
    if (!pool.withdraw(op)) return false;
    --with_workers_;
    return true;
  }
  /// Completes what the workers have done.
  void complete_finished();
  /// Completes the timers that are due.
  void complete_timers();
  /// How long until the next timer: nanoseconds, 0 when it is due, -1 when there is none.
  int64_t until_next_timer() const;
  void run_ready();

  Completions completions_;
  TimerHeap timers_;
  size_t outstanding_ = 0;
  size_t with_workers_ = 0;
  WorkerPool workers_;

 private:
  std::array<uint64_t, 32> random_{};
  size_t random_left_ = 0;
};

}  // namespace byre
