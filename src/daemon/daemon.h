// SPDX-License-Identifier: Apache-2.0
/// Daemon: what `byre daemon` is: nodes, exports and objects, and the monitors by which clients
/// change them.
///
///     Daemon daemon(reactor, options);
///     co_await daemon.add_chardev(...); co_await daemon.add_monitor(...);   // in any order that
///     fits co_await daemon.run();    // until quit(): a command, or a signal co_await
///     daemon.end();
///
/// Commands run one at a time, whichever monitor they come by, so that none sees what another has
/// half done.  The end, in this order: no command begins any more; exports end, with the requests
/// that run answered; jobs and others that use nodes end (NodeUser); nodes are flushed
/// and closed; monitors have said what they had to say, and their sockets go.
/// Commands and requests that wait for another server are given up (block/gives_up.h) when the end
/// has taken kGiveUpAfter: it is bounded.
/// Invariant: everything that was answered is durable when end() has succeeded.
/// Not here: words of a command line (cli/daemon.cc), commands (modules.h).
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "coro/event.h"
#include "coro/scope.h"
#include "coro/semaphore.h"
#include "daemon/chardev.h"
#include "daemon/descriptors.h"
#include "daemon/exports.h"
#include "daemon/nodes.h"
#include "daemon/qmp_session.h"

namespace byre {

/// `--monitor`
struct MonitorOptions {
  std::string chardev;
  std::string mode = "control";
  std::optional<std::string> id;
  bool pretty = false;
};
const qmp::Struct& definition_of(const MonitorOptions*);

/// Does one command of `byre io` on a node, and says what it printed.
class IoRunner {
 public:
  virtual Task<std::string> run_io(NamedNode& node, std::string command) = 0;

 protected:
  ~IoRunner() = default;
};

/// What uses nodes by itself, beside exports: jobs.
class NodeUser {
 public:
  /// The daemon is about to close the nodes: nothing of it runs any more when this has ended.
  virtual Task<void> end() = 0;

 protected:
  ~NodeUser() = default;
};

class DaemonJobs;

class Daemon {
 public:
  struct Options {
    FileOpener& files;
    std::string qemu_version;  ///< "10.0.0"
    std::string package;       ///< Who it really is.
    bool allow_remote = false;
    /// Called by QEMU's name: nothing that QEMU does not have, and its defaults.
    bool as_qemu = false;
    /// Beneath which all lies that commands open by path; `files` is it, then.  Null: anywhere.
    const RootedOpener* root = nullptr;
    /// Told what users should know.
    std::function<void(const std::string&)> note;
    std::function<void(const std::string&)> warn;
    IoRunner* io = nullptr;  ///< Null: human-monitor-command is refused.
  };
  Daemon(Reactor& reactor, Options options);
  Daemon(const Daemon&) = delete;
  ~Daemon();

  // What options of the command line and commands do alike.
  Task<void> add_chardev(qmp::ChardevOptions options);
  Task<void> add_monitor(MonitorOptions options);
  Result<void> add_object(const std::string& text);
  Result<void> remove_object(const std::string& id);

  Task<void> run();
  /// Safe to call at any time, and again.
  void quit();
  bool quitting() const { return quitting_; }
  /// The end is near: what waits for another server is given up when it has taken kGiveUpAfter.
  /// end() does that itself; who has something to end before calls it first.  Safe to call again.
  void expect_end();
  Task<void> end();

  Reactor& reactor() { return reactor_; }
  Nodes& nodes() { return nodes_; }
  BlockExports& exports() { return exports_; }
  DaemonJobs& jobs() { return *jobs_; }
  const Objects& objects() const { return *objects_; }
  /// What query-chardev says.
  qmp::Json describe_chardevs() const;
  /// Ids and types, as qom-list calls them.
  std::vector<std::pair<std::string, std::string>> chardev_types() const;
  qmp::DescriptorSets& descriptor_sets() { return sets_; }
  const qmp::CommandSet& commands() const { return commands_; }
  const Options& options() const { return options_; }
  /// For every file that a client names: /dev/fdset/N, and what lies beneath the root.
  FileOpener& files() { return files_; }
  const qmp::Json& version() const { return realm_.version; }
  qmp::AddressContext addresses(qmp::Descriptors* descriptors) {
    // Who wrote the command line may say where sockets are.
    return {.reactor = reactor_,
            .descriptors = descriptors,
            .allow_remote = options_.allow_remote,
            .root = descriptors ? options_.root : nullptr};
  }

  /// Tells all clients that have negotiated.  The event is one of the command set's.
  void emit(std::string_view event, qmp::Json data);
  /// It is ended before the nodes are closed.
  void add_user(NodeUser& user) { users_.push_back(&user); }

 private:
  struct Monitor;
  Result<std::string> confined(const std::string& text) const;
  Task<void> serve(Monitor& monitor);
  Task<void> give_up_later();

  Reactor& reactor_;
  const Options options_;
  qmp::DescriptorSets sets_;
  qmp::FdsetOpener files_;
  std::shared_ptr<Objects> objects_;
  Nodes nodes_;
  BlockExports exports_;
  qmp::CommandSet commands_;
  Mutex turn_;
  qmp::Realm realm_;
  std::vector<std::unique_ptr<qmp::Chardev>> chardevs_;
  std::vector<std::unique_ptr<Monitor>> monitors_;
  std::vector<NodeUser*> users_;
  std::unique_ptr<DaemonJobs> jobs_;
  Scope serving_;
  Event asked_to_quit_;
  Scope giving_up_;
  Op give_up_timer_;
  bool end_expected_ = false;
  bool quitting_ = false;
  bool ended_ = false;  ///< All nodes are closed.
};

}  // namespace byre
