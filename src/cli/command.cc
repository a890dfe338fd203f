// SPDX-License-Identifier: Apache-2.0
#include "cli/command.h"

#include <getopt.h>

#include <algorithm>
#include <map>

#include "cli/suggest.h"

namespace byre {

namespace {

/// getopt_long() gives these for options without a letter: their index behind it.
constexpr int kLongOnly = 0x100;
constexpr int kHelp = 0x10000;
constexpr int kVersion = 0x10001;
constexpr int kQuiet = 0x10002;
constexpr int kOutput = 0x10003;

const Argument* find_letter(const AnyCommand& command, int letter) {
  for (const Argument& argument : command.args) {
    if (argument.is_option() && argument.letter == letter) return &argument;
  }
  return nullptr;
}

Parsed usage(std::string text) {
  return {.outcome = Parsed::Outcome::failed, .error = std::move(text), .usage = true};
}

/// What is wrong with "resize 10G disk": the two operands are there, but swapped.
/// `all` is the command line, `words` its operands.
std::string swapped_operands(const AnyCommand& command, std::vector<std::string> all,
                             const std::vector<std::string>& words) {
  std::vector<std::string_view> operands;
  for (const Argument& argument : command.args) {
    if (!argument.is_option()) operands.push_back(argument.metavar);
  }
  if (operands.size() != 2 || operands[1] != "SIZE" || words.size() != 2) return {};
  const auto is_size = [](std::string_view word) {
    if (word.starts_with('+') || word.starts_with('-')) word.remove_prefix(1);
    const Result<uint64_t> size = parse_size(word);
    return size || size.error().code() == Errc::no_space;
  };
  if (!is_size(words[0]) || is_size(words[1])) return {};
  std::string text = cat(quoted(words[1]), " is no size; ", operands[0], " comes before SIZE");
  const auto size = std::ranges::find(all, words[0]);
  const auto image = std::ranges::find(all, words[1]);
  if (size == all.end() || image == all.end()) return text;
  std::swap(*size, *image);
  std::string line = cat("byre ", command.name);
  for (const std::string& word : all) {
    // What a shell would take apart is not offered.
    constexpr std::string_view kPlain =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789./_-+=,:@%";
    if (word.empty() || word.find_first_not_of(kPlain) != std::string::npos) return text;
    line += cat(" ", word);
  }
  return text + ": " + line;
}

/// All long options, with their dashes.
std::vector<std::string> long_options(const AnyCommand& command, Dialect dialect) {
  std::vector<std::string> names = {"--help", "--version"};
  for (const Argument& argument : command.args) {
    if (argument.is_option() && !argument.is_refused() && !argument.name.empty())
      names.push_back(cat("--", argument.name));
  }
  if (dialect == Dialect::byre) names.push_back("--quiet");
  if (dialect == Dialect::byre && command.has_json) names.push_back("--output");
  // What is both a command's own and everybody's.
  std::ranges::sort(names);
  names.erase(std::ranges::unique(names).begin(), names.end());
  return names;
}

/// What an option that getopt does not take may have been meant to be.
std::string advice_for(std::string_view word, const AnyCommand& command, Dialect dialect) {
  word = word.substr(0, word.find('='));
  if (!word.starts_with("--")) return {};
  const std::vector<std::string> names = long_options(command, dialect);
  std::string fitting;
  for (const std::string& name : names) {
    if (name.starts_with(word)) fitting += cat(fitting.empty() ? "" : ", ", name);
  }
  // getopt takes a beginning that fits one option, so these are several.
  if (!fitting.empty()) return cat("it could be ", fitting);
  const std::vector<std::string_view> views(names.begin(), names.end());
  const std::string_view near = closest(word, views);
  return near.empty() ? "" : cat("did you mean '", near, "'?");
}

Parsed assign_operands(const AnyCommand& command, const std::vector<std::string>& words,
                       void* args) {
  size_t next = 0;
  const Argument* last = nullptr;
  for (const Argument& argument : command.args) {
    if (argument.is_option()) continue;
    last = &argument;
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
  // An operand that is told of wrong uses decides about the words behind it.
  while (next < words.size() && last && last->misuse) {
    if (Result<void> stored = last->store(args, words[next++]); !stored)
      return usage(stored.error().message());
  }
  if (next < words.size()) {
    if (!command.too_many.empty()) return usage(std::string(command.too_many));
    return usage(cat("Unexpected argument: ", words[next]));
  }
  return {};
}

/// Is one of the words this long option, in full?
bool is_written_out(const std::vector<std::string>& words, std::string_view name) {
  return std::ranges::any_of(words, [&](std::string_view word) {
    if (!word.starts_with("--")) return false;
    word.remove_prefix(2);
    return word.substr(0, word.find('=')) == name;
  });
}

/// The flag that byre lets have a value: how it is shown.
bool is_progress(const Argument& argument) {
  return argument.kind == Argument::Kind::flag && argument.name == "progress";
}

/// "--progress json" in two words becomes one: getopt takes an optional value no other way.
void join_progress(const AnyCommand& command, std::vector<std::string>& words) {
  if (!std::ranges::any_of(command.args, is_progress)) return;
  for (size_t i = 0; i + 1 < words.size() && words[i] != "--"; ++i) {
    if (words[i] != "--progress" || words[i + 1] != "json") continue;
    words[i] = "--progress=json";
    words.erase(words.begin() + static_cast<std::ptrdiff_t>(i) + 1);
  }
}

/// The options of a command as getopt_long(3) wants them, with those that every command has.
struct Accepted {
  Accepted(const AnyCommand& command, const std::vector<std::string>& words, Dialect dialect) {
    bool own_quiet = false;
    bool own_output = false;
    size_t count = 0;
    for (const Argument& argument : command.args) {
      own_quiet |= argument.is_option() && (argument.letter == 'q' || argument.name == "quiet");
      own_output |= argument.is_option() && argument.name == "output";
      count += 1 + argument.aliases.size();
    }
    adds_quiet = dialect == Dialect::byre && !own_quiet;
    names.reserve(count);
    for (size_t i = 0; i < command.args.size(); ++i) {
      const Argument& argument = command.args[i];
      if (!argument.is_option()) continue;
      const bool hidden = dialect == Dialect::qemu && argument.own;
      if (argument.letter != 0 && !hidden) {
        letters += argument.letter;
        if (argument.takes_value()) letters += ':';
      }
      const bool may_take_value = dialect == Dialect::byre && is_progress(argument);
      const auto add = [&](std::string_view name) {
        if (name.empty() || (hidden && !is_written_out(words, name))) return;
        longs.push_back({.name = names.emplace_back(name).c_str(),
                         .has_arg = argument.takes_value() ? required_argument
                                    : may_take_value       ? optional_argument
                                                           : no_argument,
                         .flag = nullptr,
                         .val = kLongOnly + static_cast<int>(i)});
      };
      add(argument.name);
      for (const std::string_view alias : argument.aliases) add(alias);
    }
    if (adds_quiet) {
      letters += 'q';
      longs.push_back({"quiet", no_argument, nullptr, kQuiet});
    }
    if (dialect == Dialect::byre && !own_output && command.has_json)
      longs.push_back({"output", required_argument, nullptr, kOutput});
    longs.push_back({"help", no_argument, nullptr, kHelp});
    // qemu-img has that of no command, only in front of it.
    const bool has_version =
        dialect == Dialect::byre || command.name.empty() || command.name == "io";
    if (has_version) {
      letters += 'V';
      longs.push_back({"version", no_argument, nullptr, kVersion});
    }
    longs.push_back({nullptr, 0, nullptr, 0});
  }
  Accepted(const Accepted&) = delete;  // `longs` points into `names`.

  bool adds_quiet = false;
  std::string letters = ":h";  // ':' first: a missing value is told apart from a wrong option.
  std::vector<::option> longs;
  std::vector<std::string> names;  // getopt wants them terminated.
};

/// What getopt_long() itself says of the option that it did not take; `word` is where it stands.
std::string words_of_getopt(const Accepted& accepted, int found, std::string_view word) {
  std::string name(word.substr(0, word.find('=')));
  const ::option* known = nullptr;  // The long option that optopt means.
  for (const ::option& one : accepted.longs) {
    const bool means = one.name && optopt >= kLongOnly && one.val == optopt;
    if (means && cat("--", one.name).starts_with(name)) known = &one;
  }
  if (known) name = cat("--", known->name);
  if (found == ':') {
    if (known) return cat("option '", name, "' requires an argument");
    return cat("option requires an argument -- '", static_cast<char>(optopt), "'");
  }
  if (known) return cat("option '", name, "' doesn't allow an argument");
  if (optopt != 0) return cat("invalid option -- '", static_cast<char>(optopt), "'");
  std::string possible;
  int count = 0;
  for (const ::option& one : accepted.longs) {
    if (!one.name || !cat("--", one.name).starts_with(name)) continue;
    possible += cat(" '--", one.name, "'");
    ++count;
  }
  if (count < 2) return cat("unrecognized option '", word, "'");
  return cat("option '", word, "' is ambiguous; possibilities:", possible);
}

/// Is the word in front of `place` an operand, and no option or value of one?
bool follows_operand(const AnyCommand& command, const std::vector<std::string>& words,
                     std::vector<std::string>::const_iterator place) {
  if (place == words.begin()) return false;
  const std::string& before = *(place - 1);
  if (before.starts_with('-')) return false;
  if (place - 1 == words.begin()) return true;
  const std::string& option = *(place - 2);
  return std::ranges::none_of(command.args, [&](const Argument& argument) {
    if (!argument.takes_value()) return false;
    return option == cat("-", argument.letter) || option == cat("--", argument.name);
  });
}

/// Where a command's last word is an operand even if it looks like an option: takes it out.
std::optional<std::string> take_last_operand(const AnyCommand& command,
                                             std::vector<std::string>& words, Dialect dialect) {
  if (!command.last_word_is_operand) return std::nullopt;
  const auto is_negative = [](const std::string& word) {
    return word.size() > 1 && word[0] == '-' && word[1] >= '0' && word[1] <= '9';
  };
  const auto taken = std::ranges::find_if(words, is_negative);
  if (taken == words.end()) return std::nullopt;
  // qemu-img takes it right behind the image only.
  if (dialect == Dialect::qemu && !follows_operand(command, words, taken)) return std::nullopt;
  std::string last = std::move(*taken);
  words.erase(taken);
  return last;
}

/// Stores the option that getopt has `found`, with its value in optarg.  Something when it ends the
/// parse: an error, help or the version.
std::optional<Parsed> take_option(const AnyCommand& command, const Accepted& accepted, int found,
                                  void* args, Parsed& parsed) {
  if (found == kQuiet || (found == 'q' && accepted.adds_quiet)) {
    parsed.quiet = true;
    return std::nullopt;
  }
  if (found == kOutput) {
    OutputFormat format = OutputFormat::human;
    if (Result<void> stored = parse_value(optarg, format); !stored) {
      return Parsed{.outcome = Parsed::Outcome::failed, .error = stored.error().message()};
    }
    parsed.json = format == OutputFormat::json;
    return std::nullopt;
  }
  const Argument* argument = found >= kLongOnly && found < kHelp
                                 ? &command.args[static_cast<size_t>(found - kLongOnly)]
                                 : find_letter(command, found);
  if (!argument && (found == kHelp || found == 'h'))
    return Parsed{.outcome = Parsed::Outcome::help};
  if (!argument) return Parsed{.outcome = Parsed::Outcome::version};
  if (argument->is_refused() && !argument->store) {
    const std::string spelled =
        argument->name.empty() ? cat("-", argument->letter) : cat("--", argument->name);
    return Parsed{.outcome = Parsed::Outcome::failed,
                  .error = cat("option '", spelled, "' is not supported: ", argument->help)};
  }
  if (is_progress(*argument) && optarg) {
    if (std::string_view(optarg) != "json") {
      return Parsed{.outcome = Parsed::Outcome::failed,
                    .error = cat("Invalid progress format '", optarg,
                                 "'; --progress=json, or --progress for people")};
    }
    parsed.progress_json = true;
  }
  if (argument->name == "output") parsed.json = std::string_view(optarg) == "json";
  if (Result<void> stored = argument->store(args, optarg ? optarg : ""); !stored) {
    return Parsed{.outcome = Parsed::Outcome::failed,
                  .error = stored.error().message(),
                  .usage = argument->misuse || argument->name == "output"};
  }
  return std::nullopt;
}

}  // namespace

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

namespace detail {

Argument named(Argument::Kind kind, std::string_view names, std::string_view metavar,
               std::string_view help) {
  Argument argument{.kind = kind, .metavar = metavar, .help = help};
  if (names.size() >= 2 && names[1] != '-') {
    argument.letter = names[1];
    names.remove_prefix(std::min<size_t>(names.size(), 4));
  }
  while (names.starts_with("--")) {
    const size_t end = names.find(", ");
    const std::string_view name = names.substr(2, end == names.npos ? names.npos : end - 2);
    if (argument.name.empty()) {
      argument.name = name;
    } else {
      argument.aliases.push_back(name);
    }
    if (end == names.npos) break;
    names.remove_prefix(end + 2);
  }
  return argument;
}

}  // namespace detail

std::string Argument::spelling() const {
  if (!is_option()) return std::string(metavar);
  std::string text;
  if (letter != 0) text += cat("-", letter);
  if (letter != 0 && !name.empty()) text += ", ";
  if (!name.empty()) text += cat("--", name);
  for (const std::string_view alias : aliases) text += cat(", --", alias);
  if (takes_value()) text += cat(" ", metavar);
  return text;
}

Parsed parse(const AnyCommand& command, const std::vector<std::string>& words, void* args,
             Dialect dialect) {
  const Accepted accepted(command, words, dialect);
  std::vector<std::string> copy = words;  // getopt reorders and wants char*.
  if (dialect == Dialect::byre) join_progress(command, copy);
  std::optional<std::string> last = take_last_operand(command, copy, dialect);
  std::string program(command.name);
  std::vector<char*> argv{program.data()};
  for (std::string& word : copy) argv.push_back(word.data());
  argv.push_back(nullptr);

  Parsed parsed;
  opterr = 0;
  optind = 0;  // Starts afresh (glibc).
  const int argc = static_cast<int>(argv.size()) - 1;
  for (;;) {
    const int found =
        getopt_long(argc, argv.data(), accepted.letters.c_str(), accepted.longs.data(), nullptr);
    if (found == -1) break;
    const std::string_view word = argv[static_cast<size_t>(optind) - 1];
    if ((found == ':' || found == '?') && dialect == Dialect::qemu) {
      Parsed failed = usage(words_of_getopt(accepted, found, word));
      failed.option = true;
      return failed;
    }
    if (found == ':') return usage(cat("missing argument for option '", word, "'"));
    if (found == '?') {
      Parsed failed = usage(cat("unrecognized option '", word, "'"));
      failed.advice = advice_for(word, command, dialect);
      return failed;
    }
    if (auto ended = take_option(command, accepted, found, args, parsed)) {
      // Byre's own sentence about a value needs no help behind it.
      if (dialect == Dialect::byre) ended->usage = false;
      return *std::move(ended);
    }
  }
  std::vector<std::string> rest(argv.begin() + optind, argv.begin() + argc);
  if (last) rest.push_back(*std::move(last));
  if (dialect == Dialect::byre) {
    if (std::string swapped = swapped_operands(command, words, rest); !swapped.empty()) {
      return usage(std::move(swapped));
    }
  }
  Parsed assigned = assign_operands(command, rest, args);
  if (assigned.usage && !rest.empty()) {
    // "snapshot create disk": options are no words of their own.
    for (const Argument& argument : command.args) {
      if (!argument.is_option() || argument.is_refused() || argument.name != rest[0]) continue;
      assigned.advice = cat("did you mean '--", rest[0], "'?");
    }
  }
  assigned.json = parsed.json;
  assigned.quiet = parsed.quiet;
  assigned.progress_json = parsed.progress_json;
  return assigned;
}

std::string synopsis_of(const AnyCommand& command) {
  std::string out(command.name);
  for (const Argument& argument : command.args) {
    if (!argument.is_option() || argument.is_refused()) continue;
    const std::string name =
        argument.letter != 0 ? cat("-", argument.letter) : cat("--", argument.name);
    const std::string other =
        argument.letter != 0 && !argument.name.empty() ? cat(" | --", argument.name) : "";
    const std::string value = argument.takes_value() ? cat(" ", argument.metavar) : "";
    out += cat(" [", name, other, value, "]");
  }
  for (const Argument& argument : command.args) {
    if (argument.is_option()) continue;
    const std::string word = cat(argument.metavar, argument.repeats ? "..." : "");
    out += argument.optional ? cat(" [", word, "]") : cat(" ", word);
  }
  return out;
}

std::string help_of(const AnyCommand& command, std::string_view program, Dialect dialect,
                    size_t width) {
  const size_t column = std::min<size_t>(28, width / 3);
  std::string operand_words;
  for (const Argument& argument : command.args) {
    if (argument.is_option()) continue;
    const std::string word = cat(argument.metavar, argument.repeats ? "..." : "");
    operand_words += argument.optional ? cat(" [", word, "]") : cat(" ", word);
  }
  const bool is_program = command.name.empty() || program == cat("qemu-", command.name);
  std::string out = cat("usage: ", program, is_program ? "" : cat(" ", command.name), " [options]",
                        operand_words, "\n");
  for (const std::string& line : wrap(cat(command.summary, "."), width)) out += line + '\n';
  if (!command.description.empty()) {
    out += '\n';
    for (const std::string& line : wrap(command.description, width)) out += line + '\n';
  }
  const auto row = [&](const std::string& left, std::string_view right) {
    std::string line = "  " + left;
    if (line.size() + 2 > column) {
      out += line + '\n';
      line.clear();
    }
    for (const std::string& text : wrap(right, width - column)) {
      line.resize(column, ' ');
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
    if (!argument.is_option() || argument.is_refused()) continue;
    const bool has_form = dialect == Dialect::byre && is_progress(argument);
    row(argument.spelling() + (has_form ? "[=json]" : ""),
        has_form ? cat(argument.help, "; json: as lines of JSON on standard error")
                 : std::string(argument.help));
  }
  if (dialect == Dialect::byre) {
    const auto has = [&](std::string_view name) {
      return std::ranges::any_of(command.args, [&](const Argument& argument) {
        return argument.is_option() && argument.name == name;
      });
    };
    if (!has("output") && command.has_json) {
      row("--output FORMAT", "human (the default), or json: the result and errors as JSON");
    }
    if (!has("quiet")) row("-q, --quiet", "print nothing but errors");
  }
  row("-h, --help", "print this and exit");
  if (dialect == Dialect::qemu) return out;
  std::string not_supported;
  for (const Argument& argument : command.args) {
    if (!argument.is_refused()) continue;
    if (!not_supported.empty()) not_supported += ' ';
    not_supported += argument.name.empty() ? cat("-", argument.letter) : cat("--", argument.name);
  }
  if (!not_supported.empty()) {
    out += '\n';
    for (const std::string& line : wrap(cat("known, but refused: ", not_supported), width)) {
      out += line + '\n';
    }
  }
  return out;
}

}  // namespace byre
