// SPDX-License-Identifier: Apache-2.0
#include "cli/commands.h"

#include <array>
#include <cstdio>

#include "cli/out_of_memory.h"
#include "cli/session.h"
#include "io/signal.h"

namespace byre {

namespace {

/// The names the program answers to, and what it is under each.
enum class Role : uint8_t { byre, qemu_img, qemu_io, qemu_nbd };

Role role_of(std::string_view program) {
  if (program == "qemu-img") return Role::qemu_img;
  if (program == "qemu-io") return Role::qemu_io;
  if (program == "qemu-nbd") return Role::qemu_nbd;
  return Role::byre;
}

std::string program_help(std::string_view program, std::span<const AnyCommand* const> commands) {
  std::string out = cat("usage: ", program, " COMMAND [options] ...\n", "byre ", BYRE_VERSION,
                        ": copy-on-write disk images\n\ncommands:\n");
  for (const AnyCommand* command : commands) {
    out += fmt::format("  {:<10} {}\n", command->name, command->summary);
  }
  out += cat("\n'", program, " COMMAND --help' has the options of each.\n",
             "Supported formats: qcow2 raw\n"
             "Called as qemu-img, qemu-io or qemu-nbd (by a link), byre takes their options.\n");
  return out;
}

int run_subcommand(Session& session, std::span<const AnyCommand* const> commands,
                   const std::vector<std::string>& words) {
  const auto usage = [&](std::string text) {
    session.error(text);
    session.note(cat("Try '", session.program(), " --help' for more information\n"));
    return 1;
  };
  if (words.empty()) return usage("Not enough arguments");
  const std::string& first = words[0];
  if (first == "-h" || first == "--help" || first == "help") {
    session.print(program_help(session.program(), commands));
    return session.flush_output() ? 0 : 1;
  }
  if (first == "-V" || first == "--version") {
    session.print(session.version_line());
    return session.flush_output() ? 0 : 1;
  }
  if (first.starts_with('-')) return usage(cat("unrecognized option '", first, "'"));
  const AnyCommand* command = find_command(commands, first);
  if (!command) {
    const int code = usage(cat("Command not found: ", first));
    return first == "compare" ? 2 : code;  // 1 would say that the images differ.
  }
  return command->run(session, {words.begin() + 1, words.end()});
}

}  // namespace

std::span<const AnyCommand* const> byre_commands() {
  static const std::array kCommands = {
      &kAmend, &kBitmap, &kCheck,  &kConvert, &kCreate, &kDump,     &kInfo,
      &kIo,    &kMap,    &kRepair, &kResize,  &kServe,  &kSnapshot,
  };
  return kCommands;
}

std::span<const AnyCommand* const> qemu_img_commands() {
  static const std::array kCommands = {&kAmend, &kBitmap, &kCheck,  &kConvert, &kCreate,
                                       &kInfo,  &kMap,    &kResize, &kSnapshot};
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

  std::string program = words.empty() ? "byre" : words[0];
  if (const size_t slash = program.rfind('/'); slash != std::string::npos)
    program.erase(0, slash + 1);
  if (program.empty()) program = "byre";
  say_when_memory_runs_out(program);
  const Role role = role_of(program);
  Result<std::unique_ptr<Reactor>> reactor = make_reactor();
  if (!reactor) {
    fmt::print(stderr, "{}: {}\n", program, reactor.error().message());
    return 1;
  }
  const std::vector<std::string> rest(words.begin() + (words.empty() ? 0 : 1), words.end());
  Session session(**reactor, {.program = program, .stand_in = role != Role::byre, .words = rest});
  switch (role) {
    case Role::byre:
      return run_subcommand(session, byre_commands(), rest);
    case Role::qemu_img:
      return run_subcommand(session, qemu_img_commands(), rest);
    case Role::qemu_nbd:
      return kQemuNbd.run(session, rest);
    case Role::qemu_io:
      break;
  }
  return kIo.run(session, rest);
}

}  // namespace byre
