// SPDX-License-Identifier: Apache-2.0
/// MetricsServer: answers `GET /metrics` over HTTP, for Prometheus and whoever reads its format.
///
/// GNU libmicrohttpd speaks HTTP; it is loaded when the first server is made.  It has no thread: it
/// gives the descriptor of an epoll instance, which the reactor waits for, and works when it is
/// told to; so the page is made on the reactor's thread, between two steps of everything else.
/// Invariant: clients cost at most kClientsMax connections of kClientMemory each, which end after
/// kClientSeconds of silence; none can hold up the disk for longer than a page takes to make.
/// Cost: nothing while nobody asks.
/// Not here: what the page says (metrics_page.h), TLS, passwords.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "io/reactor.h"
#include "io/socket.h"

namespace byre {

class MetricsServer {
 public:
  static constexpr unsigned kClientsMax = 32;
  static constexpr unsigned kClientSeconds = 10;
  static constexpr size_t kClientMemory = 16 * 1024;

  /// `page()` makes the text, anew for each question; it must not wait.
  static Result<std::unique_ptr<MetricsServer>> make(Reactor& reactor, Listener listener,
                                                     std::function<std::string()> page);
  ~MetricsServer();
  MetricsServer(const MetricsServer&) = delete;

  /// Until stop().
  Task<void> run();
  void stop();

  /// "http://127.0.0.1:9100/metrics"; of a unix socket "http://localhost/metrics".
  std::string address() const;
  /// The path of the unix socket that it listens on, if it does.
  std::optional<std::string> socket() const;

 private:
  struct Http;
  MetricsServer(Reactor& reactor, Listener listener, std::function<std::string()> page);
  Task<void> let_in();
  Task<void> serve();
  Task<void> end_silent_clients();

  Reactor& reactor_;
  Listener listener_;
  std::function<std::string()> page_;
  std::unique_ptr<Http> http_;
  Op poll_;
  Op timer_;
  bool stopped_ = false;
};

}  // namespace byre
