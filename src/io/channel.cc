// SPDX-License-Identifier: Apache-2.0
#include "io/channel.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

namespace byre {

namespace {

bool is_unix_socket(int fd) {
  int domain = 0;
  socklen_t size = sizeof domain;
  return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX;
}

}  // namespace

Channel::Channel(Reactor& reactor, Socket socket) : reactor_(reactor), peer_(socket.peer()) {
  socket_ = Descriptor(socket.release());
  in_ = out_ = socket_.get();
  // Only these pass descriptors; others, and simulated ones, are received from as usual.
  polls_ = is_unix_socket(in_);
}

Channel::Channel(Reactor& reactor, int in, int out)
    : reactor_(reactor), in_(in), out_(out), polls_(true), peer_("stdio") {}

std::unique_ptr<Channel> Channel::over_streams(Reactor& reactor, int in, int out) {
  return std::unique_ptr<Channel>(new Channel(reactor, in, out));
}

Channel::~Channel() { BYRE_ASSERT(!receiving_ && !sending_); }

int64_t Channel::receive_now(MutableBytes data) {
  if (!socket_) {
    const ssize_t got = ::read(in_, data.data(), data.size());
    return got < 0 ? -errno : got;
  }
  iovec piece{.iov_base = data.data(), .iov_len = data.size()};
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kPassedMax * sizeof(int))> control;
  msghdr message{.msg_iov = &piece,
                 .msg_iovlen = 1,
                 .msg_control = control.data(),
                 .msg_controllen = control.size()};
  const ssize_t got = ::recvmsg(in_, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) return -errno;
  for (cmsghdr* head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
    if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(head) + i * sizeof fd, sizeof fd);
      Descriptor one(fd);
      if (passed_.size() < kPassedMax) passed_.push_back(std::move(one));
    }
  }
  return got;
}

Task<size_t> Channel::receive_some(MutableBytes data) {
  Op op{.kind = polls_ ? Op::Kind::poll : Op::Kind::receive,
        .fd = in_,
        .length = polls_ ? 0 : data.size(),
        .buffer = polls_ ? nullptr : data.data()};
  while (!ended_) {
    BYRE_ASSERT(!receiving_);
    receiving_ = &op;
    int64_t result = co_await reactor_.perform(op);
    receiving_ = nullptr;
    if (ended_) break;
    if (result >= 0 && polls_) result = receive_now(data);
    if (result >= 0) co_return static_cast<size_t>(result);
    if (result != -EINTR && result != -EAGAIN) {
      co_return errno_error(static_cast<int>(-result), "receive");
    }
  }
  co_return 0;
}

Task<void> Channel::send_all(Bytes data) {
  if (!socket_) {
    co_await send_stream(data);
    co_return;
  }
  while (!data.empty()) {
    int64_t result = -EPIPE;
    if (!shut_) {
      Op op{.kind = Op::Kind::send,
            .fd = out_,
            .length = data.size(),
            .buffer = const_cast<std::byte*>(data.data())};
      BYRE_ASSERT(!sending_);
      sending_ = &op;
      result = co_await reactor_.perform(op);
      sending_ = nullptr;
    }
    if (result == -EINTR || result == -EAGAIN) continue;
    if (result < 0) co_await fail(errno_error(static_cast<int>(-result), "send"));
    data = data.subspan(static_cast<size_t>(result));
  }
}

/// A worker waits until there is room; who reads slowly holds up nobody else.
Task<void> Channel::send_stream(Bytes data) {
  constexpr int kLookMs = 100;
  while (!data.empty()) {
    ssize_t result = -1;
    int problem = EPIPE;
    const auto work = [&] {
      pollfd ready{.fd = out_, .events = POLLOUT, .revents = 0};
      while (!shut_ && poll(&ready, 1, kLookMs) == 0) {
      }
      if (shut_) return;
      // So much never waits once a pipe has told that it has room.
      result = ::write(out_, data.data(), std::min<size_t>(data.size(), PIPE_BUF));
      problem = errno;
    };
    co_await reactor_.offload(work);
    if (result < 0 && (problem == EINTR || problem == EAGAIN)) continue;
    if (result < 0) co_await fail(errno_error(problem, "write"));
    data = data.subspan(static_cast<size_t>(result));
  }
}

void Channel::stop_receiving() {
  if (std::exchange(ended_, true)) return;
  if (receiving_) reactor_.cancel(*receiving_);
}

void Channel::shutdown() {
  stop_receiving();
  if (shut_.exchange(true)) return;
  if (socket_) ::shutdown(socket_.get(), SHUT_RDWR);
  if (sending_) reactor_.cancel(*sending_);
}

}  // namespace byre
