// SPDX-License-Identifier: Apache-2.0
/// The coroutines that could run now, of one reactor.
///
/// Everything that wakes a coroutine (an I/O that completes, an event, a lock that comes free) puts
/// it here; only a reactor takes out.  A real reactor takes the oldest; the simulated one takes
/// any, by its seed, so that each seed is another interleaving. Cost: a push or a pop is a few
/// instructions; memory is kept once grown.
#pragma once

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/assert.h"

namespace byre {

class ReadyQueue {
 public:
  void push(std::coroutine_handle<> handle) {
    if (count_ == slots_.size()) grow();
    slots_[(first_ + count_++) & (slots_.size() - 1)] = handle;
  }
  bool empty() const { return count_ == 0; }
  size_t size() const { return count_; }
  std::coroutine_handle<> pop() { return take(0); }
  /// Takes the one at `index` from the oldest; the oldest moves into its place.
  std::coroutine_handle<> take(size_t index) {
    BYRE_ASSERT(index < count_);
    std::coroutine_handle<>& slot = slots_[(first_ + index) & (slots_.size() - 1)];
    std::swap(slot, slots_[first_]);
    const std::coroutine_handle<> handle = slots_[first_];
    first_ = (first_ + 1) & (slots_.size() - 1);
    --count_;
    return handle;
  }
  /// The one at `index`, left in place.
  std::coroutine_handle<> peek(size_t index) const {
    return slots_[(first_ + index) & (slots_.size() - 1)];
  }
  /// Forgets all of them: the simulated process was killed.
  void clear() { count_ = 0; }

  /// `co_await ready.yield()`: goes to the end of the queue.
  auto yield() {
    struct Awaiter {
      ReadyQueue& ready;
      explicit Awaiter(ReadyQueue& queue) : ready(queue) {}
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> handle) { ready.push(handle); }
      void await_resume() const noexcept {}
    };
    return Awaiter(*this);
  }

 private:
  void grow() {
    std::vector<std::coroutine_handle<>> larger(slots_.empty() ? 64 : slots_.size() * 2);
    for (size_t i = 0; i < count_; ++i) larger[i] = slots_[(first_ + i) & (slots_.size() - 1)];
    slots_ = std::move(larger);
    first_ = 0;
  }

  std::vector<std::coroutine_handle<>> slots_;
  size_t first_ = 0;
  size_t count_ = 0;
};

}  // namespace byre
