// SPDX-License-Identifier: Apache-2.0
#include "io/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>

namespace byre {

namespace {

/// Who finds the queue full waits, or is refused by the kernel; a server whose places are all taken
/// leaves its clients there.
constexpr int kBacklog = SOMAXCONN;

/// When a host that has fallen silent counts as gone: after 10 minutes.  The system's default, two
/// hours and more, would keep the place of a client that lost its power for as long.
constexpr int kKeepIdle = 300, kKeepInterval = 30, kKeepCount = 10;  // Seconds, seconds, probes.

struct Address {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  int family() const { return storage.ss_family; }
  const sockaddr* get() const { return c_cast<const sockaddr>(&storage); }
  sockaddr* get() { return c_cast<sockaddr>(&storage); }
};

Result<Address> unix_address(const std::string& path) {
  Address address;
  auto* const un = c_cast<sockaddr_un>(&address.storage);
  if (path.empty() || path.size() >= sizeof un->sun_path) {
    return invalid("socket path ", quoted(path), ": ", path.size(), " bytes, allowed 1 to ",
                   sizeof un->sun_path - 1);
  }
  un->sun_family = AF_UNIX;
  std::memcpy(un->sun_path, path.data(), path.size());
  // A name of the abstract namespace ends where its length says.
  const size_t length = path.size() + (path[0] == '\0' ? 0 : 1);
  address.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length);
  return address;
}

/// Every TCP address of `host`.  Asks the name service, so it may take long.
Result<std::vector<Address>> tcp_addresses(const std::string& host, uint16_t port, int flags) {
  const addrinfo hints{
      .ai_flags = flags | AI_NUMERICSERV, .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  const int failed = getaddrinfo(host.empty() ? nullptr : host.c_str(),
                                 std::to_string(port).c_str(), &hints, &found);
  if (failed != 0) {
    return Error(Errc::not_found, cat("address ", quoted(host), ": ", gai_strerror(failed)));
  }
  std::vector<Address> addresses;
  for (const addrinfo* info = found; info; info = info->ai_next) {
    Address& address = addresses.emplace_back();
    std::memcpy(&address.storage, info->ai_addr, info->ai_addrlen);
    address.length = info->ai_addrlen;
  }
  freeaddrinfo(found);
  return addresses;
}

std::string text_of(const Address& address) {
  if (address.family() == AF_UNIX) {
    const auto* const un = c_cast<const sockaddr_un>(&address.storage);
    const size_t length = address.length - offsetof(sockaddr_un, sun_path);
    const bool is_abstract = length > 1 && un->sun_path[0] == '\0';
    if (is_abstract) return cat("@", std::string_view(un->sun_path + 1, length - 1));
    return {un->sun_path, strnlen(un->sun_path, length)};
  }
  char host[NI_MAXHOST];
  char port[NI_MAXSERV];
  if (getnameinfo(address.get(), address.length, host, sizeof host, port, sizeof port,
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "unknown address";
  }
  return address.family() == AF_INET6 ? cat("[", host, "]:", port) : cat(host, ":", port);
}

}  // namespace

/// Tells an attempt which Op it waits for.
struct Connecting {
  Reactor& reactor;
  ConnectAttempt* attempt;

  bool is_cancelled() const { return attempt && attempt->cancelled_; }
  Task<int64_t> perform(Op& op) {
    if (is_cancelled()) co_return -ECANCELED;
    if (attempt) {
      attempt->reactor_ = &reactor;
      attempt->running_ = &op;
    }
    const int64_t result = co_await reactor.perform(op);
    if (attempt) attempt->running_ = nullptr;
    co_return is_cancelled() ? -ECANCELED : result;
  }
};

void ConnectAttempt::cancel() {
  cancelled_ = true;
  if (running_) reactor_->cancel(*running_);
}

namespace {

Task<Socket> connect_to(Reactor& reactor, Address address, ConnectAttempt* attempt) {
  const std::string name = text_of(address);
  const int fd = ::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) co_return errno_error(errno, "socket");
  Socket socket(reactor, fd);
  Op op{.kind = Op::Kind::connect,
        .fd = fd,
        .address = address.get(),
        .address_length = address.length};
  Connecting connecting{.reactor = reactor, .attempt = attempt};
  int64_t result = co_await connecting.perform(op);
  // A Unix server whose queue is full: it will get to us.
  for (int tries = 0; result == -EAGAIN && tries < 500; ++tries) {
    co_await reactor.sleep(10 * kMillisecond);
    result = co_await connecting.perform(op);
  }
  if (result < 0) {
    co_return errno_error(static_cast<int>(-result), cat("connect to ", quoted(name)));
  }
  co_return std::move(socket);
}

}  // namespace

// --- Socket ------------------------------------------------------------------------------------

Socket::Socket(Reactor& reactor, int fd) : reactor_(&reactor), fd_(fd) {
  // io_uring takes O_NONBLOCK to mean that it must not wait either.
  const int flags = fcntl(fd, F_GETFL);
  if (flags >= 0 && (flags & O_NONBLOCK)) fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
  // Answers are gathered above (nbd/nbd_stream.h).  A Unix socket refuses, and need not care.
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &kKeepIdle, sizeof kKeepIdle);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &kKeepInterval, sizeof kKeepInterval);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &kKeepCount, sizeof kKeepCount);
}

Socket::Socket(Socket&& other) noexcept
    : reactor_(other.reactor_), fd_(std::move(other.fd_)), shut_(other.shut_) {
  BYRE_ASSERT(!other.receiving_ && !other.sending_);
}

Socket& Socket::operator=(Socket&& other) noexcept {
  BYRE_ASSERT(!receiving_ && !sending_ && !other.receiving_ && !other.sending_);
  reactor_ = other.reactor_;
  fd_ = std::move(other.fd_);
  shut_ = other.shut_;
  return *this;
}

Socket::~Socket() { BYRE_ASSERT(!receiving_ && !sending_); }

Task<Socket> Socket::connect_unix(Reactor& reactor, std::string path, ConnectAttempt* attempt) {
  const Address address = co_await unix_address(path);
  co_return co_await connect_to(reactor, address, attempt);
}

Task<Socket> Socket::connect_tcp(Reactor& reactor, std::string host, uint16_t port,
                                 ConnectAttempt* attempt) {
  std::optional<Result<std::vector<Address>>> found;
  const auto look_up = [&found, &host, port] { found = tcp_addresses(host, port, 0); };
  co_await reactor.offload(look_up);
  const std::vector<Address> addresses = co_await *std::move(found);
  Error last = Error(Errc::not_found, cat("address ", quoted(host), ": none"));
  for (const Address& address : addresses) {
    Result<Socket> socket = co_await connect_to(reactor, address, attempt).result();
    if (socket) co_return *std::move(socket);
    last = std::move(socket).error();
  }
  co_return last;
}

Task<size_t> Socket::receive_some(MutableBytes data) {
  Op op{.kind = Op::Kind::receive, .fd = fd_.get(), .length = data.size(), .buffer = data.data()};
  while (!shut_) {
    BYRE_ASSERT(!receiving_);
    receiving_ = &op;
    const int64_t result = co_await reactor_->perform(op);
    receiving_ = nullptr;
    if (result >= 0) co_return static_cast<size_t>(result);
    if (result == -EINTR || result == -EAGAIN) continue;
    if (shut_) break;
    co_return errno_error(static_cast<int>(-result), "receive");
  }
  co_return 0;
}

Task<bool> Socket::receive_all(MutableBytes data) {
  size_t got = 0;
  while (got < data.size()) {
    const size_t more = co_await receive_some(data.subspan(got));
    if (more == 0 && got == 0) co_return false;
    if (more == 0) co_return Error(Errc::io, "receive: the connection ended early", ECONNRESET);
    got += more;
  }
  co_return true;
}

Task<void> Socket::send_all(Bytes data) {
  while (!data.empty()) {
    int64_t result = -EPIPE;
    if (!shut_) {
      Op op{.kind = Op::Kind::send,
            .fd = fd_.get(),
            .length = data.size(),
            .buffer = const_cast<std::byte*>(data.data())};
      BYRE_ASSERT(!sending_);
      sending_ = &op;
      result = co_await reactor_->perform(op);
      sending_ = nullptr;
    }
    if (result == -EINTR || result == -EAGAIN) continue;
    if (result < 0) co_await fail(errno_error(static_cast<int>(-result), "send"));
    data = data.subspan(static_cast<size_t>(result));
  }
}

void Socket::finish_sending() { ::shutdown(fd_.get(), SHUT_WR); }

void Socket::shutdown() {
  if (shut_ || !fd_) return;
  shut_ = true;
  ::shutdown(fd_.get(), SHUT_RDWR);
  if (receiving_) reactor_->cancel(*receiving_);
  if (sending_) reactor_->cancel(*sending_);
}

std::string Socket::peer() const {
  Address address;
  if (getpeername(fd_.get(), address.get(), &address.length) != 0) return "unknown peer";
  if (address.family() != AF_UNIX) return text_of(address);
  ucred who{};
  socklen_t size = sizeof who;
  if (getsockopt(fd_.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) return "unknown process";
  return cat("pid ", who.pid, ", uid ", who.uid);
}

// --- Listener ----------------------------------------------------------------------------------

Listener::Listener(Reactor& reactor, Descriptor fd) : reactor_(&reactor), fd_(std::move(fd)) {
  Address address;
  if (getsockname(fd_.get(), address.get(), &address.length) == 0) {
    name_ = text_of(address);
    if (address.family() == AF_INET) {
      port_ = ntohs(c_cast<const sockaddr_in>(&address.storage)->sin_port);
    } else if (address.family() == AF_INET6) {
      port_ = ntohs(c_cast<const sockaddr_in6>(&address.storage)->sin6_port);
    }
  }
}

Listener::Listener(Listener&& other) noexcept
    : reactor_(other.reactor_),
      fd_(std::move(other.fd_)),
      name_(std::move(other.name_)),
      port_(other.port_),
      path_(std::exchange(other.path_, {})),
      device_(other.device_),
      inode_(other.inode_),
      cancelled_(other.cancelled_) {
  BYRE_ASSERT(!other.waiting_);
}

Listener::~Listener() {
  BYRE_ASSERT(!waiting_);
  struct stat status;
  if (path_.empty() || lstat(path_.c_str(), &status) != 0) return;
  if (status.st_dev == device_ && status.st_ino == inode_) unlink(path_.c_str());
}

Result<Listener> Listener::listen_unix(Reactor& reactor, const std::string& path) {
  const auto problem = [&](int number) {
    return errno_error(number, cat("listen on ", quoted(path)));
  };
  BYRE_TRY(address, unix_address(path));
  Descriptor fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return problem(errno);
  // Linux gives the file the mode of the socket, so that it is never open to others.
  if (fchmod(fd.get(), 0600) != 0) return problem(errno);
  int bound = bind(fd.get(), address.get(), address.length);
  if (bound != 0 && errno == EADDRINUSE && path[0] == '\0') {
    return Error(Errc::busy, cat("listen on ", quoted(path), ": another server listens there"),
                 EADDRINUSE);
  }
  if (bound != 0 && errno == EADDRINUSE) {
    struct stat status;
    if (lstat(path.c_str(), &status) == 0 && !S_ISSOCK(status.st_mode)) {
      return Error(Errc::exists, cat("listen on ", quoted(path), ": a file is there"), EEXIST);
    }
    const Descriptor probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (connect(probe.get(), address.get(), address.length) == 0 || errno != ECONNREFUSED) {
      return Error(Errc::busy, cat("listen on ", quoted(path), ": another server listens there"),
                   EADDRINUSE);
    }
    unlink(path.c_str());
    bound = bind(fd.get(), address.get(), address.length);
  }
  if (bound != 0 || listen(fd.get(), kBacklog) != 0) return problem(errno);
  Listener listener(reactor, std::move(fd));
  struct stat status;
  if (path[0] != '\0' && lstat(path.c_str(), &status) == 0) {
    listener.path_ = path;
    listener.device_ = status.st_dev;
    listener.inode_ = status.st_ino;
  }
  return listener;
}

Result<Listener> Listener::listen_tcp(Reactor& reactor, const std::string& address, uint16_t port) {
  BYRE_TRY(candidates, tcp_addresses(address, port, AI_PASSIVE));
  int last = EADDRNOTAVAIL;
  for (const Address& candidate : candidates) {
    Descriptor fd(::socket(candidate.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const int on = 1;
    if (fd && setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
        bind(fd.get(), candidate.get(), candidate.length) == 0 && listen(fd.get(), kBacklog) == 0) {
      return Listener(reactor, std::move(fd));
    }
    last = errno;
  }
  return errno_error(last, cat("listen on ", quoted(address), " port ", port));
}

Result<Listener> Listener::adopt(Reactor& reactor, int fd) {
  Descriptor owned(fd);
  int listens = 0;
  socklen_t size = sizeof listens;
  if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0 || !listens) {
    return invalid("descriptor ", fd, " is not a listening socket");
  }
  // A connection may be gone between the news of it and accept().
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    return errno_error(errno, cat("descriptor ", fd));
  }
  return Listener(reactor, std::move(owned));
}

Task<Socket> Listener::accept() {
  BYRE_ASSERT(!waiting_);
  Op op{.kind = Op::Kind::accept, .fd = fd_.get()};
  while (!cancelled_) {
    waiting_ = &op;
    const int64_t result = co_await reactor_->perform(op);
    waiting_ = nullptr;
    const bool accepting = op.kind == Op::Kind::accept;
    op.kind = Op::Kind::accept;
    if (!accepting) continue;
    if (result >= 0) co_return Socket(*reactor_, static_cast<int>(result));
    switch (-result) {
      case EAGAIN:
        op.kind = Op::Kind::poll;
        break;
      case EINTR:
      case ECONNABORTED:
      case EPROTO:
      case ECANCELED:
        break;
      case EMFILE:
      case ENFILE:
      case ENOBUFS:
      case ENOMEM:  // It passes when others close theirs.
        op.kind = Op::Kind::timer;
        op.deadline = reactor_->now() + 100 * kMillisecond;
        break;
      default:
        co_return errno_error(static_cast<int>(-result), cat("accept on ", quoted(name_)));
    }
  }
  co_return Error(Errc::cancelled, cat("accept on ", quoted(name_), ": stopped"));
}

void Listener::cancel() {
  cancelled_ = true;
  if (waiting_) reactor_->cancel(*waiting_);
}

std::vector<PassedSocket> take_passed_sockets() {
  constexpr int kFirst = 3;
  std::vector<PassedSocket> passed;
  const auto number = [](const char* name) {
    const char* const text = getenv(name);
    int value = -1;
    if (text) std::from_chars(text, text + std::strlen(text), value);
    return value;
  };
  const int count = number("LISTEN_FDS");
  if (number("LISTEN_PID") == getpid() && count > 0) {
    std::string_view names = getenv("LISTEN_FDNAMES") ? getenv("LISTEN_FDNAMES") : "";
    for (int fd = kFirst; fd < kFirst + count; ++fd) {
      const size_t colon = names.find(':');
      if (fcntl(fd, F_SETFD, FD_CLOEXEC) == 0) {
        passed.push_back({fd, std::string(names.substr(0, colon))});
      }
      names.remove_prefix(colon == std::string_view::npos ? names.size() : colon + 1);
    }
  }
  unsetenv("LISTEN_PID");
  unsetenv("LISTEN_FDS");
  unsetenv("LISTEN_FDNAMES");
  return passed;
}

}  // namespace byre
