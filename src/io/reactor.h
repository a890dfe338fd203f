// SPDX-License-Identifier: Apache-2.0
/// Reactor: all that byre may know of the world.  Nothing else asks for time, chance or the
/// kernel's I/O (docs/simulation.md).
///
/// One thread, one reactor.  A coroutine submits an Op and sleeps; the reactor completes it and
/// puts the coroutine into the ready queue; turn() runs what is ready. Implementations:
/// uring_reactor.h, posix_reactor.h (worker threads, where io_uring is forbidden),
/// sim/sim_reactor.h (virtual time, seeded order, faults).
/// Not here: short transfers, EINTR, alignment (file.h, socket.h).
#pragma once

#include <coroutine>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "coro/ready_queue.h"
#include "coro/task.h"
#include "io/op.h"

namespace byre {

class Reactor {
 public:
  Reactor() = default;
  Reactor(const Reactor&) = delete;
  virtual ~Reactor() = default;

  /// What it is, for people: "io_uring", "threads".
  virtual std::string_view name() const { return "reactor"; }
  virtual Instant now() const = 0;
  virtual uint64_t random() = 0;
  /// The reactor has `op` from here until its waiter is in the ready queue.
  virtual void submit(Op& op) = 0;
  /// It still completes, perhaps with -ECANCELED.  Only timers and socket Ops are sure to end soon.
  virtual void cancel(Op& op) = 0;
  enum class Wait : uint8_t { no, yes };
  /// Submits what was asked, reaps what completed (waits for something if asked to and nothing is
  /// ready), and runs the coroutines that are ready now, once each.
  virtual void turn(Wait wait) = 0;

  ReadyQueue& ready() { return ready_; }

  /// `int64_t result = co_await reactor.perform(op)`.
  class [[nodiscard]] Perform {
   public:
    Perform(Reactor& reactor, Op& op) : reactor_(reactor), op_(op) {}
    Perform(Perform&&) = delete;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) {
      op_.waiter = handle;
      reactor_.submit(op_);
    }
    int64_t await_resume() const noexcept { return op_.result; }

   private:
    Reactor& reactor_;
    Op& op_;
  };
  Perform perform(Op& op) { return Perform(*this, op); }

  /// Sleeps `ns` nanoseconds.
  Task<void> sleep(int64_t ns);

  /// Runs `work()` on a worker thread (in the simulator: here, after a random delay) and waits for
  /// it.  `work` must touch nothing that the reactor's thread touches meanwhile.
  template <class Work>
  Task<void> offload(Work work) {
    Op op{.kind = Op::Kind::offload,
          .work = [](void* w) { (*static_cast<Work*>(w))(); },
          .argument = &work};
    co_await perform(op);
  }

  /// Runs `task` to its end: the main loop of a tool or a test.
  template <class T>
  Result<T> run(Task<T> task) {
    std::optional<Result<T>> result;
    Top top = drive(std::move(task), result);
    top.handle.resume();
    while (!result) turn(Wait::yes);
    top.handle.destroy();
    return *std::move(result);
  }

 private:
  struct Top {
    struct promise_type {
      Top get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
      std::suspend_always initial_suspend() noexcept { return {}; }
      std::suspend_always final_suspend() noexcept { return {}; }
      void return_void() {}
      [[noreturn]] void unhandled_exception() noexcept { std::terminate(); }
    };
    std::coroutine_handle<promise_type> handle;
  };
  template <class T>
  static Top drive(Task<T> task, std::optional<Result<T>>& result) {
    result.emplace(co_await std::move(task).result());
  }

  ReadyQueue ready_;
};

/// Which real reactor to use.
enum class ReactorKind : uint8_t {
  automatic,  ///< io_uring, or threads where the kernel or a sandbox forbids it.
  uring,
  posix,
};
/// Makes the reactor of this thread, which must be the one that turns it.  Fails only if `kind`
/// names one that cannot run here.
Result<std::unique_ptr<Reactor>> make_reactor(ReactorKind kind = ReactorKind::automatic);

}  // namespace byre
