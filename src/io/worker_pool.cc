// SPDX-License-Identifier: Apache-2.0
#include "io/worker_pool.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/assert.h"

namespace byre {

namespace {

/// Who has an Op that was given to a pool, kept in its `tag` under the pool's mutex.
constexpr uint64_t kQueued = 1;
constexpr uint64_t kRunning = 2;

int64_t or_errno(int64_t result) { return result < 0 ? -errno : result; }

}  // namespace

int64_t perform_blocking(const Op& op) {
  const auto offset = static_cast<off_t>(op.offset);
  const auto length = static_cast<off_t>(op.length);
  iovec one;
  const IoVec memory = op.memory(one);
  switch (op.kind) {
    case Op::Kind::read:
      return or_errno(preadv(op.fd, memory.data(), static_cast<int>(memory.size()), offset));
    case Op::Kind::write:
      return or_errno(pwritev2(op.fd, memory.data(), static_cast<int>(memory.size()), offset,
                               op.dsync ? RWF_DSYNC : 0));
    case Op::Kind::sync:
      return or_errno(fdatasync(op.fd));
    case Op::Kind::allocate:
      return or_errno(fallocate(op.fd, op.keep_size ? FALLOC_FL_KEEP_SIZE : 0, offset, length));
    case Op::Kind::punch:
      return or_errno(fallocate(op.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length));
    case Op::Kind::zero_range:
      return or_errno(fallocate(
          op.fd, FALLOC_FL_ZERO_RANGE | (op.keep_size ? FALLOC_FL_KEEP_SIZE : 0), offset, length));
    case Op::Kind::truncate:
      return or_errno(ftruncate(op.fd, offset));
    case Op::Kind::offload:
      op.work(op.argument);
      return 0;
    case Op::Kind::accept:
    case Op::Kind::connect:
    case Op::Kind::receive:
    case Op::Kind::send:
    case Op::Kind::poll:
    case Op::Kind::timer:
      break;
  }
  BYRE_ASSERT(false);
  return -EINVAL;
}

Completions::Completions() : wake_fd_(eventfd(0, EFD_CLOEXEC)) { BYRE_ASSERT(wake_fd_ >= 0); }

Completions::~Completions() { ::close(wake_fd_); }

void Completions::push(Op& op) {
  bool first;
  {
    const std::lock_guard lock(mutex_);
    first = finished_.empty();
    finished_.add(op);
  }
  if (first) BYRE_ASSERT(eventfd_write(wake_fd_, 1) == 0);  // take() empties the list whole.
}

OpList Completions::take() {
  const std::lock_guard lock(mutex_);
  OpList taken = finished_;
  finished_ = OpList();
  return taken;
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (pthread_t thread : threads_) pthread_join(thread, nullptr);
}

void WorkerPool::submit(Op& op) {
  bool more = false;
  {
    const std::lock_guard lock(mutex_);
    op.tag = kQueued;
    queue_.add(op);
    ++queued_;
    more = queued_ > idle_ && threads_.size() < threads_max_;
  }
  wake_.notify_one();
  if (more) start_thread();
}

bool WorkerPool::withdraw(Op& op) {
  const std::lock_guard lock(mutex_);
  if (op.tag != kQueued) return false;
  queue_.remove(op);
  --queued_;
  return true;
}

void WorkerPool::start_thread() {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // The new thread inherits it.
  pthread_t thread;
  const int failed = pthread_create(&thread, nullptr, run, this);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (failed == 0) {
    threads_.push_back(thread);
    return;
  }
  // With fewer threads than wished for it is only slower; without any the work is done here.
  if (!threads_.empty()) return;
  std::unique_lock lock(mutex_);
  while (!queue_.empty()) {
    Op& op = *queue_.take();
    --queued_;
    op.tag = kRunning;
    lock.unlock();
    op.result = perform_blocking(op);
    completions_.push(op);
    lock.lock();
  }
}

void* WorkerPool::run(void* pool) {
  static_cast<WorkerPool*>(pool)->work();
  return nullptr;
}

void WorkerPool::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    while (!stopping_ && queue_.empty()) {
      ++idle_;
      wake_.wait(lock);
      --idle_;
    }
    if (stopping_) return;
    Op& op = *queue_.take();
    --queued_;
    op.tag = kRunning;
    lock.unlock();
    op.result = perform_blocking(op);
    completions_.push(op);
    lock.lock();
  }
}

size_t cpu_count() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return static_cast<size_t>(std::max(1, CPU_COUNT(&set)));
}

}  // namespace byre
