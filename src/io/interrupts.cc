// SPDX-License-Identifier: Apache-2.0
#include "io/interrupts.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>

namespace byre {

namespace {

void raise_event(const Descriptor& fd) {
  const uint64_t one = 1;
  // An eventfd takes 2^64 - 2 of them before it would refuse one.
  BYRE_ASSERT(write(fd.get(), &one, sizeof one) == sizeof one);
}

}  // namespace

Interrupts::Interrupts(Reactor& reactor, Options options)
    : reactor_(reactor), options_(std::move(options)) {
  sigemptyset(&signals_);
  for (int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction action;
    // nohup(1), and shells for what they start in the background, mean it.
    const bool ignored = sigaction(number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
    // Blocked signals wait for their reader even if they are ignored (signalfd(2)).
    if (!ignored || (number == SIGTERM && options_.always_term)) sigaddset(&signals_, number);
  }
}

Result<std::unique_ptr<Interrupts>> Interrupts::make(Reactor& reactor, Options options) {
  std::unique_ptr<Interrupts> made(new Interrupts(reactor, std::move(options)));
  made->signal_fd_ = Descriptor(signalfd(-1, &made->signals_, SFD_CLOEXEC | SFD_NONBLOCK));
  made->wake_fd_ = Descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  made->stop_fd_ = Descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!made->signal_fd_ || !made->wake_fd_ || !made->stop_fd_) {
    return errno_error(errno, "wait for signals");
  }
  // The reactor's workers take no signals, so with this nobody does but the new thread, which
  // starts with all of them blocked, too.
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &made->before_);
  const int failed = pthread_create(&made->thread_, nullptr, run, made.get());
  made->running_ = failed == 0;
  pthread_sigmask(SIG_SETMASK, &made->before_, nullptr);
  if (failed != 0) return errno_error(failed, "start a thread that waits for signals");
  pthread_sigmask(SIG_BLOCK, &made->signals_, nullptr);
  return made;
}

Interrupts::~Interrupts() {
  if (!running_) return;
  raise_event(stop_fd_);
  pthread_join(thread_, nullptr);
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

void* Interrupts::run(void* self) {
  static_cast<Interrupts*>(self)->listen();
  return nullptr;
}

void Interrupts::listen() {
  bool told = false;
  std::chrono::steady_clock::time_point first;
  for (;;) {
    pollfd fds[] = {{signal_fd_.get(), POLLIN, 0}, {stop_fd_.get(), POLLIN, 0}};
    const bool waits_for_reactor = seen_.load() != 0 && !told;
    const timespec patience{options_.patience / kSecond, options_.patience % kSecond};
    const int ready = ppoll(fds, 2, waits_for_reactor ? &patience : nullptr, nullptr);
    if (ready == 0) {
      told = true;
      if (!heard_.load() && write(STDERR_FILENO, options_.hung.data(), options_.hung.size()) < 0) {
        continue;  // Nobody reads it.
      }
    }
    if (ready <= 0) continue;
    if (fds[1].revents != 0) return;
    signalfd_siginfo info;
    if (read(signal_fd_.get(), &info, sizeof info) != sizeof info) continue;
    const int number = static_cast<int>(info.ssi_signo);
    const auto now = std::chrono::steady_clock::now();
    if (armed_.load() && seen_.load() != 0 &&
        now - first < std::chrono::nanoseconds(options_.grace)) {
      continue;
    }
    if (!armed_.load() || seen_.load() != 0) _exit(128 + number);
    first = now;
    seen_.store(number);
    raise_event(wake_fd_);
  }
}

Task<int> Interrupts::wait() {
  while (!cancelled_ && seen_.load() == 0) {
    Op poll{.kind = Op::Kind::poll, .fd = wake_fd_.get()};
    co_await reactor_.perform(poll);
  }
  heard_.store(true);
  if (seen_.load() == 0) co_return Error(Errc::cancelled, "wait for signals: stopped");
  co_return seen_.load();
}

void Interrupts::cancel() {
  cancelled_ = true;
  raise_event(wake_fd_);
}

}  // namespace byre
