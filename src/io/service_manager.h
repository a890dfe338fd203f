// SPDX-License-Identifier: Apache-2.0
/// ServiceManager: tells systemd that a server is ready, what it does, that it lives, and that it
/// ends (sd_notify(3)).
///
///     ServiceManager manager(reactor, getenv);
///     co_await manager.tell_status("opening disk.qcow2");
///     co_await manager.tell_ready("serving disk.qcow2");
///     scope.spawn(manager.feed_watchdog());       // until stop()
///     co_await manager.tell_stopping();
///     manager.stop(); co_await scope.join();
///
/// Each message is one datagram to the socket that NOTIFY_SOCKET names; where it names none,
/// nothing is sent.  The watchdog (WATCHDOG_USEC, and WATCHDOG_PID where it is set) is fed by a
/// timer of the reactor, twice in each interval: a reactor that does not turn feeds nothing, so
/// systemd sees a server that hangs.
/// Not libsystemd: sd_notify(3) itself offers this protocol, which is stable, for programs that do
/// without; the library would be loaded with its own four (gcrypt, lzma, lz4, cap) by every call of
/// a tool whose commands take milliseconds, for one sendto().
/// Invariant: the server goes on, whatever becomes of a message.
/// Not here: sockets that systemd passes (take_passed_sockets() in socket.h).
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "io/reactor.h"

namespace byre {

class ServiceManager {
 public:
  /// `get` gives the value of a variable, or null (getenv).
  ServiceManager(Reactor& reactor, const std::function<const char*(const char*)>& get);
  ServiceManager(ServiceManager&&) = delete;
  ~ServiceManager();

  bool is_there() const { return !address_.empty(); }
  /// Half the time within which it wants to hear of us; 0: it does not.
  int64_t watchdog_ns() const { return watchdog_ns_; }

  /// Everything that was asked for is there.  `status` is shown to people.
  Task<void> tell_ready(std::string status);
  /// Once, however often it is asked.
  Task<void> tell_stopping();
  /// Before that: what it waits for.
  Task<void> tell_status(std::string status);
  Task<void> feed_watchdog();
  /// Ends feed_watchdog().
  void stop();

 private:
  Task<void> tell(std::string message);

  Reactor& reactor_;
  std::string address_;  ///< A path, or a zero byte and an abstract name.
  int64_t watchdog_ns_ = 0;
  Op timer_;
  bool stopping_told_ = false;
  bool stopped_ = false;
};

}  // namespace byre
