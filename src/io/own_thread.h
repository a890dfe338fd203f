// SPDX-License-Identifier: Apache-2.0
/// OwnThread: one call that may block for as long as it likes, on a thread of its own.
///
///     OwnThread thread = co_await OwnThread::start(reactor, [fd] { ioctl(fd, NBD_DO_IT); });
///     co_await thread.wait();   // on the reactor's thread, once the call has returned
///
/// Reactor::offload() has a few threads, which work that can always go on shares; a call that waits
/// for requests which this very process must answer would take one from those who answer them.
/// Invariant: the thread takes no signals, and has ended when this object has; so whoever destroys
/// it has seen to it that the call returns.
/// Cost: a thread, an eventfd.
/// Not here: short calls (Reactor::offload).
#pragma once

#include <functional>
#include <memory>

#include "coro/task.h"
#include "io/reactor.h"

namespace byre {

class OwnThread {
 public:
  OwnThread() = default;
  OwnThread(OwnThread&& other) noexcept = default;
  OwnThread& operator=(OwnThread&& other) noexcept = default;

  /// `call` touches nothing that the reactor's thread touches before has_ended() says so.
  static Result<OwnThread> start(Reactor& reactor, std::function<void()> call);

  bool has_ended() const;
  /// Several may wait.
  Task<void> wait() const;

 private:
  struct State;
  struct Join {
    void operator()(State* state) const;
  };
  std::unique_ptr<State, Join> state_;
};

}  // namespace byre
