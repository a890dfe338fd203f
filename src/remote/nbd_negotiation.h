// SPDX-License-Identifier: Apache-2.0
/// Negotiation: the client's half of the NBD handshake, option by option.
///
/// Invariant: what a server sends takes at most one reply's memory (Intake::kCapacity).
/// Not here: what is asked for (nbd_list.h, nbd_connection.h), timeouts: a server that says nothing
/// is waited for until the socket is shut down.
#pragma once

#include <vector>

#include "coro/task.h"
#include "io/socket.h"
#include "nbd/nbd_stream.h"
#include "nbd/nbd_wire.h"

namespace byre::nbd {

class Negotiation {
 public:
  Negotiation(Socket& socket, Intake& intake) : socket_(socket), intake_(intake) {}

  /// Greeting and flags; Errc::unsupported when the server knows no options.
  Task<void> greet();
  Task<void> ask(Text text) { co_await socket_.send_all(text); }
  /// One reply to the option that was asked; its payload is in payload() until the next.
  Task<OptionReply> next_reply();
  /// The last one; those before it are nothing that the caller wants.
  Task<OptionReply> final_reply();
  Bytes payload() const { return payload_; }
  /// Zeros follow the answer to NBD_OPT_EXPORT_NAME.
  bool has_export_zeroes() const { return has_export_zeroes_; }

  static Error ended();

 private:
  Socket& socket_;
  Intake& intake_;
  std::vector<std::byte> payload_;
  bool has_export_zeroes_ = true;
};

}  // namespace byre::nbd
