// SPDX-License-Identifier: Apache-2.0
/// Gate: where requests enter, so that somebody else can see to it that none runs.
///
///     const Gate::Pass pass = co_await gate.enter();   // one for each request, until it has ended
///
/// close() lets nobody in from then on; those who are inside are not disturbed, and when the last
/// one leaves, the event that close() was given is notified.  open() undoes one close(): several
/// may hold a gate closed.  Who waits outside enters in order of arrival.
/// Whoever holds a pass must not wait for somebody who closes this gate.
/// Invariant: while it is closed nobody enters.
/// Cost: a comparison and an addition to enter, the same to leave; no frame.
/// Not here: which gates a change must close (block/drain.h).
#pragma once

#include <algorithm>
#include <coroutine>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "coro/event.h"

namespace byre {

class Gate {
 public:
  explicit Gate(ReadyQueue& ready) : ready_(&ready) {}
  Gate(const Gate&) = delete;
  ~Gate() { BYRE_ASSERT(inside_ == 0 && !first_); }

  class [[nodiscard]] Pass {
   public:
    Pass() = default;
    Pass(Pass&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
    Pass& operator=(Pass&& other) noexcept {
      release();
      gate_ = std::exchange(other.gate_, nullptr);
      return *this;
    }
    ~Pass() { release(); }
    void release() {
      if (gate_) std::exchange(gate_, nullptr)->leave();
    }
    explicit operator bool() const { return gate_ != nullptr; }

   private:
    friend class Gate;
    explicit Pass(Gate& gate) : gate_(&gate) {}
    Gate* gate_ = nullptr;
  };

  class [[nodiscard]] Waiter {
   public:
    explicit Waiter(Gate& gate) : gate_(gate) {}
    Waiter(Waiter&&) = delete;
    ~Waiter() = default;
    bool await_ready() noexcept {
      if (gate_.is_closed()) return false;
      ++gate_.inside_;
      return true;
    }
    void await_suspend(std::coroutine_handle<> handle) noexcept {
      handle_ = handle;
      (gate_.last_ ? gate_.last_->next_ : gate_.first_) = this;
      gate_.last_ = this;
    }
    Pass await_resume() const noexcept { return Pass(gate_); }

   private:
    friend class Gate;
    Gate& gate_;
    std::coroutine_handle<> handle_;
    Waiter* next_ = nullptr;
  };
  Waiter enter() { return Waiter(*this); }

  /// `idle` is notified whenever nobody is inside any more, until open() is called with it.
  void close(Event& idle) { closed_by_.push_back(&idle); }
  void open(Event& idle) {
    const auto by = std::ranges::find(closed_by_, &idle);
    BYRE_ASSERT(by != closed_by_.end());
    closed_by_.erase(by);
    if (is_closed()) return;
    // They count as inside from here on: who closes it now must wait for them.
    last_ = nullptr;
    for (Waiter* waiter = std::exchange(first_, nullptr); waiter; waiter = waiter->next_) {
      ++inside_;
      ready_->push(waiter->handle_);
    }
  }
  bool is_closed() const { return !closed_by_.empty(); }
  bool is_idle() const { return inside_ == 0; }
  /// The process died: nobody is inside or waits any more.
  void forget() {
    inside_ = 0;
    first_ = last_ = nullptr;
  }

 private:
  void leave() {
    if (--inside_ != 0) return;
    for (Event* idle : closed_by_) idle->notify();
  }

  ReadyQueue* ready_;
  uint64_t inside_ = 0;
  std::vector<Event*> closed_by_;
  Waiter* first_ = nullptr;
  Waiter* last_ = nullptr;
};

}  // namespace byre
