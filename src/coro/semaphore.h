// SPDX-License-Identifier: Apache-2.0
/// Semaphore and Mutex for coroutines of one reactor: first come, first served.
///
/// A large request at the head of the queue holds back small ones behind it, so none starves.
/// acquire(n) with n above the total would wait for ever, and is asserted against.
#pragma once

#include <coroutine>
#include <cstdint>
#include <utility>

#include "base/assert.h"
#include "coro/ready_queue.h"

namespace byre {

class Semaphore {
 public:
  Semaphore(ReadyQueue& ready, uint64_t units) : ready_(&ready), total_(units), free_(units) {}
  Semaphore(const Semaphore&) = delete;

  /// Units held; given back when it dies.
  class [[nodiscard]] Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept
        : semaphore_(std::exchange(other.semaphore_, nullptr)), units_(other.units_) {}
    Hold& operator=(Hold&& other) noexcept {
      release();
      semaphore_ = std::exchange(other.semaphore_, nullptr);
      units_ = other.units_;
      return *this;
    }
    ~Hold() { release(); }
    void release() {
      if (semaphore_) std::exchange(semaphore_, nullptr)->give(units_);
    }
    explicit operator bool() const { return semaphore_ != nullptr; }

   private:
    friend class Semaphore;
    Hold(Semaphore& semaphore, uint64_t units) : semaphore_(&semaphore), units_(units) {}
    Semaphore* semaphore_ = nullptr;
    uint64_t units_ = 0;
  };

  class [[nodiscard]] Waiter {
   public:
    Waiter(Semaphore& semaphore, uint64_t wanted) : owner(semaphore), units(wanted) {}
    Waiter(Waiter&&) = delete;
    bool await_ready() noexcept {
      BYRE_ASSERT(units <= owner.total_);
      if (owner.first_ || owner.free_ < units) return false;
      owner.free_ -= units;
      return true;
    }
    void await_suspend(std::coroutine_handle<> h) noexcept {
      handle = h;
      (owner.last_ ? owner.last_->next : owner.first_) = this;
      owner.last_ = this;
    }
    Hold await_resume() const noexcept { return Hold(owner, units); }

   private:
    friend class Semaphore;
    Semaphore& owner;
    uint64_t units;
    std::coroutine_handle<> handle;
    Waiter* next = nullptr;
  };
  Waiter acquire(uint64_t units = 1) { return Waiter(*this, units); }
  uint64_t free() const { return free_; }
  uint64_t total() const { return total_; }

 private:
  void give(uint64_t units) {
    free_ += units;
    while (first_ && first_->units <= free_) {
      free_ -= first_->units;
      ready_->push(first_->handle);
      first_ = first_->next;
      if (!first_) last_ = nullptr;
    }
  }

  ReadyQueue* ready_;
  uint64_t total_;
  uint64_t free_;
  Waiter* first_ = nullptr;
  Waiter* last_ = nullptr;
};

/// One holder at a time: `auto hold = co_await mutex.lock();`
class Mutex {
 public:
  explicit Mutex(ReadyQueue& ready) : semaphore_(ready, 1) {}
  using Hold = Semaphore::Hold;
  Semaphore::Waiter lock() { return semaphore_.acquire(1); }
  bool locked() const { return semaphore_.free() == 0; }

 private:
  Semaphore semaphore_;
};

}  // namespace byre
