// SPDX-License-Identifier: Apache-2.0
#include "cli/command.h"

#include <getopt.h>

#include <algorithm>
#include <map>

namespace byre {

namespace {

/// getopt_long() gives these for options without a letter: their index behind it.
constexpr int kLongOnly = 0x100;
constexpr int kHelp = 0x10000;
constexpr int kVersion = 0x10001;

const Argument* find_letter(const AnyCommand& command, int letter) {
  for (const Argument& argument : command.args) {
    if (argument.is_option() && argument.letter == letter) return &argument;
  }
  return nullptr;
}

Parsed usage(std::string text) {
  return {.outcome = Parsed::Outcome::failed, .error = std::move(text), .usage = true};
}

/// Splits `text` into lines of at most `width`, at spaces; a newline in it ends a line.
std::vector<std::string> wrap(std::string_view text, size_t width) {
  std::vector<std::string> lines(1);
  size_t at = 0;
  while (at < text.size()) {
    if (text[at] == '\n') {
      lines.emplace_back();
      ++at;
      continue;
    }
    size_t end = text.find_first_of(" \n", at);
    if (end == std::string_view::npos) end = text.size();
    const std::string_view word = text.substr(at, end - at);
    if (!lines.back().empty() && lines.back().size() + 1 + word.size() > width)
      lines.emplace_back();
    if (!lines.back().empty()) lines.back() += ' ';
    lines.back() += word;
    at = end;
    while (at < text.size() && text[at] == ' ') ++at;
  }
  return lines;
}

Parsed assign_operands(const AnyCommand& command, const std::vector<std::string>& words,
                       void* args) {
  size_t next = 0;
  for (const Argument& argument : command.args) {
    if (argument.is_option()) continue;
    if (next == words.size() && !argument.optional) {
      if (!command.too_few.empty()) return usage(std::string(command.too_few));
      return usage(cat("Expecting ", argument.metavar));
    }
    do {
      if (next == words.size()) break;
      if (Result<void> stored = argument.store(args, words[next++]); !stored) {
        return {.outcome = Parsed::Outcome::failed, .error = stored.error().message()};
      }
    } while (argument.repeats);
  }
  if (next < words.size()) {
    if (!command.too_many.empty()) return usage(std::string(command.too_many));
    return usage(cat("Unexpected argument: ", words[next]));
  }
  return {};
}

}  // namespace

namespace detail {

Argument named(Argument::Kind kind, std::string_view names, std::string_view metavar,
               std::string_view help) {
  Argument argument{.kind = kind, .metavar = metavar, .help = help};
  if (names.size() >= 2 && names[1] != '-') {
    argument.letter = names[1];
    names.remove_prefix(std::min<size_t>(names.size(), 4));
  }
  if (names.starts_with("--")) argument.name = names.substr(2);
  return argument;
}

}  // namespace detail

std::string Argument::spelling() const {
  if (!is_option()) return std::string(metavar);
  std::string text;
  if (letter != 0) text += cat("-", letter);
  if (letter != 0 && !name.empty()) text += ", ";
  if (!name.empty()) text += cat("--", name);
  if (takes_value()) text += cat(" ", metavar);
  return text;
}

Parsed parse(const AnyCommand& command, const std::vector<std::string>& words, void* args) {
  std::string letters = ":hV";  // ':' first: a missing value is told apart from a wrong option.
  std::vector<::option> longs;
  std::vector<std::string> names;  // getopt wants them terminated.
  names.reserve(command.args.size());
  for (size_t i = 0; i < command.args.size(); ++i) {
    const Argument& argument = command.args[i];
    if (!argument.is_option()) continue;
    if (argument.letter != 0) {
      letters += argument.letter;
      if (argument.takes_value()) letters += ':';
    }
    if (argument.name.empty()) continue;
    longs.push_back({.name = names.emplace_back(argument.name).c_str(),
                     .has_arg = argument.takes_value() ? required_argument : no_argument,
                     .flag = nullptr,
                     .val = kLongOnly + static_cast<int>(i)});
  }
  longs.push_back({"help", no_argument, nullptr, kHelp});
  longs.push_back({"version", no_argument, nullptr, kVersion});
  longs.push_back({nullptr, 0, nullptr, 0});

  std::vector<std::string> copy = words;  // getopt reorders and wants char*.
  std::string last;
  const bool take_last = command.last_word_is_operand && copy.size() > 1 &&
                         copy.back() != "--help" && copy.back() != "-h";
  if (take_last) {
    last = std::move(copy.back());
    copy.pop_back();
  }
  std::string program(command.name);
  std::vector<char*> argv{program.data()};
  for (std::string& word : copy) argv.push_back(word.data());
  argv.push_back(nullptr);

  opterr = 0;
  optind = 0;  // Starts afresh (glibc).
  const int argc = static_cast<int>(argv.size()) - 1;
  for (;;) {
    const int found = getopt_long(argc, argv.data(), letters.c_str(), longs.data(), nullptr);
    if (found == -1) break;
    if (found == ':') {
      return usage(
          cat("missing argument for option '", argv[static_cast<size_t>(optind) - 1], "'"));
    }
    if (found == '?') {
      return usage(cat("unrecognized option '", argv[static_cast<size_t>(optind) - 1], "'"));
    }
    const Argument* argument = found >= kLongOnly && found < kHelp
                                   ? &command.args[static_cast<size_t>(found - kLongOnly)]
                                   : find_letter(command, found);
    if (!argument && (found == kHelp || found == 'h')) return {.outcome = Parsed::Outcome::help};
    if (!argument) return {.outcome = Parsed::Outcome::version};
    if (argument->is_refused()) {
      const std::string spelled =
          argument->name.empty() ? cat("-", argument->letter) : cat("--", argument->name);
      return {.outcome = Parsed::Outcome::failed,
              .error = cat("option '", spelled, "' is not supported: ", argument->help)};
    }
    if (Result<void> stored = argument->store(args, optarg ? optarg : ""); !stored) {
      return {.outcome = Parsed::Outcome::failed, .error = stored.error().message()};
    }
  }
  std::vector<std::string> rest(argv.begin() + optind, argv.begin() + argc);
  if (take_last) rest.push_back(std::move(last));
  return assign_operands(command, rest, args);
}

std::string help_of(const AnyCommand& command, std::string_view program) {
  constexpr size_t kColumn = 28;
  constexpr size_t kWidth = 96;
  std::string operand_words;
  for (const Argument& argument : command.args) {
    if (argument.is_option()) continue;
    const std::string word = cat(argument.metavar, argument.repeats ? "..." : "");
    operand_words += argument.optional ? cat(" [", word, "]") : cat(" ", word);
  }
  const bool is_program = command.name.empty() || program == cat("qemu-", command.name);
  std::string out = cat("usage: ", program, is_program ? "" : cat(" ", command.name), " [options]",
                        operand_words, "\n", command.summary, ".\n");
  if (!command.description.empty()) {
    out += '\n';
    for (const std::string& line : wrap(command.description, kWidth)) out += line + '\n';
  }
  const auto row = [&](const std::string& left, std::string_view right) {
    std::string line = "  " + left;
    if (line.size() + 2 > kColumn) {
      out += line + '\n';
      line.clear();
    }
    for (const std::string& text : wrap(right, kWidth - kColumn)) {
      line.resize(kColumn, ' ');
      out += line + text + '\n';
      line.clear();
    }
  };
  out += '\n';
  for (const Argument& argument : command.args) {
    if (!argument.is_option()) row(argument.spelling(), argument.help);
  }
  out += "\noptions:\n";
  for (const Argument& argument : command.args) {
    if (argument.is_option() && !argument.is_refused()) row(argument.spelling(), argument.help);
  }
  row("-h, --help", "print this and exit");
  std::string not_supported;
  for (const Argument& argument : command.args) {
    if (!argument.is_refused()) continue;
    if (!not_supported.empty()) not_supported += ' ';
    not_supported += argument.name.empty() ? cat("-", argument.letter) : cat("--", argument.name);
  }
  if (!not_supported.empty()) out += cat("\nknown, but refused: ", not_supported, "\n");
  return out;
}

}  // namespace byre
