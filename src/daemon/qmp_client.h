// SPDX-License-Identifier: Apache-2.0
/// Client: the other end of a monitor: asks for commands and hears events.
///
///     auto client = std::make_unique<Client>(reactor, std::move(socket), Client::Options());
///     co_await client->negotiate();      // the greeting, qmp_capabilities
///     Json nodes = co_await client->ask("query-named-block-nodes", Json::object());
///     std::vector<Json> events = client->take_events();   // that came meanwhile
///
/// A monitor has one client at a time and the next waits unheard in the kernel's queue, so
/// negotiate() waits for the greeting no longer than `greeting_ns`, and says what that means.
/// One question at a time; each has an id, so an answer to another one is never taken for its own.
/// A refusal is an Error with the daemon's own sentence: Errc::not_found (no such node or job),
/// Errc::unsupported (no such command), else Errc::invalid.
/// Invariant: no more than Options::limits of what comes is kept, and kEventsMax events.
/// Cost: a buffer of kPieceSize.
/// Not here: where the daemon listens, and words for people (cli/ctl.h).
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/qmp_json.h"
#include "daemon/qmp_stream.h"
#include "io/channel.h"

namespace byre::qmp {

class Client {
 public:
  static constexpr size_t kPieceSize = 16 * KiB;
  static constexpr size_t kEventsMax = 4096;

  struct Options {
    /// A daemon with thousands of nodes has long answers.
    Stream::Limits limits = {.text_max = 64 * MiB, .items_max = 4u << 20};
    int64_t greeting_ns = 10 * kSecond;
  };
  Client(Reactor& reactor, Socket socket, Options options);
  Client(const Client&) = delete;

  Task<void> negotiate();
  /// What the command returns.  `arguments` is an object.
  Task<Json> ask(std::string command, Json arguments);
  /// Those that came since they were taken last; of very many the newest.
  std::vector<Json> take_events() { return std::move(events_); }
  /// Why the last ask() was refused: the class that QMP has for it; empty when it was not refused.
  const std::string& refusal() const { return refusal_; }
  /// Ends what waits for the daemon, with Errc::cancelled, and each later question.
  void stop();

 private:
  Task<Json> next();
  Task<Json> greeting();
  Task<void> give_up_later(Op& timer);

  Reactor& reactor_;
  const Options options_;
  Channel channel_;
  Stream stream_;
  std::vector<Json> events_;
  std::string refusal_;
  std::array<std::byte, kPieceSize> piece_;
  uint64_t id_ = 0;
  bool heard_ = false;  ///< Anything.
  bool late_ = false;   ///< The greeting did not come in time.
  bool stopped_ = false;
};

}  // namespace byre::qmp
