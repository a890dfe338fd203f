// SPDX-License-Identifier: Apache-2.0
#include "io/own_thread.h"

#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <atomic>
#include <cerrno>
#include <utility>

#include "io/descriptor.h"

namespace byre {

struct OwnThread::State {
  Reactor& reactor;
  std::function<void()> call;
  Descriptor ended_fd;  ///< Readable from the end of the call on.
  std::atomic<bool> ended = false;
  pthread_t thread{};
  bool running = false;

  static void* run(void* self) {
    State& state = *static_cast<State*>(self);
    state.call();
    state.ended.store(true);
    BYRE_ASSERT(eventfd_write(state.ended_fd.get(), 1) == 0);
    return nullptr;
  }
};

void OwnThread::Join::operator()(State* state) const {
  if (state->running) pthread_join(state->thread, nullptr);
  delete state;
}

Result<OwnThread> OwnThread::start(Reactor& reactor, std::function<void()> call) {
  OwnThread made;
  made.state_.reset(new State{.reactor = reactor, .call = std::move(call)});
  State& state = *made.state_;
  state.ended_fd = Descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!state.ended_fd) return errno_error(errno, "eventfd");
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // The new thread inherits it.
  const int failed = pthread_create(&state.thread, nullptr, State::run, &state);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (failed != 0) return errno_error(failed, "start a thread");
  state.running = true;
  return made;
}

bool OwnThread::has_ended() const { return !state_ || state_->ended.load(); }

Task<void> OwnThread::wait() const {
  while (!has_ended()) {
    Op poll{.kind = Op::Kind::poll, .fd = state_->ended_fd.get()};
    co_await state_->reactor.perform(poll);
  }
}

}  // namespace byre
