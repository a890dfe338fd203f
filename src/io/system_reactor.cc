// SPDX-License-Identifier: Apache-2.0
#include "io/system_reactor.h"

#include <sys/random.h>

#include <algorithm>
#include <ctime>

namespace byre {

Instant SystemReactor::now() const {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return {time.tv_sec * kSecond + time.tv_nsec};
}

uint64_t SystemReactor::random() {
  if (random_left_ == 0) {
    // Up to 256 bytes come whole and are never interrupted (getrandom(2)).
    BYRE_ASSERT(getrandom(random_.data(), sizeof random_, 0) == sizeof random_);
    random_left_ = random_.size();
  }
  return random_[--random_left_];
}

void SystemReactor::complete_finished() {
  if (with_workers_ == 0) return;
  OpList finished = completions_.take();
  while (Op* op = finished.take()) {
    --with_workers_;
    complete(*op, op->result);
  }
}

void SystemReactor::complete_timers() {
  if (timers_.empty()) return;
  const Instant time = now();
  while (Op* op = timers_.first()) {
    if (op->deadline > time) break;
    timers_.remove(*op);
    complete(*op, 0);
  }
}

int64_t SystemReactor::until_next_timer() const {
  if (timers_.empty()) return -1;
  return std::max<int64_t>(0, timers_.first()->deadline - now());
}

void SystemReactor::run_ready() {
  // Once each: who is made ready meanwhile waits for the next turn, so that no loop starves I/O.
  for (size_t left = ready().size(); left > 0; --left) ready().pop().resume();
}

}  // namespace byre
