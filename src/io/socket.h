// SPDX-License-Identifier: Apache-2.0
/// Socket and Listener: stream connections, over Unix sockets and TCP, through a Reactor.
///
/// A Socket has two directions; in each at most one coroutine is at work at a time (asserted).
/// shutdown() ends both at once and for good: who receives sees the end of the stream, who sends
/// gets an error.  Coroutines must be done with a Socket or Listener before it dies or moves.
/// Cost: one frame and one Op for a transfer that is not short.
/// Not here: TLS, timeouts (a timer that calls shutdown() or cancel()).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "io/descriptor.h"
#include "io/reactor.h"

namespace byre {

/// One attempt to connect, for who may want to end it early.
class ConnectAttempt {
 public:
  /// It fails soon with Errc::cancelled; a question to the name service is waited for.
  void cancel();

 private:
  friend struct Connecting;
  Reactor* reactor_ = nullptr;
  Op* running_ = nullptr;
  bool cancelled_ = false;
};

class Socket {
 public:
  Socket() = default;
  /// Over a connected socket, which it then owns.
  Socket(Reactor& reactor, int fd);
  Socket(Socket&& other) noexcept;
  Socket& operator=(Socket&& other) noexcept;
  ~Socket();

  /// `attempt`, which may be null, lives until this ends.  A path that begins with a zero byte is a
  /// name of Linux's abstract namespace.
  static Task<Socket> connect_unix(Reactor& reactor, std::string path,
                                   ConnectAttempt* attempt = nullptr);
  /// Tries each address that `host` has.
  static Task<Socket> connect_tcp(Reactor& reactor, std::string host, uint16_t port,
                                  ConnectAttempt* attempt = nullptr);

  /// At least one byte into `data`, which is not empty; 0 at the end of the stream.
  Task<size_t> receive_some(MutableBytes data);
  /// Fills `data`.  False when the stream ends before its first byte; an error when it ends inside.
  Task<bool> receive_all(MutableBytes data);
  Task<void> send_all(Bytes data);
  /// Ends the stream for the other side; receiving goes on.
  void finish_sending();
  void shutdown();

  explicit operator bool() const { return bool(fd_); }
  /// Somebody else's from here on; nothing runs on it.
  int release() { return fd_.release(); }
  /// Who is at the other end, for people: an address, or the process behind a Unix socket.
  std::string peer() const;

 private:
  Reactor* reactor_ = nullptr;
  Descriptor fd_;
  Op* receiving_ = nullptr;
  Op* sending_ = nullptr;
  bool shut_ = false;
};

class Listener {
 public:
  /// A socket in the file system that only its owner may use (mode 0600).  One that a dead server
  /// left behind is replaced; where a server still answers, Errc::busy.  Removed on destruction.
  /// An abstract name (a zero byte first) has no mode: whoever shares the network namespace may
  /// connect.
  static Result<Listener> listen_unix(Reactor& reactor, const std::string& path);
  /// Port 0: one that is free (see port()).
  static Result<Listener> listen_tcp(Reactor& reactor, const std::string& address, uint16_t port);
  /// Over a listening socket that was passed in (socket activation).
  static Result<Listener> adopt(Reactor& reactor, int fd);

  Listener(Listener&& other) noexcept;
  ~Listener();

  /// The next connection.  Errc::cancelled after cancel().
  Task<Socket> accept();
  /// Ends accept(), and each later one.
  void cancel();

  /// Where it listens, for people and for clients: a path, or address:port.
  const std::string& name() const { return name_; }
  uint16_t port() const { return port_; }

 private:
  Listener(Reactor& reactor, Descriptor fd);

  Reactor* reactor_;
  Descriptor fd_;
  std::string name_;
  uint16_t port_ = 0;
  std::string path_;  ///< To be removed, if it is still ours.
  uint64_t device_ = 0, inode_ = 0;
  Op* waiting_ = nullptr;
  bool cancelled_ = false;
};

/// The sockets that systemd passed to this process (sd_listen_fds(3)); asked for once, they are
/// nobody else's any more.
struct PassedSocket {
  int fd;
  std::string name;
};
std::vector<PassedSocket> take_passed_sockets();

}  // namespace byre
