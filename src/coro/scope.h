// SPDX-License-Identifier: Apache-2.0
/// Scope: coroutines that run beside their parent, and are all joined before it goes on.
///
/// spawn() starts a Task at once, in the caller's turn, until its first wait; join() waits for all
/// and gives the first error.  A Scope that dies with children running is a bug (asserted).
/// forget() is for a simulated power loss: the children are abandoned with their process, and
/// destroyed where they stand.
/// Cost: one frame a child.
#pragma once

#include <coroutine>
#include <vector>

#include "coro/ready_queue.h"
#include "coro/task.h"

namespace byre {

class Scope {
 public:
  explicit Scope(ReadyQueue& ready) : ready_(&ready) {}
  Scope(const Scope&) = delete;
  ~Scope() { BYRE_ASSERT(running_ == 0); }

  void spawn(Task<void> task) {
    ++running_;
    Runner runner = run(std::move(task), *this);
    link(runner.handle.promise());
    runner.handle.resume();
  }
  size_t running() const { return running_; }

  /// Waits until nothing runs; the first error since the last join.
  Task<void> join() {
    while (running_ != 0) co_await Idle(*this);
    if (error_) co_await fail(std::move(error_));
  }

  /// Destroys every child where it stands.
  void forget() {
    while (first_) {
      auto handle = std::coroutine_handle<Runner::promise_type>::from_promise(*first_);
      unlink(*first_);
      handle.destroy();
    }
    running_ = 0;
    waiters_.clear();
  }

 private:
  struct Runner {
    struct promise_type {
      promise_type* next = nullptr;
      promise_type* previous = nullptr;
      static void* operator new(size_t size) { return allocate_frame(size); }
      static void operator delete(void* frame, size_t size) noexcept { free_frame(frame, size); }
      Runner get_return_object() noexcept {
        return {std::coroutine_handle<promise_type>::from_promise(*this)};
      }
      std::suspend_always initial_suspend() noexcept { return {}; }
      std::suspend_never final_suspend() noexcept { return {}; }
      void return_void() {}
      [[noreturn]] void unhandled_exception() noexcept { std::terminate(); }
    };
    std::coroutine_handle<promise_type> handle;
  };

  struct Self {  // Gives a coroutine its own promise.
    Runner::promise_type* promise = nullptr;
    Self() = default;
    bool await_ready() const noexcept { return false; }
    bool await_suspend(std::coroutine_handle<Runner::promise_type> handle) noexcept {
      promise = &handle.promise();
      return false;
    }
    Runner::promise_type* await_resume() const noexcept { return promise; }
  };

  static Runner run(Task<void> task, Scope& scope) {
    Runner::promise_type* self = co_await Self();
    Result<void> result = co_await std::move(task).result();
    scope.unlink(*self);
    if (!result && !scope.error_) scope.error_ = std::move(result).error();
    if (--scope.running_ == 0) {
      for (std::coroutine_handle<> waiter : scope.waiters_) scope.ready_->push(waiter);
      scope.waiters_.clear();
    }
  }

  struct Idle {
    Scope& scope;
    explicit Idle(Scope& s) : scope(s) {}
    bool await_ready() const noexcept { return scope.running_ == 0; }
    void await_suspend(std::coroutine_handle<> handle) { scope.waiters_.push_back(handle); }
    void await_resume() const noexcept {}
  };

  void link(Runner::promise_type& child) {
    child.next = first_;
    if (first_) first_->previous = &child;
    first_ = &child;
  }
  void unlink(Runner::promise_type& child) {
    if (child.previous) child.previous->next = child.next;
    if (child.next) child.next->previous = child.previous;
    if (first_ == &child) first_ = child.next;
    child.next = child.previous = nullptr;
  }

  ReadyQueue* ready_;
  size_t running_ = 0;
  Runner::promise_type* first_ = nullptr;
  std::vector<std::coroutine_handle<>> waiters_;
  Error error_;
};

}  // namespace byre
