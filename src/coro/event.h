// SPDX-License-Identifier: Apache-2.0
/// Event: coroutines that wait until something has happened.
///
/// set() wakes all who wait and lets later ones pass; reset() closes it again.  notify() wakes
/// those who wait now and leaves it closed: they look again at what they wait for. Waiters are
/// woken through the ready queue, in order of arrival.  A waiter must not be destroyed while it
/// waits (task.h, 3), except when the whole reactor is given up.
#pragma once

#include <coroutine>

#include "coro/ready_queue.h"

namespace byre {

class Event {
 public:
  explicit Event(ReadyQueue& ready) : ready_(&ready) {}
  Event(const Event&) = delete;

  bool is_set() const { return set_; }
  void set() {
    set_ = true;
    notify();
  }
  void reset() { set_ = false; }
  void notify() {
    Waiter* waiter = first_;
    first_ = last_ = nullptr;
    while (waiter) {
      Waiter* next = waiter->next;
      ready_->push(waiter->handle);
      waiter = next;
    }
  }
  bool has_waiters() const { return first_ != nullptr; }

  class [[nodiscard]] Waiter {
   public:
    explicit Waiter(Event& e) : event(e) {}
    Waiter(Waiter&&) = delete;
    bool await_ready() const noexcept { return event.set_; }
    void await_suspend(std::coroutine_handle<> h) noexcept {
      handle = h;
      (event.last_ ? event.last_->next : event.first_) = this;
      event.last_ = this;
    }
    void await_resume() const noexcept {}

   private:
    friend class Event;
    Event& event;
    std::coroutine_handle<> handle;
    Waiter* next = nullptr;
  };
  Waiter wait() { return Waiter(*this); }

 private:
  ReadyQueue* ready_;
  bool set_ = false;
  Waiter* first_ = nullptr;
  Waiter* last_ = nullptr;
};

}  // namespace byre
