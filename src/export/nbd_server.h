// SPDX-License-Identifier: Apache-2.0
/// Server: exports by name, doors that clients come in by, and the sessions of those who came.
///
///     nbd::Server server(reactor, {});
///     co_await server.add_export({.name = "", .disk = Entrance::to(disk), .writable = true});
///     server.add_listener(std::move(listener), {.allow_list = true});
///     co_await server.serve();   // until stop()
///
/// Safe by default (docs/compatibility.md): an export is read-only unless it says otherwise; how
/// many clients there are, how long a handshake takes and how much memory requests hold is bounded.
/// A client beyond the bound waits for a place, unanswered: one of each door with us, the others in
/// the kernel's queue, so a crowd costs nothing.  Its handshake begins when it gets the place.
/// While somebody waits, a client in its handshake has `crowded_timeout` to end it, so that silent
/// ones do not keep others out for long; one that is attached may keep its place for ever.
/// There is no TLS: a listener on the network is the caller's decision, and `allow_list` should be
/// off for it.
/// stop(): no new clients; requests that run are finished and answered, what comes meanwhile gets
/// ESHUTDOWN, idle connections end; then serve() ends.  Devices are neither flushed nor closed.
/// One thread: everything here happens on the reactor's.
/// Not here: one connection (nbd_session.h), sockets (io/socket.h).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "coro/event.h"
#include "coro/scope.h"
#include "coro/semaphore.h"
#include "export/nbd_session.h"
#include "io/socket.h"

namespace byre::nbd {

struct ServerOptions {
  uint32_t connections_max = 1024;           ///< At a time; 1 or more.
  int64_t crowded_timeout_ns = 5 * kSecond;  ///< For a handshake while others wait for the place.
  /// As if stop() were called when a client that was attached has gone and no other is there.  Its
  /// connection stays open until the server dies: who waits for its end finds the disk closed.
  bool end_with_last_client = false;
  uint64_t memory_max = 1 * GiB;  ///< Payloads of all clients' requests; never below kPayloadMax.
  SessionLimits limits;           ///< Of each client.
  /// Hears of failed requests, clients that broke the protocol, and accepts that failed.
  std::function<void(const Error&)> report;
};

/// How clients that come in by one door are treated.
struct DoorOptions {
  bool allow_list = true;  ///< They may list the exports.
  bool agreed = false;     ///< They begin with requests to the default export (nbd_handshake.h).
};

class Server {
 public:
  Server(Reactor& reactor, ServerOptions options);
  Server(const Server&) = delete;

  /// the device of `target` outlives serve().  `is_default`: what a client gets that names no
  /// export.
  Result<void> add_export(Export target, bool is_default = false) {
    return exports_.add(std::move(target), is_default);
  }
  /// How many have chosen it.
  size_t clients_of(std::string_view name) const;
  /// No new client finds it, and those that have chosen it are ended as by stop().  Ends when they
  /// have gone; nothing here leads to the device then.
  Task<void> remove_export(std::string name);
  /// Before serve().
  void add_listener(Listener listener, DoorOptions options = {});
  /// A client that is connected already (a socket pair, a passed descriptor); also during serve().
  void add_client(Socket socket, DoorOptions options = {});

  /// Lets clients in and serves them: until stop(), or, when nothing listens, until the last client
  /// has gone.
  Task<void> serve();
  /// Safe to call at any time, and again.
  void stop();
  /// After serve(): the connection that end_with_last_client has left open ends.
  void hang_up() { last_client_ = Socket(); }

  const Statistics& statistics() const { return statistics_; }
  const Exports& exports() const { return exports_; }

 private:
  struct Door {
    Listener listener;
    DoorOptions options;
  };
  template <class Which>
  void stop_sessions(Which which);
  Task<void> accept_from(Door& door);
  bool full() const { return statistics_.connections_open >= options_.connections_max; }
  /// Ends when there is one, or the server stops.
  Task<void> wait_for_place();
  Task<void> admit(Socket socket, DoorOptions options);
  Task<void> attend(Socket socket, DoorOptions options);

  Reactor& reactor_;
  ServerOptions options_;
  Exports exports_;
  Statistics statistics_;
  Semaphore memory_;
  Session::Shared shared_;
  std::vector<std::unique_ptr<Door>> doors_;
  std::vector<Session*> sessions_;
  Scope doors_open_;
  Scope clients_;
  Event place_free_;
  Event session_ended_;
  Socket last_client_;  ///< See end_with_last_client.
  bool stopping_ = false;
};

}  // namespace byre::nbd
