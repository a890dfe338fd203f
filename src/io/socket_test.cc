// SPDX-License-Identifier: Apache-2.0
#include "io/socket.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "io/io_testing.h"
#include "io/signal.h"

namespace byre {
namespace {

class SocketTest : public IoTest {
 protected:
  std::pair<Socket, Socket> pair() {
    int fds[2];
    BYRE_ASSERT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    return {Socket(reactor(), fds[0]), Socket(reactor(), fds[1])};
  }
};
ON_EVERY_REACTOR(SocketTest);

Task<void> echo_once(Listener& listener) {
  Socket socket = co_await listener.accept();
  std::vector<std::byte> buffer(100000);
  for (;;) {
    const size_t got = co_await socket.receive_some(buffer);
    if (got == 0) co_return;
    co_await socket.send_all(Bytes(buffer).first(got));
  }
}

Task<void> send_then_finish(Socket& socket, Bytes data) {
  co_await socket.send_all(data);
  socket.finish_sending();
}

Task<void> talk(Reactor& reactor, Socket& client) {
  const std::vector<std::byte> data = noise(3 << 20);
  std::vector<std::byte> back(data.size());
  Scope scope(reactor.ready());
  scope.spawn(send_then_finish(client, data));  // Both ways at once: neither side may block.
  EXPECT_TRUE(co_await client.receive_all(back));
  EXPECT_TRUE(back == data);
  std::byte more;
  EXPECT_FALSE(co_await client.receive_all({&more, 1}));
  co_await scope.join();
}

TEST_P(SocketTest, AUnixServerEchoesMegabytes) {
  const std::string path = folder_ / "s";
  Result<Listener> listener = Listener::listen_unix(reactor(), path);
  ASSERT_TRUE(listener);
  EXPECT_EQ(listener->name(), path);
  struct stat status;
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  const auto all = [&](Reactor& reactor) -> Task<void> {
    Scope scope(reactor.ready());
    scope.spawn(echo_once(*listener));
    Socket client = co_await Socket::connect_unix(reactor, path);
    EXPECT_EQ(client.peer(), cat("pid ", getpid(), ", uid ", getuid()));
    co_await talk(reactor, client);
    co_await scope.join();
  };
  run(all(reactor()));
}

TEST_P(SocketTest, ATcpServerEchoesMegabytes) {
  for (const std::string address : {"127.0.0.1", "::1", "localhost"}) {
    Result<Listener> listener = Listener::listen_tcp(reactor(), address, 0);
    if (!listener && address == "::1") continue;  // No IPv6 here.
    ASSERT_TRUE(listener) << listener.error().message();
    EXPECT_NE(listener->port(), 0);
    EXPECT_TRUE(listener->name().ends_with(cat(":", listener->port()))) << listener->name();
    const auto all = [&](Reactor& reactor) -> Task<void> {
      Scope scope(reactor.ready());
      scope.spawn(echo_once(*listener));
      Socket client = co_await Socket::connect_tcp(reactor, address, listener->port());
      EXPECT_EQ(client.peer(), listener->name());
      co_await talk(reactor, client);
      co_await scope.join();
    };
    run(all(reactor()));
  }
}

TEST_P(SocketTest, ConnectingWhereNobodyListensFails) {
  uint16_t port = 0;
  {
    Result<Listener> listener = Listener::listen_tcp(reactor(), "127.0.0.1", 0);
    ASSERT_TRUE(listener);
    port = listener->port();
  }
  EXPECT_EQ(error_of(Socket::connect_tcp(reactor(), "127.0.0.1", port)).sys_errno(), ECONNREFUSED);
  EXPECT_EQ(error_of(Socket::connect_unix(reactor(), folder_ / "nobody")).sys_errno(), ENOENT);
  EXPECT_EQ(error_of(Socket::connect_unix(reactor(), std::string(200, 'x'))).code(), Errc::invalid);
}

TEST_P(SocketTest, AStaleSocketIsReplacedButALiveServerAndAFileAreNot) {
  const std::string path = folder_ / "s";
  {
    // As a server that was killed leaves it.
    const Descriptor dead(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    ASSERT_EQ(bind(dead.get(), c_cast<sockaddr>(&address), sizeof address), 0);
  }
  {
    Result<Listener> listener = Listener::listen_unix(reactor(), path);
    ASSERT_TRUE(listener) << listener.error().message();
    Result<Listener> second = Listener::listen_unix(reactor(), path);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code(), Errc::busy);
    EXPECT_TRUE(std::filesystem::exists(path));
  }
  EXPECT_FALSE(std::filesystem::exists(path));  // Gone with its listener.
  const Descriptor file(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  Result<Listener> over_file = Listener::listen_unix(reactor(), path);
  ASSERT_FALSE(over_file);
  EXPECT_EQ(over_file.error().code(), Errc::exists);
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST_P(SocketTest, ACancelledListenerStops) {
  Result<Listener> listener = Listener::listen_unix(reactor(), folder_ / "s");
  ASSERT_TRUE(listener);
  std::optional<Errc> code;
  const auto serve = [&]() -> Task<void> {
    Result<Socket> socket = co_await listener->accept().result();
    if (!socket) code = socket.error().code();
  };
  const auto all = [&](Reactor& reactor) -> Task<void> {
    Scope scope(reactor.ready());
    scope.spawn(serve());
    co_await reactor.sleep(kMillisecond);
    listener->cancel();
    co_await scope.join();
  };
  run(all(reactor()));
  EXPECT_EQ(code, Errc::cancelled);
  EXPECT_EQ(error_of(listener->accept()).code(), Errc::cancelled);
}

TEST_P(SocketTest, ShutdownEndsBothDirectionsAtOnce) {
  auto [a, b] = pair();
  const std::vector<std::byte> much = noise(10 << 20);
  std::optional<size_t> received;
  std::optional<Errc> sent;
  const auto receiver = [&](Socket& socket) -> Task<void> {
    std::byte byte;
    received = co_await socket.receive_some({&byte, 1});
  };
  const auto sender = [&](Socket& socket) -> Task<void> {
    Result<void> result = co_await socket.send_all(much).result();
    if (!result) sent = result.error().code();
  };
  const auto all = [&](Reactor& reactor) -> Task<void> {
    Scope scope(reactor.ready());
    scope.spawn(receiver(a));
    scope.spawn(sender(a));  // Nobody reads: it waits.
    co_await reactor.sleep(kMillisecond);
    EXPECT_FALSE(received);
    EXPECT_FALSE(sent);
    a.shutdown();
    co_await scope.join();
    std::byte byte;
    EXPECT_EQ(co_await a.receive_some({&byte, 1}), 0u);
  };
  run(all(reactor()));
  EXPECT_EQ(received, 0u);
  EXPECT_TRUE(sent);
}

TEST_P(SocketTest, AStreamThatEndsInsideIsAnError) {
  auto [a, b] = pair();
  run(a.send_all(noise(10)));
  a = Socket();
  std::vector<std::byte> data(20);
  EXPECT_EQ(error_of(b.receive_all(data)).sys_errno(), ECONNRESET);
  EXPECT_EQ(run(b.receive_all(data)), false);
}

TEST_P(SocketTest, SendingToAPeerThatIsGoneIsAnErrorAndNoSignal) {
  auto [a, b] = pair();
  b = Socket();
  EXPECT_EQ(error_of(a.send_all(noise(10))).sys_errno(), EPIPE);
}

TEST_P(SocketTest, ASocketThatWasPassedInServes) {
  const Descriptor bound(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const std::string path = folder_ / "s";
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(bind(bound.get(), c_cast<sockaddr>(&address), sizeof address), 0);
  Result<Listener> deaf = Listener::adopt(reactor(), dup(bound.get()));
  ASSERT_FALSE(deaf);
  EXPECT_EQ(deaf.error().code(), Errc::invalid);
  ASSERT_EQ(listen(bound.get(), 5), 0);
  {
    Result<Listener> listener = Listener::adopt(reactor(), dup(bound.get()));
    ASSERT_TRUE(listener);
    const auto all = [&](Reactor& reactor) -> Task<void> {
      Scope scope(reactor.ready());
      scope.spawn(echo_once(*listener));
      Socket client = co_await Socket::connect_unix(reactor, path);
      co_await talk(reactor, client);
      co_await scope.join();
    };
    run(all(reactor()));
  }
  EXPECT_TRUE(std::filesystem::exists(path));  // Not ours to remove.
}

TEST(PassedSockets, AreTakenOnceAndOnlyByTheProcessTheyAreFor) {
  setenv("LISTEN_FDS", "2", 1);
  setenv("LISTEN_PID", "1", 1);
  EXPECT_TRUE(take_passed_sockets().empty());
  setenv("LISTEN_FDS", "nonsense", 1);
  setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
  EXPECT_TRUE(take_passed_sockets().empty());
  // In a child, whose descriptors 3 and 4 are free for the asking.
  EXPECT_EXIT(
      {
        dup2(0, 3);
        dup2(0, 4);
        setenv("LISTEN_FDS", "2", 1);
        setenv("LISTEN_FDNAMES", "nbd:control", 1);
        setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
        const std::vector<PassedSocket> passed = take_passed_sockets();
        const bool good = passed.size() == 2 && passed[0].fd == 3 && passed[0].name == "nbd" &&
                          passed[1].fd == 4 && passed[1].name == "control" &&
                          fcntl(3, F_GETFD) == FD_CLOEXEC && take_passed_sockets().empty();
        _exit(good ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
}

TEST_P(SocketTest, SignalsAreWaitedForAndTheWaitCanBeCancelled) {
  Result<SignalWatch> watch = SignalWatch::make(reactor(), {SIGUSR1, SIGTERM});
  ASSERT_TRUE(watch);
  const auto all = [&](Reactor& reactor) -> Task<void> {
    std::vector<int> got;
    const auto take = [](SignalWatch& w, std::vector<int>& out) -> Task<void> {
      for (;;) out.push_back(co_await w.wait());
    };
    Scope scope(reactor.ready());
    scope.spawn(take(*watch, got));
    co_await reactor.sleep(kMillisecond);
    pthread_kill(pthread_self(), SIGTERM);
    while (got.empty()) co_await reactor.sleep(kMillisecond);
    EXPECT_EQ(got[0], SIGTERM);
    watch->cancel();
    Result<void> ended = co_await scope.join().result();
    EXPECT_EQ(ended.error().code(), Errc::cancelled);
  };
  run(all(reactor()));
}

}  // namespace
}  // namespace byre
