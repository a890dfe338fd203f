// SPDX-License-Identifier: Apache-2.0
#include "io/service_manager.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <utility>

#include "base/cat.h"
#include "io/descriptor.h"

namespace byre {

namespace {

/// A number that is written out in full; 0 where there is none.
int64_t number_in(const char* text) {
  int64_t value = 0;
  if (!text) return 0;
  const char* const end = text + std::strlen(text);
  const auto read = std::from_chars(text, end, value);
  return read.ec == std::errc() && read.ptr == end && value > 0 ? value : 0;
}

/// A status is one line of a message.
std::string one_line(std::string text) {
  std::ranges::replace(text, '\n', ' ');
  return text;
}

/// 0, or the errno.
int send_datagram(const std::string& to, std::string_view message) {
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  if (to.size() >= sizeof address.sun_path) return ENAMETOOLONG;
  std::memcpy(address.sun_path, to.data(), to.size());
  const Descriptor fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return errno;
  iovec piece{.iov_base = const_cast<char*>(message.data()), .iov_len = message.size()};
  msghdr header{.msg_name = &address,
                .msg_namelen = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + to.size()),
                .msg_iov = &piece,
                .msg_iovlen = 1};
  return sendmsg(fd.get(), &header, MSG_NOSIGNAL) < 0 ? errno : 0;
}

}  // namespace

ServiceManager::ServiceManager(Reactor& reactor, const std::function<const char*(const char*)>& get)
    : reactor_(reactor) {
  const char* const socket = get("NOTIFY_SOCKET");
  if (!socket || (socket[0] != '/' && socket[0] != '@') || socket[1] == 0) return;
  address_ = socket;
  if (address_[0] == '@') address_[0] = '\0';
  const int64_t process = number_in(get("WATCHDOG_PID"));
  if (process != 0 && process != getpid()) return;
  constexpr int64_t kLongest = 1'000'000'000'000;  // Microseconds.
  watchdog_ns_ = std::min(number_in(get("WATCHDOG_USEC")), kLongest) * 1000 / 2;
}

ServiceManager::~ServiceManager() { BYRE_ASSERT(!timer_.pending); }

Task<void> ServiceManager::tell(std::string message) {
  constexpr int kTries = 100;
  if (!is_there()) co_return;
  for (int i = 0; i < kTries; ++i) {
    const int failure = send_datagram(address_, message);
    // Its queue is full: it will be read soon.
    if (failure != EAGAIN && failure != ENOBUFS && failure != EINTR) co_return;
    co_await reactor_.sleep(10 * kMillisecond);
  }
}

Task<void> ServiceManager::tell_ready(std::string status) {
  co_await tell(cat("READY=1\nSTATUS=", one_line(std::move(status)), "\n"));
}

Task<void> ServiceManager::tell_stopping() {
  if (std::exchange(stopping_told_, true)) co_return;
  co_await tell("STOPPING=1\nSTATUS=ending: what was answered is made durable\n");
}

Task<void> ServiceManager::tell_status(std::string status) {
  co_await tell(cat("STATUS=", one_line(std::move(status)), "\n"));
}

Task<void> ServiceManager::feed_watchdog() {
  while (watchdog_ns_ != 0 && !stopped_) {
    co_await tell("WATCHDOG=1\n");
    if (stopped_) co_return;
    timer_ = Op{.kind = Op::Kind::timer, .deadline = reactor_.now() + watchdog_ns_};
    co_await reactor_.perform(timer_);
  }
}

void ServiceManager::stop() {
  stopped_ = true;
  if (timer_.pending) reactor_.cancel(timer_);
}

}  // namespace byre
