// SPDX-License-Identifier: Apache-2.0
/// Signals: what they mean to a process, and some of them as something that a coroutine waits for.
///
/// | signal                | meaning                                                              |
/// |-----------------------|----------------------------------------------------------------------|
/// | INT, TERM, HUP        | end in order (interrupts.h, cli/session.h)                           |
/// | USR1                  | a question: how far is it? (asked()); a server's is its own          |
/// | USR2, PIPE, XFSZ      | nothing: the call says what went wrong, if anything did              |
/// | CHLD, WINCH, the rest | the system's default                                                 |
#pragma once

#include <signal.h>

#include <cstdint>
#include <initializer_list>

#include "io/descriptor.h"
#include "io/reactor.h"

namespace byre {

/// For main(), before anything else.  A parent may have blocked signals, or ignore SIGCHLD, and a
/// program inherits that: here it ends, but INT, TERM, HUP and QUIT that are ignored stay so
/// (nohup(1), and shells for what they start in the background, mean it).
void set_up_signals();

/// How often SIGUSR1 has come since set_up_signals(), outside of a SignalWatch that takes it.
uint64_t progress_questions();

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
