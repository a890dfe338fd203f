// SPDX-License-Identifier: Apache-2.0
/// Signals as something that a coroutine waits for.
#pragma once

#include <signal.h>

#include <initializer_list>

#include "io/descriptor.h"
#include "io/reactor.h"

namespace byre {

/// For main(): a peer that is gone (SIGPIPE) or a file that is too large (SIGXFSZ) is an error of
/// the call, not the end of the process.
void ignore_signals();

/// Takes over some signals, SIGINT and SIGTERM above all, while it lives.  Make it before any
/// thread but the reactor's: a thread that does not block them would get them instead.
class SignalWatch {
 public:
  static Result<SignalWatch> make(Reactor& reactor, std::initializer_list<int> signals);
  SignalWatch(SignalWatch&& other) noexcept;
  ~SignalWatch();

  /// The next of them.  Errc::cancelled after cancel().
  Task<int> wait();
  /// Ends wait(), and each later one.
  void cancel();

 private:
  SignalWatch(Reactor& reactor, Descriptor fd, const sigset_t& before)
      : reactor_(&reactor), fd_(std::move(fd)), before_(before) {}

  Reactor* reactor_;
  Descriptor fd_;
  sigset_t before_;
  Op* waiting_ = nullptr;
  bool cancelled_ = false;
};

}  // namespace byre
