// SPDX-License-Identifier: Apache-2.0
/// Channel: a conversation with one client, over a socket, or over a pipe or terminal (stdin and
/// stdout), with the descriptors that the client passes along (SCM_RIGHTS).
///
/// Descriptors come with bytes: after receive_some() those that came with them, or before, are
/// there to be taken; more than kPassedMax at a time are closed unseen.  They are close-on-exec.
/// In each direction at most one coroutine is at work at a time (asserted).
/// Invariant: what was passed and nobody took is closed with the channel.
/// Cost: a poll and a system call to receive; for those who talk little (a monitor).
/// Not here: what is said, TLS; transfers of data (socket.h).
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "io/descriptor.h"
#include "io/reactor.h"
#include "io/socket.h"

namespace byre {

class Channel {
 public:
  static constexpr size_t kPassedMax = 16;

  /// Over a connected socket.
  Channel(Reactor& reactor, Socket socket);
  /// Reads from one and writes to the other, and closes neither.
  static std::unique_ptr<Channel> over_streams(Reactor& reactor, int in, int out);
  ~Channel();
  Channel(const Channel&) = delete;

  /// At least one byte; 0 at the end of the stream, or after stop_receiving().
  Task<size_t> receive_some(MutableBytes data);
  Task<void> send_all(Bytes data);
  /// Nothing is received any more; sending goes on.
  void stop_receiving();
  /// Ends both directions at once and for good.
  void shutdown();

  std::vector<Descriptor> take_passed() { return std::move(passed_); }
  /// Who is at the other end, for people.
  const std::string& peer() const { return peer_; }

 private:
  Channel(Reactor& reactor, int in, int out);
  int64_t receive_now(MutableBytes data);
  Task<void> send_stream(Bytes data);

  Reactor& reactor_;
  Descriptor socket_;  ///< Of a socket.
  int in_ = -1;
  int out_ = -1;
  bool polls_ = false;  ///< The kernel is asked directly, once there is something.
  std::string peer_;
  std::vector<Descriptor> passed_;
  Op* receiving_ = nullptr;
  Op* sending_ = nullptr;
  bool ended_ = false;
  std::atomic<bool> shut_ = false;  ///< A worker looks at it, too.
};

}  // namespace byre
