// SPDX-License-Identifier: Apache-2.0
#include "io/signal.h"

#include <sys/signalfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

namespace byre {

namespace {

std::atomic<uint64_t> questions = 0;
static_assert(std::atomic<uint64_t>::is_always_lock_free, "a signal's handler takes no lock");

void hear_question(int) { questions.fetch_add(1, std::memory_order_relaxed); }

}  // namespace

void set_up_signals() {
  for (int number : {SIGPIPE, SIGXFSZ, SIGUSR2}) ::signal(number, SIG_IGN);
  ::signal(SIGCHLD, SIG_DFL);
  // Handled rather than ignored, so that a SignalWatch can take it.
  struct sigaction question{};
  question.sa_handler = hear_question;
  question.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &question, nullptr);
  // Last: what waited is delivered now.
  sigset_t none;
  sigemptyset(&none);
  pthread_sigmask(SIG_SETMASK, &none, nullptr);
}

uint64_t progress_questions() { return questions.load(std::memory_order_relaxed); }

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
