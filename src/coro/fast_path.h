// SPDX-License-Identifier: Apache-2.0
/// FastPath: a step that nearly always ends at once, and only else needs a coroutine.
///
///     struct Step {
///       bool try_now();       // true: it is done.  False: nothing is done that wait() does again
///       Task<void> wait();    // the rest
///     };
///     co_await FastPath(Step(...));
///
/// Where try_now() says yes, the caller goes on in the same turn, and no frame is made.  Else
/// wait() begins in the same turn; its error ends the caller, as that of any Task does.
/// Not here: steps that give a value.
#pragma once

#include <coroutine>
#include <utility>

#include "coro/task.h"

namespace byre {

template <class Step>
class [[nodiscard]] FastPath {
 public:
  explicit FastPath(Step step) : step_(std::move(step)) {}
  FastPath(const FastPath&) = delete;
  ~FastPath() = default;

  bool await_ready() { return step_.try_now(); }
  template <class Promise>
  std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> caller) {
    rest_ = step_.wait();
    return Task<void>::ValueAwaiter(rest_.handle()).await_suspend(caller);
  }
  void await_resume() const noexcept {}

 private:
  Step step_;
  Task<void> rest_;
};

}  // namespace byre
