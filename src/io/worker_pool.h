// SPDX-License-Identifier: Apache-2.0
/// Worker threads for what would block a reactor: CPU work, and system calls that have no other
/// way.
///
/// An Op goes in on the reactor's thread, is carried out on a worker, and comes back through
/// Completions, whose descriptor wakes the reactor.  Threads start when there is work for one more,
/// up to a bound, and take no signals.
/// Invariant: an Op is in the queue, with one worker, or in Completions; the mutexes order its
/// fields between the threads.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <mutex>
#include <vector>

#include "io/op.h"
#include "io/op_list.h"

namespace byre {

/// Does what `op` says with a plain system call, and waits for it: a result or -errno.
int64_t perform_blocking(const Op& op);

/// Where workers leave finished Ops for the reactor's thread.
class Completions {
 public:
  Completions();
  ~Completions();
  Completions(const Completions&) = delete;

  /// An eventfd: readable when something was pushed since it was last read.
  int wake_fd() const { return wake_fd_; }
  /// From any thread.
  void push(Op& op);
  /// All that are finished.
  OpList take();

 private:
  std::mutex mutex_;
  OpList finished_;
  int wake_fd_;
};

class WorkerPool {
 public:
  WorkerPool(Completions& completions, size_t threads_max)
      : completions_(completions), threads_max_(threads_max) {}
  /// Waits for what runs; what is queued is dropped.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;

  void submit(Op& op);
  /// Takes `op` back if no worker has begun it.
  bool withdraw(Op& op);

 private:
  static void* run(void* pool);
  void work();
  void start_thread();

  Completions& completions_;
  const size_t threads_max_;
  std::vector<pthread_t> threads_;  ///< The reactor's thread only.

  std::mutex mutex_;
  std::condition_variable wake_;
  OpList queue_;
  size_t queued_ = 0;
  size_t idle_ = 0;
  bool stopping_ = false;
};

/// How many CPUs this process may use.
size_t cpu_count();

}  // namespace byre
