// SPDX-License-Identifier: Apache-2.0
#include "io/signal.h"

#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>

namespace byre {

void ignore_signals() {
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);
}

Result<SignalWatch> SignalWatch::make(Reactor& reactor, std::initializer_list<int> signals) {
  sigset_t set;
  sigset_t before;
  sigemptyset(&set);
  for (int number : signals) sigaddset(&set, number);
  Descriptor fd(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) return errno_error(errno, "signalfd");
  pthread_sigmask(SIG_BLOCK, &set, &before);
  return SignalWatch(reactor, std::move(fd), before);
}

SignalWatch::SignalWatch(SignalWatch&& other) noexcept
    : reactor_(other.reactor_),
      fd_(std::move(other.fd_)),
      before_(other.before_),
      cancelled_(other.cancelled_) {
  BYRE_ASSERT(!other.waiting_);
}

SignalWatch::~SignalWatch() {
  BYRE_ASSERT(!waiting_);
  if (fd_) pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

Task<int> SignalWatch::wait() {
  BYRE_ASSERT(!waiting_);
  while (!cancelled_) {
    signalfd_siginfo info;
    if (::read(fd_.get(), &info, sizeof info) == sizeof info) {
      co_return static_cast<int>(info.ssi_signo);
    }
    if (errno != EAGAIN && errno != EINTR) co_return errno_error(errno, "wait for a signal");
    Op op{.kind = Op::Kind::poll, .fd = fd_.get()};
    waiting_ = &op;
    co_await reactor_->perform(op);
    waiting_ = nullptr;
  }
  co_return Error(Errc::cancelled, "wait for a signal: stopped");
}

void SignalWatch::cancel() {
  cancelled_ = true;
  if (waiting_) reactor_->cancel(*waiting_);
}

}  // namespace byre
