// SPDX-License-Identifier: Apache-2.0
#include "io/channel.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "io/io_testing.h"

namespace byre {
namespace {

class ChannelTest : public ::testing::TestWithParam<ReactorKind> {
 public:
  void SetUp() override {
    auto made = make_reactor(GetParam());
    if (!made) GTEST_SKIP() << made.error().message();
    reactor = *std::move(made);
  }
  std::unique_ptr<Reactor> reactor;
};
INSTANTIATE_TEST_SUITE_P(Reactors, ChannelTest,
                         ::testing::Values(ReactorKind::uring, ReactorKind::posix));

void send_with(int socket, std::string_view text, const std::vector<int>& fds) {
  iovec piece{.iov_base = const_cast<char*>(text.data()), .iov_len = text.size()};
  alignas(cmsghdr) std::array<std::byte, 512> control{};
  msghdr message{.msg_iov = &piece, .msg_iovlen = 1};
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* const head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(head), fds.data(), fds.size() * sizeof(int));
  }
  ASSERT_EQ(sendmsg(socket, &message, 0), static_cast<ssize_t>(text.size()));
}

Task<std::string> receive(Channel& channel) {
  std::array<std::byte, 64> buffer{};
  const size_t got = co_await channel.receive_some(buffer);
  co_return std::string(text_of(Bytes(buffer).first(got)));
}

TEST_P(ChannelTest, DescriptorsComeWithTheBytesAndAreOurs) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  const Descriptor other(pair[1]);
  Channel channel(*reactor, Socket(*reactor, pair[0]));
  const Descriptor null(open("/dev/null", O_RDONLY | O_CLOEXEC));
  send_with(other.get(), "hello", {null.get(), null.get()});
  const Result<std::string> text = reactor->run(receive(channel));
  ASSERT_TRUE(text.has_value());
  EXPECT_EQ(*text, "hello");
  std::vector<Descriptor> passed = channel.take_passed();
  ASSERT_EQ(passed.size(), 2u);
  EXPECT_TRUE(channel.take_passed().empty());
  struct stat ours, theirs;
  ASSERT_EQ(fstat(passed[0].get(), &ours), 0);
  ASSERT_EQ(fstat(null.get(), &theirs), 0);
  EXPECT_EQ(ours.st_rdev, theirs.st_rdev);
  EXPECT_NE(fcntl(passed[1].get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_P(ChannelTest, MoreDescriptorsThanAllowedAreClosed) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  const Descriptor other(pair[1]);
  Channel channel(*reactor, Socket(*reactor, pair[0]));
  for (int i = 0; i < 3; ++i) {
    send_with(other.get(), "x", std::vector<int>(10, 0));
    ASSERT_TRUE(reactor->run(receive(channel)).has_value());
  }
  EXPECT_EQ(channel.take_passed().size(), Channel::kPassedMax);
}

Task<void> stop_later(Reactor& reactor, Channel& channel) {
  co_await reactor.sleep(kMillisecond);
  channel.stop_receiving();
}
Task<std::string> receive_until_stopped(Reactor& reactor, Channel& channel) {
  Scope scope(reactor.ready());
  scope.spawn(stop_later(reactor, channel));
  const std::string got = co_await receive(channel);
  co_await channel.send_all(bytes_of(std::string_view("bye")));
  co_await scope.join();
  co_return got;
}

TEST_P(ChannelTest, WhoStopsReceivingCanStillSend) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  const Descriptor other(pair[1]);
  Channel channel(*reactor, Socket(*reactor, pair[0]));
  const Result<std::string> text = reactor->run(receive_until_stopped(*reactor, channel));
  ASSERT_TRUE(text.has_value());
  EXPECT_EQ(*text, "");
  char buffer[8];
  EXPECT_EQ(read(other.get(), buffer, sizeof buffer), 3);
}

TEST_P(ChannelTest, PipesAreReadAndWritten) {
  int in[2], out[2];
  ASSERT_EQ(pipe2(in, O_CLOEXEC), 0);
  ASSERT_EQ(pipe2(out, O_CLOEXEC), 0);
  const Descriptor all[] = {Descriptor(in[0]), Descriptor(out[0]), Descriptor(out[1])};
  Descriptor writer(in[1]);
  const auto channel = Channel::over_streams(*reactor, in[0], out[1]);
  ASSERT_EQ(write(writer.get(), "abc", 3), 3);
  EXPECT_EQ(*reactor->run(receive(*channel)), "abc");
  ASSERT_TRUE(reactor->run(channel->send_all(bytes_of(std::string_view("defg")))).has_value());
  char buffer[8];
  EXPECT_EQ(read(out[0], buffer, sizeof buffer), 4);
  writer.reset();
  EXPECT_EQ(*reactor->run(receive(*channel)), "");
}

}  // namespace
}  // namespace byre
