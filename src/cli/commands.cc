// SPDX-License-Identifier: Apache-2.0
#include "cli/commands.h"

#include <fmt/core.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>

#include "cli/environment.h"
#include "cli/exit_code.h"
#include "cli/json.h"
#include "cli/out_of_memory.h"
#include "cli/session.h"
#include "cli/suggest.h"
#include "io/file_limit.h"
#include "io/signal.h"

namespace byre {

namespace {

/// The names the program answers to, and what it is under each.
enum class ToolName : uint8_t { byre, qemu_img, qemu_io, qemu_nbd, storage_daemon };

ToolName role_of(std::string_view program) {
  if (program == "qemu-img") return ToolName::qemu_img;
  if (program == "qemu-io") return ToolName::qemu_io;
  if (program == "qemu-nbd") return ToolName::qemu_nbd;
  if (program == "qemu-storage-daemon") return ToolName::storage_daemon;
  return ToolName::byre;
}

std::string version_text(Session& session) {
  if (!session.json()) return session.version_line();
  return to_json({{"version", BYRE_VERSION}, {"like-qemu", kLikeQemu}});
}

std::string help_for_byre(const Session& session, std::span<const AnyCommand* const> commands) {
  std::string out = cat("usage: byre COMMAND [options] ...\nbyre ", BYRE_VERSION,
                        ": copy-on-write disk images\n");
  const auto row = [&](std::string left, std::string_view right) {
    constexpr size_t kColumn = 13;
    for (const std::string& line : wrap(right, session.width() - kColumn)) {
      left.resize(kColumn, ' ');
      out += left + line + '\n';
      left.clear();
    }
  };
  const auto paragraph = [&](std::string_view text) {
    out += '\n';
    for (const std::string& line : wrap(text, session.width())) out += line + '\n';
  };
  out += "\ncommands:\n";
  for (const AnyCommand* command : commands) row(cat("  ", command->name), command->summary);
  paragraph("'byre help COMMAND' has the options of each, 'byre version' tells the version.");
  out += "\nexit codes:\n";
  for (const ExitCode& code : exit_codes()) row(cat("    ", code.code), code.meaning);
  row("    128 + N", "ended in order by signal N");
  paragraph("`check` and `repair` tell what they found by codes below 64: see their help.");
  paragraph(
      "Errors go to stderr. With --output=json each line there is a JSON object: {\"error\": "
      "{\"code\", \"exit-code\", \"message\"}}, {\"warning\": ...} or {\"note\": ...}.");
  paragraph(
      "Environment: BYRE_FOLLOW is the default of --follow (which files an image may name); "
      "BYRE_CHAIN_MAX is how many images may lie below one (1024); BYRE_SOCKET is the daemon that "
      "byre ctl talks to.");
  paragraph("Supported formats: qcow qcow2 raw");
  paragraph(
      "Called as qemu-img, qemu-io, qemu-nbd or qemu-storage-daemon (by a link), byre takes their "
      "options, and any failure is 1.");
  return out;
}

/// Scripts look here for commands, options and formats, so what is refused is not listed.
std::string help_for_qemu(const Session& session, std::span<const AnyCommand* const> commands) {
  std::string out = cat("usage: ", session.program(), " [-h | -V] COMMAND [options]\n",
                        session.version_line(), "\ncommands:\n");
  for (const AnyCommand* command : commands) out += cat("  ", synopsis_of(*command), "\n");
  return out + cat("\n'", session.program(), " COMMAND --help' explains the options of each.\n\n",
                   "Supported formats: qcow qcow2 raw\n");
}

std::string not_found(const Session& session, std::span<const AnyCommand* const> commands,
                      std::string_view word) {
  std::string text = cat("Command not found: ", word);
  if (session.compatibility_name()) return text;
  std::vector<std::string_view> names = {"help", "version"};
  for (const AnyCommand* command : commands) names.push_back(command->name);
  const std::string_view near = closest(word, names);
  if (!near.empty()) text += cat("; did you mean '", near, "'?");
  return text;
}

int run_subcommand(Session& session, std::span<const AnyCommand* const> commands,
                   const std::vector<std::string>& words) {
  const auto usage = [&](std::string text) {
    const int code = session.report(Errc::invalid, text);
    if (!session.json()) {
      session.note(cat("Try '", session.program(), " --help' for more ",
                       session.compatibility_name() ? "info\n" : "information\n"));
    }
    return code;
  };
  const auto show = [&](const std::string& text) {
    session.print(text);
    return session.flush_output() ? 0 : 1;
  };
  if (words.empty()) {
    return usage(session.compatibility_name() ? "Not enough arguments" : "No command was given");
  }
  const std::string& first = words[0];
  const bool own = !session.compatibility_name();
  session.set_json(std::ranges::find(words, "--output=json") != words.end());
  if (own && first == "help" && words.size() > 1 && !words[1].starts_with('-')) {
    const AnyCommand* command = find_command(commands, words[1]);
    if (!command) return usage(not_found(session, commands, words[1]));
    return show(help_of(*command, session.program(), Dialect::byre, session.width()));
  }
  if (first == "-h" || first == "--help" || (own && first == "help")) {
    return show(own ? help_for_byre(session, commands) : help_for_qemu(session, commands));
  }
  if (first == "-V" || first == "--version" || (own && first == "version")) {
    return show(version_text(session));
  }
  if (!own && (first.starts_with("-T") || first == "--trace" || first.starts_with("--trace="))) {
    if (words.size() == 1 && first == "-T") return usage("option requires an argument -- 'T'");
    if (words.size() == 1 && first == "--trace")
      return usage("option '--trace' requires an argument");
    return session.report(Errc::unsupported,
                          "option '--trace' is not supported: there is no tracing here");
  }
  if (first.starts_with("--") || (own && first.starts_with('-'))) {
    return usage(cat("unrecognized option '", first, "'"));
  }
  if (first.starts_with('-')) return usage(cat("invalid option -- '", first.substr(1, 1), "'"));
  const AnyCommand* command = find_command(commands, first);
  if (!command) {
    return usage(not_found(session, commands, first));
  }
  return command->run(session, {words.begin() + 1, words.end()});
}

}  // namespace

std::span<const AnyCommand* const> byre_commands() {
  static const std::array kCommands = {
      &kAmend,   &kBench,  &kBitmap, &kCheck,   &kCommit, &kCompare,  &kConvert, &kCreate,
      &kCtl,     &kDaemon, &kDd,     &kDrivers, &kDump,   &kInfo,     &kIo,      &kMap,
      &kMeasure, &kRebase, &kRepair, &kResize,  &kServe,  &kSnapshot,
  };
  return kCommands;
}

std::span<const AnyCommand* const> qemu_img_commands() {
  static const std::array kCommands = {&kAmend,   &kBench,   &kBitmap, &kCheck,  &kCommit,
                                       &kCompare, &kConvert, &kCreate, &kDd,     &kInfo,
                                       &kMap,     &kMeasure, &kRebase, &kResize, &kSnapshot};
  return kCommands;
}

const AnyCommand* find_command(std::span<const AnyCommand* const> commands, std::string_view name) {
  for (const AnyCommand* command : commands) {
    if (command->name == name) return command;
  }
  return nullptr;
}

int run_program(const std::vector<std::string>& words) {
  set_up_signals();
  raise_file_limit();

  std::string program = words.empty() ? "byre" : words[0];
  if (const size_t slash = program.rfind('/'); slash != std::string::npos)
    program.erase(0, slash + 1);
  if (program.empty()) program = "byre";
  // What --fork starts is /proc/self/exe, and ps and pkill would know it as "exe".
  prctl(PR_SET_NAME, program.c_str());
  say_when_memory_runs_out(program);
  const ToolName role = role_of(program);
  Result<std::unique_ptr<Reactor>> reactor = make_reactor();
  if (!reactor) {
    fmt::print(stderr, "{}: {}\n", program, reactor.error().message());
    return 1;
  }
  const std::vector<std::string> rest(words.begin() + (words.empty() ? 0 : 1), words.end());
  const Result<Environment> environment =
      read_environment([](const char* name) { return std::getenv(name); });
  if (!environment) {
    fmt::print(stderr, "{}: {}\n", program, environment.error().message());
    return role == ToolName::byre ? kExitUsage : kExitFailure;
  }
  Session session(**reactor, {.program = program,
                              .compatibility_name = role != ToolName::byre,
                              .follow = environment->follow,
                              .chain_max = environment->chain_max,
                              .words = rest});
  switch (role) {
    case ToolName::byre:
      return run_subcommand(session, byre_commands(), rest);
    case ToolName::qemu_img:
      return run_subcommand(session, qemu_img_commands(), rest);
    case ToolName::qemu_nbd:
      return kQemuNbd.run(session, rest);
    case ToolName::storage_daemon:
      return kStorageDaemon.run(session, rest);
    case ToolName::qemu_io:
      break;
  }
  return kIo.run(session, rest);
}

}  // namespace byre
