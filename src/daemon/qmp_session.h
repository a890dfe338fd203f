// SPDX-License-Identifier: Apache-2.0
/// Session: one client of a monitor, from its greeting to its end.
///
///   1. The greeting; then commands are refused until qmp_capabilities has come.
///   2. Requests are carried out one after another, each answered before the next is looked at; of
///      several monitors one at a time (Realm::turn).  What came before the client hung up is
///      carried out, and nobody hears the answers: they belong to this session, so they can never
///      reach the next client of the same socket.
///   3. Events come between answers, to who has negotiated.
///   4. The end: the client hangs up, crosses a limit (it is told which), does not read
///   (kPendingMax)
///      or stop() is called; what is to be said still goes out, for `linger_ns` at most.
///
/// A client that does not read its answers is not listened to either, so at most kLowWater and one
/// answer wait for it; events are never dropped, so one that lets kPendingMax of them wait is cut
/// off.
/// Each line ends with CRLF: libvirt cuts there.
/// Invariant: a limit that one client crosses ends its own session and no other.
/// Cost: a buffer of kPieceSize.
/// Not here: who may connect (chardev.h), commands (qmp_command.h).
#pragma once

#include <array>
#include <functional>
#include <string>
#include <string_view>

#include "coro/event.h"
#include "coro/scope.h"
#include "coro/semaphore.h"
#include "daemon/descriptors.h"
#include "daemon/qmp_command.h"
#include "daemon/qmp_stream.h"
#include "io/channel.h"

namespace byre::qmp {

/// What the sessions of a process share; outlives them.
struct Realm {
  Daemon* daemon = nullptr;
  const CommandSet& commands;
  Mutex& turn;          ///< Of commands that do not run at once (qmp_command.h).
  Json version;         ///< As query-version says it.
  bool ending = false;  ///< No command begins any more.
};

class Session {
 public:
  static constexpr size_t kPieceSize = 4096;
  static constexpr size_t kLowWater = 64 * KiB;
  static constexpr size_t kPendingMax = 4 * MiB;

  struct Options {
    bool pretty = false;
    Stream::Limits limits = {};
    int64_t linger_ns = 5 * kSecond;  ///< 0: for ever.
  };
  Session(Reactor& reactor, Channel& channel, Realm& realm, Options options);
  Session(const Session&) = delete;

  /// Until the client has gone.  Fails when that was not as it should be.
  Task<void> run();
  /// Ends soon: the command that runs is answered, no other begins.
  void stop();
  /// An event, whole; ignored until capabilities were negotiated.
  void send_event(const Json& event);

 private:
  Task<void> talk();
  Task<void> obey(const Json& request);
  Task<void> execute(std::string name, Json arguments, Json id);
  void answer(Json result, const Json& id);
  void refuse(std::string_view failure_class, std::string_view why, const Json& id);
  void put(const Json& message);
  Task<void> write();
  Task<void> hang_up_later(Op& timer);

  Reactor& reactor_;
  Channel& channel_;
  Realm& realm_;
  const Options options_;
  Stream stream_;
  Descriptors descriptors_;
  std::string pending_;
  Event wake_;
  Event drained_;
  Scope writer_;
  Scope helpers_;
  Op linger_;
  bool negotiated_ = false;
  bool stopping_ = false;
  bool closing_ = false;  ///< Nothing more will be put.
  bool dead_ = false;     ///< Nobody reads.
  Error failure_;
};

}  // namespace byre::qmp
