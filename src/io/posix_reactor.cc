// SPDX-License-Identifier: Apache-2.0
#include "io/posix_reactor.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "io/system_reactor.h"

namespace byre {

namespace {

/// How many file Ops run side by side.
constexpr size_t kFileThreads = 16;

class PosixReactor final : public SystemReactor {
 public:
  PosixReactor() : file_workers_(completions_, kFileThreads) {}

  std::string_view name() const override { return "threads"; }
  void submit(Op& op) override;
  void cancel(Op& op) override;
  void turn(Wait wait) override;

 private:
  bool read_cached(Op& op);
  bool start_connect(Op& op);
  bool attempt(Op& op, short revents);
  void attempt_or_wait(Op& op) {
    if (!attempt(op, 0)) sockets_.add(op);
  }
  void wait_for_descriptors(int64_t timeout_ns);

  OpList sockets_;  ///< Those that wait for their descriptor.
  std::vector<pollfd> polled_;
  WorkerPool file_workers_;
};

void PosixReactor::submit(Op& op) {
  begin(op);
  switch (op.kind) {
    case Op::Kind::read:
      if (read_cached(op)) return;
      [[fallthrough]];
    case Op::Kind::write:
    case Op::Kind::sync:
    case Op::Kind::allocate:
    case Op::Kind::punch:
    case Op::Kind::zero_range:
    case Op::Kind::truncate:
      return give_to_workers(file_workers_, op);
    case Op::Kind::offload:
      return give_to_workers(workers_, op);
    case Op::Kind::timer:
      return timers_.add(op);
    case Op::Kind::receive:
    case Op::Kind::send:
      return attempt_or_wait(op);
    case Op::Kind::connect:
      if (!start_connect(op)) sockets_.add(op);
      return;
    case Op::Kind::accept:  // The listener may be in blocking mode: only once it is readable.
    case Op::Kind::poll:
      return sockets_.add(op);
  }
}

void PosixReactor::cancel(Op& op) {
  if (!op.pending) return;
  switch (op.kind) {
    case Op::Kind::read:
    case Op::Kind::write:
    case Op::Kind::sync:
    case Op::Kind::allocate:
    case Op::Kind::punch:
    case Op::Kind::zero_range:
    case Op::Kind::truncate:
      if (!take_back(file_workers_, op)) return;
      break;
    case Op::Kind::offload:
      if (!take_back(workers_, op)) return;
      break;
    case Op::Kind::timer:
      timers_.remove(op);
      break;
    case Op::Kind::accept:
    case Op::Kind::connect:
    case Op::Kind::receive:
    case Op::Kind::send:
    case Op::Kind::poll:
      sockets_.remove(op);
      break;
  }
  complete(op, -ECANCELED);
}

void PosixReactor::turn(Wait wait) {
  complete_finished();
  complete_timers();
  int64_t timeout_ns = 0;
  if (wait == Wait::yes && ready().empty()) {
    BYRE_ASSERT(outstanding_ > 0);
    timeout_ns = until_next_timer();
  }
  if (timeout_ns != 0 || !sockets_.empty()) {
    wait_for_descriptors(timeout_ns);
    complete_finished();
    complete_timers();
  }
  run_ready();
}

/// Reads what is in the page cache at once, here.
bool PosixReactor::read_cached(Op& op) {
  // Past the page cache RWF_NOWAIT would sleep until the disk answers.
  if (fcntl(op.fd, F_GETFL) & O_DIRECT) return false;
  iovec one;
  const IoVec memory = op.memory(one);
  const ssize_t got = preadv2(op.fd, memory.data(), static_cast<int>(memory.size()),
                              static_cast<off_t>(op.offset), RWF_NOWAIT);
  // Linux 5.9 and 5.10 may say 0 before the end of the file (preadv2(2), BUGS).
  if (got <= 0) return false;
  complete(op, got);
  return true;
}

/// True when `op` is complete.
bool PosixReactor::start_connect(Op& op) {
  const int flags = fcntl(op.fd, F_GETFL);
  if (flags < 0 || fcntl(op.fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    complete(op, -errno);
    return true;
  }
  const int result = connect(op.fd, op.address, op.address_length) == 0 ? 0 : -errno;
  fcntl(op.fd, F_SETFL, flags);  // The handshake goes on by itself.
  if (result == -EINPROGRESS) return false;
  complete(op, result);
  return true;
}

/// Tries a socket Op without waiting.  True when it is complete.
bool PosixReactor::attempt(Op& op, short revents) {
  int64_t result = -EINVAL;
  switch (op.kind) {
    case Op::Kind::receive:
      result = recv(op.fd, op.buffer, op.length, MSG_DONTWAIT);
      break;
    case Op::Kind::send:
      result = send(op.fd, op.buffer, op.length, MSG_DONTWAIT | MSG_NOSIGNAL);
      break;
    case Op::Kind::accept:
      result = accept4(op.fd, nullptr, nullptr, SOCK_CLOEXEC);
      break;
    case Op::Kind::connect: {
      int error = 0;
      socklen_t size = sizeof error;
      result = getsockopt(op.fd, SOL_SOCKET, SO_ERROR, &error, &size);
      if (result == 0 && error != 0) {
        errno = error;
        result = -1;
      }
      break;
    }
    case Op::Kind::poll:
      if (revents & POLLNVAL) {
        errno = EBADF;
        result = -1;
      } else {
        result = revents;
      }
      break;
    default:
      BYRE_ASSERT(false);
  }
  if (result < 0) {
    if (errno == EAGAIN || errno == EINTR) return false;
    result = -errno;
  }
  complete(op, result);
  return true;
}

void PosixReactor::wait_for_descriptors(int64_t timeout_ns) {
  polled_.clear();
  if (with_workers_ > 0) polled_.push_back({completions_.wake_fd(), POLLIN, 0});
  for (const Op* op = sockets_.first(); op; op = op->next) {
    const bool out = op->kind == Op::Kind::send || op->kind == Op::Kind::connect;
    polled_.push_back({op->fd, static_cast<short>(out ? POLLOUT : POLLIN), 0});
  }
  const timespec timeout{timeout_ns / kSecond, timeout_ns % kSecond};
  const int ready_count =
      ppoll(polled_.data(), polled_.size(), timeout_ns < 0 ? nullptr : &timeout, nullptr);
  if (ready_count <= 0) return;  // Interrupted, or time is up: the caller looks again.

  const pollfd* polled = polled_.data();
  if (with_workers_ > 0 && (polled++)->revents != 0) {
    // Before the completions are taken: a later one makes it readable again.
    eventfd_t count;
    eventfd_read(completions_.wake_fd(), &count);
  }
  for (Op* op = sockets_.first(); op; ++polled) {
    Op* const next = op->next;
    if (polled->revents != 0 && attempt(*op, polled->revents)) sockets_.remove(*op);
    op = next;
  }
}

}  // namespace

std::unique_ptr<Reactor> make_posix_reactor() { return std::make_unique<PosixReactor>(); }

}  // namespace byre
