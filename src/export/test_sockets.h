// SPDX-License-Identifier: Apache-2.0
/// SocketServerTest: for tests of servers over real sockets, on each real reactor.
///
/// Not here: sessions in the simulator (nbd_session_test.cc).
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "export/nbd_server.h"
#include "export/test_client.h"
#include "export/test_device.h"
#include "io/io_testing.h"

namespace byre::nbd {

class SocketServerTest : public ::testing::TestWithParam<ReactorKind> {
 public:
  void SetUp() override {
    auto made = make_reactor(GetParam());
    if (!made) GTEST_SKIP() << made.error().message();
    reactor = *std::move(made);
    disk = std::make_unique<TestDevice>(*reactor, 1 * MiB);
  }
  static Task<std::unique_ptr<TestClient>> connect(SocketServerTest& t) {
    Socket socket = co_await Socket::connect_unix(*t.reactor, t.path);
    co_return std::make_unique<TestClient>(std::move(socket));
  }

  std::unique_ptr<Reactor> reactor;
  TemporaryFolder folder;
  std::string path = folder / "socket";
  std::unique_ptr<TestDevice> disk;
  ServerOptions options;
};

inline const auto kRealReactors = ::testing::Values(ReactorKind::uring, ReactorKind::posix);
inline std::string reactor_name(const ::testing::TestParamInfo<ReactorKind>& info) {
  return info.param == ReactorKind::uring ? "uring" : "threads";
}

}  // namespace byre::nbd
