// SPDX-License-Identifier: Apache-2.0
/// Command: the one definition of `byre NAME`.
///
/// A definition is data: a name, a sentence, and a table of arguments, each with its spelling, its
/// place in the Args struct, its type and its help.  The parser and --help read that table; so can
/// a man page or a shell completion.  Nothing about a command is said twice.
///
/// Words are split by getopt_long() and not by a library, because qemu-img does the same: short
/// options in clusters, `-ofoo`, unique prefixes of long names, options behind operands, `--`.
/// CLI11 parses most of that differently (no prefixes, its own words for errors) and throws.
/// Under QEMU's names (Dialect::qemu) the words are those of that program's getopt_long(), and so
/// is what is said of wrong ones: options that are byre's own must be written in full there, so
/// that a beginning means the option that it means there. Invariant: an option that byre knows of
/// but cannot honour is in the table as refused(): it is an error that says why, never ignored. Not
/// here: what the values mean (values.h), what a command needs to run (session.h).
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "cli/values.h"
#include "coro/task.h"

namespace byre {

class Session;

struct Argument {
  enum class Kind : uint8_t {
    flag,     ///< --quiet
    option,   ///< --format FMT
    operand,  ///< IMAGE
    refused_flag,
    refused_option,  ///< As refused_flag, but a value follows.
  };
  Kind kind = Kind::flag;
  char letter = 0;                        ///< 'q' for -q; 0 when there is none.
  std::string_view name;                  ///< "quiet" for --quiet; empty when there is none.
  std::vector<std::string_view> aliases;  ///< Other long names.
  std::string_view metavar;               ///< What help calls the value.
  std::string_view help;                  ///< For refused ones: why.
  bool optional = false;                  ///< An operand that may be left out.
  bool repeats = false;                   ///< An operand that takes every word that is left.
  bool own = false;     ///< Byre's: the program that it stands in for has no such option.
  bool misuse = false;  ///< An error of store() is a wrong use of words, and points to --help.
  /// Puts the value into the Args struct behind the pointer.  A refused option has none, unless the
  /// command refuses it by itself.
  std::function<Result<void>(void* args, std::string_view value)> store;

  bool is_option() const { return kind != Kind::operand; }
  bool is_refused() const { return kind == Kind::refused_flag || kind == Kind::refused_option; }
  bool takes_value() const { return kind == Kind::option || kind == Kind::refused_option; }
  /// "-q, --quiet" or "-f, --format FMT" or "IMAGE".
  std::string spelling() const;
};

/// A list of arguments; lists nest, so that commands share groups of options.
class Arguments {
 public:
  Arguments(Argument argument) { list_.push_back(std::move(argument)); }
  Arguments(std::initializer_list<Arguments> parts) {
    for (const Arguments& part : parts) {
      list_.insert(list_.end(), part.list_.begin(), part.list_.end());
    }
  }
  auto begin() { return list_.begin(); }
  auto end() { return list_.end(); }
  auto begin() const { return list_.begin(); }
  auto end() const { return list_.end(); }

 private:
  std::vector<Argument> list_;
};

namespace detail {
/// `names` is "-q", "--quiet", "-q, --quiet", or has more long names behind these.
Argument named(Argument::Kind kind, std::string_view names, std::string_view metavar,
               std::string_view help);
}  // namespace detail

template <class Args>
Argument flag(std::string_view names, bool Args::* member, std::string_view help) {
  Argument argument = detail::named(Argument::Kind::flag, names, "", help);
  argument.store = [member](void* args, std::string_view) -> Result<void> {
    static_cast<Args*>(args)->*member = true;
    return {};
  };
  return argument;
}

/// The value is parsed by parse_value(text, member) (values.h).
template <class Args, class T>
Argument option(std::string_view names, std::string_view metavar, T Args::* member,
                std::string_view help) {
  Argument argument = detail::named(Argument::Kind::option, names, metavar, help);
  argument.store = [member](void* args, std::string_view value) {
    return parse_value(value, static_cast<Args*>(args)->*member);
  };
  return argument;
}

/// A byte count; `what` names it in errors: "Invalid start offset specified."
template <class Args>
Argument size_option(std::string_view names, std::string_view metavar,
                     std::optional<uint64_t> Args::* member, std::string_view what,
                     std::string_view help) {
  Argument argument = detail::named(Argument::Kind::option, names, metavar, help);
  argument.store = [member, what](void* args, std::string_view value) -> Result<void> {
    BYRE_TRY(size, parse_size_option(value, what));
    static_cast<Args*>(args)->*member = size;
    return {};
  };
  return argument;
}

template <class Args, class T>
Argument operand(std::string_view metavar, T Args::* member, std::string_view help) {
  Argument argument{.kind = Argument::Kind::operand, .metavar = metavar, .help = help};
  argument.store = [member](void* args, std::string_view value) {
    return parse_value(value, static_cast<Args*>(args)->*member);
  };
  return argument;
}
template <class Args, class T>
Argument optional_operand(std::string_view metavar, T Args::* member, std::string_view help) {
  Argument argument = operand(metavar, member, help);
  argument.optional = true;
  return argument;
}
template <class Args>
Argument operands(std::string_view metavar, std::vector<std::string> Args::* member,
                  std::string_view help) {
  Argument argument = operand(metavar, member, help);
  argument.repeats = true;
  return argument;
}

/// Options that are byre's own.
inline Arguments own(Arguments arguments) {
  for (Argument& argument : arguments) argument.own = true;
  return arguments;
}

/// An option of the program byre stands in for that byre cannot honour.
inline Argument refused(std::string_view names, std::string_view why) {
  return detail::named(Argument::Kind::refused_flag, names, "", why);
}
inline Argument refused(std::string_view names, std::string_view metavar, std::string_view why) {
  return detail::named(Argument::Kind::refused_option, names, metavar, why);
}

/// The same, but the command itself says why, when it has looked at the other words.
inline Argument refused_later(Argument argument) {
  argument.kind =
      argument.takes_value() ? Argument::Kind::refused_option : Argument::Kind::refused_flag;
  return argument;
}

/// An option whose value is looked at where it stands: the first wrong one is told, as by QEMU's
/// programs, also in front of --help.
inline Argument looked_at(Argument argument, Result<void> (*look)(std::string_view value)) {
  argument.store = [store = std::move(argument.store), look](
                       void* args, std::string_view value) -> Result<void> {
    if (Result<void> right = look(value); !right) return right;
    return store(args, value);
  };
  return argument;
}

/// What every command has, whatever its Args are.
class AnyCommand {
 public:
  std::string_view name;
  std::string_view summary;      ///< One line, for the list of commands.
  std::string_view description;  ///< Paragraphs below it in --help; may be empty.
  std::vector<Argument> args;
  /// Said when operands are missing; empty: "Expecting IMAGE".
  std::string_view too_few;
  /// Said when there are more than fit; empty: "Unexpected argument: WORD".
  std::string_view too_many;
  /// The last word is an operand even if it starts with a dash: `resize disk -1G`.
  bool last_word_is_operand = false;
  /// Takes --output=json under the name byre, also where `args` does not say so: its result, if it
  /// has one, is then one JSON value (Session::json()).
  bool has_json = true;

  virtual ~AnyCommand() = default;
  /// Parses `words` and runs; the exit code.
  virtual int run(Session& session, const std::vector<std::string>& words) const = 0;

 protected:
  AnyCommand() = default;
};

/// How parsing ended.
struct Parsed {
  enum class Outcome : uint8_t { run, help, version, failed } outcome = Outcome::run;
  std::string error;
  std::string advice;          ///< "did you mean '--force'?": for people, behind the error.
  bool usage = false;          ///< The words do not fit, so point to --help; else a value is wrong.
  bool option = false;         ///< Of these, an option as such: getopt's words.
  bool json = false;           ///< --output=json was given.
  bool progress_json = false;  ///< --progress=json was given.
  bool quiet = false;          ///< -q was given, and is not one of the command's own arguments.
};

/// Which options every command has beside its own: under the name byre --output and -q.
enum class Dialect : uint8_t { byre, qemu };

/// Reads `words` into the Args struct at `args`.
Parsed parse(const AnyCommand& command, const std::vector<std::string>& words, void* args,
             Dialect dialect = Dialect::byre);

/// What `PROGRAM NAME --help` prints, in lines of at most `width`.  For QEMU's names it lists no
/// option that is refused: scripts look there for what a tool can do.
std::string help_of(const AnyCommand& command, std::string_view program,
                    Dialect dialect = Dialect::byre, size_t width = 80);
/// "info [-f FORMAT] [--output FORMAT] ... IMAGE": all that is not refused, in one line.
std::string synopsis_of(const AnyCommand& command);
/// `text` in lines of at most `width`, broken at spaces; a newline in it ends a line.
std::vector<std::string> wrap(std::string_view text, size_t width);

/// Starts a command: has parse() read the words, reports what it found wrong, or runs `task` with
/// signals handled.
Parsed begin_parse(Session& session, const AnyCommand& command,
                   const std::vector<std::string>& words, void* args);
int finish_parse(Session& session, const AnyCommand& command, const Parsed& parsed);
int run_task(Session& session, Task<int> task);

template <class Args>
class Command final : public AnyCommand {
 public:
  struct Definition {
    std::string_view name;
    std::string_view summary;
    std::string_view description = {};
    Arguments args;
    std::string_view too_few = {};
    std::string_view too_many = {};
    bool last_word_is_operand = false;
    bool has_json = true;
    /// Gives the exit code; an error is printed, and its class is the exit code (exit_code.h).
    Task<int> (*run)(Session& session, Args args);
  };
  explicit Command(Definition definition) : run_(definition.run) {
    name = definition.name;
    summary = definition.summary;
    description = definition.description;
    args.assign(definition.args.begin(), definition.args.end());
    too_few = definition.too_few;
    too_many = definition.too_many;
    last_word_is_operand = definition.last_word_is_operand;
    has_json = definition.has_json;
  }
  int run(Session& session, const std::vector<std::string>& words) const override {
    Args values;
    const Parsed parsed = begin_parse(session, *this, words, &values);
    if (parsed.outcome != Parsed::Outcome::run) return finish_parse(session, *this, parsed);
    return run_task(session, run_(session, std::move(values)));
  }

 private:
  Task<int> (*run_)(Session&, Args);
};

}  // namespace byre
