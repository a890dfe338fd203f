// SPDX-License-Identifier: Apache-2.0
/// ServerRun: the life of a server with one disk, from its first listener to the end of its lock.
///
///     nbd::ServerRun run(reactor, std::move(disk), quoted(path), {});
///     co_await run.listen({.writable = true}, {.socket = path});
///     ... say that it listens ...
///     run.every(kSecond, [&]() -> Task<void> { ... });
///     Result<void> served = co_await run.serve().result();   // until stop(), or the last client
///     Result<void> ended = co_await run.end().result();      // also when listen() failed
///
/// The order of the end, which clients and scripts rely on:
///   1. No new clients; requests that run are answered (Server::stop()), whatever throttles say.
///   2. What runs beside the server ends: timers are cut short, watched signals cancelled.
///   3. The disk is flushed and closed, and with it goes its lock.
///   4. The connection of the last client, where the server ended with it, and the sockets: so who
///      waits for that finds the disk free.  That is this object's destructor.
///
/// Invariant: everything that was answered is durable when end() has succeeded.
/// Not here: signals that end the process in order (their handler calls stop()), what users are
/// told (cli), how connections are served (nbd_server.h).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "block/let_through.h"
#include "coro/scope.h"
#include "export/nbd_listen.h"
#include "export/nbd_server.h"
#include "io/nbd_device.h"
#include "io/signal.h"

namespace byre::nbd {

class ServerRun {
 public:
  /// `disk_name`: what waiting_for() calls it.
  ServerRun(Reactor& reactor, Child disk, std::string disk_name, ServerOptions options);
  ServerRun(const ServerRun&) = delete;

  /// Until end().
  Device& disk() { return *disk_->edge(); }
  /// Where requests of clients enter: a job may lead its edge to another disk.
  const std::shared_ptr<Entrance>& entrance() const { return disk_; }

  /// Once, before serve().  `target` is the default export; its device is the disk.
  Task<void> listen(Export target, ListenPlan plan);
  const std::vector<Uri>& addresses() const { return addresses_; }
  /// Behind listen(): the kernel becomes a client of the disk, as `device`, whose life is the
  /// caller's.  An error leaves no such client.
  Task<void> attach(NbdDevice& device);

  /// Work beside the server: coroutines that `work()` makes, one at a time.  serve() must follow,
  /// and waits for the one that runs.
  template <class Work>
  void every(int64_t ns, Work work) {
    helpers_.spawn(repeat(ns, std::move(work)));
  }
  /// Work that goes on until `stop()` is called, at the end.
  void beside(Task<void> work, std::function<void()> stop) {
    stops_.push_back(std::move(stop));
    helpers_.spawn(std::move(work));
  }
  template <class Work>
  void on_signal(SignalWatch& signals, Work work) {
    watches_.push_back(&signals);
    helpers_.spawn(answer(signals, std::move(work)));
  }

  /// Until stop(), or until the last client has gone when the options say so; then until the work
  /// beside it has ended.
  Task<void> serve();
  /// Safe to call at any time, and again.
  void stop() {
    // Behind end() there is no disk.
    if (!unthrottled_ && disk_->edge()) {
      unthrottled_ = std::make_unique<LetThrough>(disk_->device());
    }
    server_.stop();
  }
  /// serve() only waits for what runs.
  bool ending() const { return ending_; }

  /// Flushes and closes the disk.  Both are tried; the first error.
  Task<void> end();
  /// Behind end(), for who cannot wait for the destructor: step 4, but for the sockets.
  void hang_up() { server_.hang_up(); }

  const Statistics& statistics() const { return server_.statistics(); }
  /// Of the export that it is there for; behind listen().
  std::shared_ptr<ExportCounts> counts() const { return server_.exports().find("")->counts; }
  /// What keeps it from ending, for people.
  std::string waiting_for() const;

 private:
  template <class Work>
  Task<void> repeat(int64_t ns, Work work) {
    while (!ending_) {
      co_await pause(ns);
      if (!ending_) co_await work();
    }
  }
  template <class Work>
  Task<void> answer(SignalWatch& signals, Work work) {
    while (co_await signals.wait().result()) co_await work();
  }
  /// Sleeps, but not after the end.
  Task<void> pause(int64_t ns);

  Reactor& reactor_;
  std::shared_ptr<Entrance> disk_;
  std::string disk_name_;
  Server server_;
  Scope helpers_;
  std::vector<Op*> timers_;
  std::vector<SignalWatch*> watches_;
  std::vector<std::function<void()>> stops_;
  std::vector<Uri> addresses_;
  std::unique_ptr<LetThrough> unthrottled_;  ///< From stop() on.
  bool ending_ = false;
  bool closing_ = false;
};

}  // namespace byre::nbd
