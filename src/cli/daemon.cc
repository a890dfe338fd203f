// SPDX-License-Identifier: Apache-2.0
/// `byre daemon`, and qemu-storage-daemon: nodes, exports and monitors.
///
/// Options are carried out in the order in which they stand, since later ones refer to earlier
/// ones.
#include "daemon/daemon.h"

#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "cli/commands.h"
#include "cli/node_io.h"
#include "cli/options.h"
#include "daemon/blockdev_options.h"
#include "daemon/export_commands.h"
#include "daemon/modules.h"
#include "export/background.h"
#include "io/service_manager.h"

namespace byre {

namespace {

/// One option, as it was given.
struct Step {
  enum class Kind : uint8_t { blockdev, chardev, monitor, export_, nbd_server, object } kind;
  std::string text;
};

struct DaemonArgs {
  std::vector<Step> steps;
  std::string pid_file;
  bool daemonize = false;
  bool allow_remote = false;
  bool list_commands = false;
  std::optional<OpenPolicy> follow;
  std::optional<std::string> root;
};

/// Text may be JSON, so nothing is split off it here.
Argument step(std::string_view name, Step::Kind kind, std::string_view metavar,
              std::string_view help) {
  Argument argument = detail::named(Argument::Kind::option, name, metavar, help);
  argument.store = [kind](void* args, std::string_view value) -> Result<void> {
    static_cast<DaemonArgs*>(args)->steps.push_back({kind, std::string(value)});
    return {};
  };
  return argument;
}

template <class Options>
Result<Options> read_options(const std::string& text, std::string_view implied) {
  BYRE_TRY(words, qmp::read_words(text, implied));
  Options options;
  const qmp::Struct& type = definition_of(static_cast<const Options*>(nullptr));
  if (Result<void> read = type.read(words.json, {"", words.from_words}, &options); !read) {
    return std::move(read).error();
  }
  return options;
}

Task<void> add_blockdev(Daemon& daemon, const std::string& text) {
  qmp::Words words = co_await qmp::read_words(text, "driver");
  co_await qmp::check_blockdev(words.json, {"", words.from_words});
  co_await daemon.nodes().add(std::move(words.json));
}

Task<void> carry_out(Daemon& daemon, Step step) {
  switch (step.kind) {
    case Step::Kind::blockdev:
      co_await add_blockdev(daemon, step.text);
      co_return;
    case Step::Kind::chardev: {
      qmp::ChardevOptions options =
          co_await read_options<qmp::ChardevOptions>(step.text, "backend");
      co_await daemon.add_chardev(std::move(options));
      co_return;
    }
    case Step::Kind::monitor: {
      MonitorOptions options = co_await read_options<MonitorOptions>(step.text, "chardev");
      co_await daemon.add_monitor(std::move(options));
      co_return;
    }
    case Step::Kind::export_: {
      qmp::ExportOptions options = co_await read_options<qmp::ExportOptions>(step.text, "type");
      co_await daemon.exports().add(qmp::export_of(std::move(options)));
      co_return;
    }
    case Step::Kind::nbd_server: {
      qmp::ServerOptions options = co_await read_options<qmp::ServerOptions>(step.text, "");
      co_await qmp::start_server(daemon, nullptr, std::move(options.addr), options.connections_max);
      co_return;
    }
    case Step::Kind::object:
      co_await daemon.add_object(step.text);
      co_return;
  }
}

/// Everything that was asked for; then it is said that the daemon is there.
Task<void> set_up(Daemon& daemon, DaemonArgs& args, int ready) {
  for (Step& step : args.steps) {
    if (daemon.quitting()) co_return;
    co_await carry_out(daemon, std::move(step));
  }
  if (!args.pid_file.empty()) co_await write_pid_file(args.pid_file);
  if (ready >= 0) co_await detach(ready);
}

/// For `systemctl status`.
std::string status_of(Daemon& daemon) {
  return cat("ready; ", daemon.nodes().all().size(), " nodes and ",
             daemon.exports().describe().size(), " exports by the command line");
}

Task<int> run_daemon(Session& session, DaemonArgs args) {
  if (args.list_commands) {
    qmp::CommandSet commands(!session.compatibility_name());
    qmp::add_all(commands);
    session.print(qmp::describe_commands(commands));
    co_return 0;
  }
  const int ready = take_ready_descriptor();
  if (args.daemonize && ready < 0) {
    std::vector<std::string> words = session.words();
    words.insert(words.begin(), session.program());
    co_return co_await start_in_background(std::move(words));
  }
  std::unique_ptr<RootedOpener> rooted;
  if (args.root) {
    rooted = co_await RootedOpener::make(session.reactor(), *args.root, session.policy(args.follow))
                 .doing("--root");
  }
  SystemGate gate(session.reactor(), session.policy(args.follow));
  FileOpener& opener = rooted ? static_cast<FileOpener&>(*rooted) : gate;
  NodeIo io(session.reactor(), opener);
  Daemon daemon(session.reactor(),
                {.files = opener,
                 .qemu_version = std::string(kLikeQemu),
                 .package = cat("byre ", BYRE_VERSION),
                 // Under QEMU's name scripts that listen on the network go on working.
                 .allow_remote = args.allow_remote || session.compatibility_name(),
                 .as_qemu = session.compatibility_name(),
                 .root = rooted.get(),
                 .note = [&](const std::string& text) { session.note(cat(text, "\n")); },
                 .warn = [&](const std::string& text) { session.warn(text); },
                 .io = &io});
  ServiceManager manager(session.reactor(), getenv);
  Scope watchdog(session.reactor().ready());
  Result<void> ran;
  Result<void> ended;
  {
    const Session::Interruptible guard(session, {.about = "nodes",
                                                 .stop = [&] { daemon.quit(); },
                                                 .waiting_for = [] { return "exports and nodes"; },
                                                 .is_server = true});
    co_await manager.tell_status("opening what the command line asks for");
    ran = co_await set_up(daemon, args, ready).result();
    if (ran && !daemon.quitting()) {
      co_await manager.tell_ready(status_of(daemon));
      watchdog.spawn(manager.feed_watchdog());
    }
    if (ran) ran = co_await daemon.run().result();
    co_await manager.tell_stopping();
    ended = co_await daemon.end().result();
    manager.stop();
    co_await watchdog.join();
  }
  if (!args.pid_file.empty() && ran) unlink(args.pid_file.c_str());
  co_await std::move(ran);
  co_await std::move(ended);
  co_return 0;
}

constexpr std::string_view kSummary = "Nodes, exports and monitors for clients that speak QMP";
constexpr std::string_view kDescription =
    "Opens devices as nodes, exports them over NBD, and lets clients of a monitor do the same. "
    "Options are carried out in the order in which they are given. SIGTERM, ctrl-C and the command "
    "quit end it in order: requests that run are answered, nodes are flushed and closed.";

Arguments daemon_arguments() {
  return {
      step("--blockdev", Step::Kind::blockdev, "DEVICE",
           "open a node: driver=...,node-name=NAME,... or {...}; `byre drivers` has the options"),
      step("--chardev", Step::Kind::chardev, "CHARDEV",
           "where clients come from: socket,id=ID,path=PATH and ,server=on,wait=off (or "
           "abstract=on, "
           "host= and port=, fd=N; without server=on it connects), or stdio,id=ID"),
      step("--monitor", Step::Kind::monitor, "MONITOR",
           "clients of a chardev speak QMP: chardev=ID, and pretty=on"),
      step("--export", Step::Kind::export_, "EXPORT",
           "nbd,id=ID,node-name=NODE, and name=NAME, writable=on, allocation-depth=on, "
           "bitmaps.0=BITMAP"),
      step("--nbd-server", Step::Kind::nbd_server, "SERVER",
           "start the NBD server: addr.type=unix,addr.path=PATH, or addr.type=inet with "
           "addr.host=HOST and addr.port=PORT; max-connections=N"),
      step("--object", Step::Kind::object, "OBJECT",
           "secret, throttle-group or iothread (whose name is all there is to it: one thread "
           "serves everything)"),
      option("--pidfile", "PATH", &DaemonArgs::pid_file, "where to write the process id"),
      flag("--daemonize", &DaemonArgs::daemonize, "go to the background once all is there"),
      refused("-T, --trace", "SPEC", "there is no tracing here"),
      own({flag("--list-commands", &DaemonArgs::list_commands,
                "print what clients of a monitor can ask for, and end"),
           flag("--allow-remote", &DaemonArgs::allow_remote,
                "let sockets listen beyond this machine, where anybody may connect: there is "
                "no TLS and no password"),
           option("--root", "DIR", &DaemonArgs::root,
                  "open and make files in or below DIR only, whatever a command, an image or a "
                  "link names; what this command line says of sockets and --pidfile is free"),
           option("--follow", "POLICY", &DaemonArgs::follow,
                  "which files an image may name as its backing or data file: nothing, "
                  "same-directory (the default), or any (the default under QEMU's names)")})};
}

const Command<DaemonArgs> kDefinition({.name = "daemon",
                                       .summary = kSummary,
                                       .description = kDescription,
                                       .args = daemon_arguments(),
                                       .has_json = false,
                                       .run = run_daemon});
const Command<DaemonArgs> kUnderQemusName({.name = "",
                                           .summary = kSummary,
                                           .description = kDescription,
                                           .args = daemon_arguments(),
                                           .has_json = false,
                                           .run = run_daemon});

}  // namespace

const AnyCommand& kDaemon = kDefinition;
const AnyCommand& kStorageDaemon = kUnderQemusName;

}  // namespace byre
