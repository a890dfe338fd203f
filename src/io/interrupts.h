// SPDX-License-Identifier: Apache-2.0
/// Interrupts: ctrl-C and its like, heard even while a hanging disk holds the reactor's thread in
/// the kernel.
///
/// A thread of its own waits for SIGINT, SIGTERM and SIGHUP (those that were not ignored when the
/// program began; but SIGTERM always when `always_term`: nothing else ends a server):
///   1. The first one ends wait(), on the reactor's thread.
///   2. If that thread does not come to it within `patience`, this one says `hung` on stderr.
///   3. The second one ends the process at once, with the exit code 128 + its number; but one that
///      comes within `grace` of the first is an echo of it (timeout(1) signals its child and then
///      the child's group).
/// While disarmed the first one ends the process already.
/// A process whose thread hangs uninterruptibly is gone only when the disk lets go; nothing in user
/// space can change that.
/// Not here: other signals, as a coroutine waits for them (signal.h).
#pragma once

#include <signal.h>

#include <atomic>
#include <memory>
#include <string>

#include "io/descriptor.h"
#include "io/reactor.h"

namespace byre {

class Interrupts {
 public:
  struct Options {
    int64_t patience = 1 * kSecond;
    int64_t grace = 300 * kMillisecond;
    bool always_term = false;
    std::string hung =
        "interrupted, but the disk does not answer; interrupt again to exit at once\n";
  };
  /// Armed.  One at a time.
  static Result<std::unique_ptr<Interrupts>> make(Reactor& reactor, Options options);
  Interrupts(const Interrupts&) = delete;
  ~Interrupts();

  /// The first signal.  Errc::cancelled after cancel().
  Task<int> wait();
  void cancel();

  void arm() { armed_.store(true); }
  void disarm() { armed_.store(false); }
  /// The signal that came, or 0.
  int seen() const { return seen_.load(); }

 private:
  Interrupts(Reactor& reactor, Options options);
  static void* run(void* self);
  void listen();

  Reactor& reactor_;
  const Options options_;
  sigset_t signals_;
  sigset_t before_;
  Descriptor signal_fd_;
  Descriptor wake_fd_;  ///< An eventfd that wakes wait().
  Descriptor stop_fd_;  ///< An eventfd that ends the thread.
  pthread_t thread_;
  bool running_ = false;
  bool cancelled_ = false;
  std::atomic<bool> armed_ = true;
  std::atomic<bool> heard_ = false;
  std::atomic<int> seen_ = 0;
};

}  // namespace byre
