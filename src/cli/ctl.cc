// SPDX-License-Identifier: Apache-2.0
/// `byre ctl`: finds the command by its words.
#include "cli/ctl.h"

#include <algorithm>
#include <utility>

#include "cli/commands.h"
#include "cli/suggest.h"

namespace byre {

namespace {

constexpr std::string_view kPrefix = "ctl ";

/// The commands, with their operands, a line each.
const std::string& description() {
  static const std::string kText = [] {
    std::string text =
        "Talks to a daemon that runs, over the unix socket of one of its monitors. Each command "
        "has a --help of its own:\n";
    for (const AnyCommand* command : ctl_commands()) {
      text += cat("\n", command->name.substr(kPrefix.size()));
      for (const Argument& argument : command->args) {
        if (argument.is_option()) continue;
        text += argument.optional ? cat(" [", argument.metavar, "]") : cat(" ", argument.metavar);
      }
      text += cat(": ", command->summary);
    }
    text +=
        "\n\nA monitor has one client at a time, so a command that only waits for a job hangs up "
        "between two looks. Ctrl-C ends the waiting, and the job goes on.";
    return text;
  }();
  return kText;
}

/// `byre ctl` by itself: where the words name no command.
class Ctl final : public AnyCommand {
 public:
  struct Words : ctl::Args {
    std::string command;
    std::vector<std::string> rest;
  };
  Ctl() {
    name = "ctl";
    summary = "Steer a daemon that runs: its jobs, exports and bitmaps";
    description = byre::description();
    too_few = "Which command?";
    for (const Argument& argument : Arguments{
             operand("COMMAND", &Words::command, "what is to be done"),
             operands("WORD", &Words::rest, "what it needs"), ctl::socket_argument<Words>()}) {
      args.push_back(argument);
    }
    args[1].optional = true;
  }

  int run(Session& session, const std::vector<std::string>& words) const override {
    // Options may stand in front of the command, too.
    size_t at = 0;
    while (at < words.size() && words[at].starts_with('-')) {
      const std::string& word = words[at];
      at += word == "--socket" || word == "-s" || word == "--output" ? 2 : 1;
    }
    at = std::min(at, words.size());
    if (at == words.size()) {
      Words values;
      return finish_parse(session, *this, begin_parse(session, *this, words, &values));
    }
    for (const size_t count : {size_t{2}, size_t{1}}) {
      if (at + count > words.size()) continue;
      std::string wanted(kPrefix.substr(0, 3));
      for (size_t i = 0; i < count; ++i) wanted += cat(" ", words[at + i]);
      const AnyCommand* const command = find_command(ctl_commands(), wanted);
      if (!command) continue;
      std::vector<std::string> rest(words.begin(), words.begin() + static_cast<ptrdiff_t>(at));
      rest.insert(rest.end(), words.begin() + static_cast<ptrdiff_t>(at + count), words.end());
      return command->run(session, rest);
    }
    return finish_parse(session, *this, not_found(words, at));
  }

 private:
  static Parsed not_found(const std::vector<std::string>& words, size_t at) {
    std::string forms;
    std::vector<std::string_view> names;
    for (const AnyCommand* command : ctl_commands()) {
      const std::string_view form = command->name.substr(kPrefix.size());
      names.push_back(form);
      if (form.starts_with(cat(words[at], " "))) forms += cat(forms.empty() ? "" : ", ", form);
    }
    Parsed failed{.outcome = Parsed::Outcome::failed,
                  .error = cat("Command not found: ctl ", words[at]),
                  .usage = true};
    if (!forms.empty()) {
      failed.advice = cat("there are: ", forms);
    } else if (const std::string_view near = closest(words[at], names); !near.empty()) {
      failed.advice = cat("did you mean '", near, "'?");
    }
    return failed;
  }
};
const Ctl kDefinition;

}  // namespace

std::span<const AnyCommand* const> ctl_commands() {
  static const ctl::Definitions kAll = [] {
    ctl::Definitions all;
    for (const ctl::Definitions& some : {ctl::show_commands(), ctl::start_commands(),
                                         ctl::steer_commands(), ctl::change_commands()}) {
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }();
  return kAll;
}

const AnyCommand& kCtl = kDefinition;

}  // namespace byre
