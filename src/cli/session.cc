// SPDX-License-Identifier: Apache-2.0
#include "cli/session.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "cli/command.h"
#include "cli/exit_code.h"
#include "cli/json.h"
#include "cli/live_line.h"
#include "cli/text.h"

namespace byre {

namespace {

constexpr int64_t kFirstNotice = 500 * kMillisecond;
constexpr int64_t kLaterNotices = 10 * kSecond;

/// In front of what does not fit in the first line of a message.
constexpr std::string_view kHanging = "  ";

/// Columns for text; 0: `fd` is no terminal, or does not say.
size_t columns_of(int fd) {
  constexpr size_t kNarrowest = 40;
  const size_t columns = terminal_columns(fd);
  return columns == 0 ? 0 : std::max(kNarrowest, columns);
}

}  // namespace

Session::Session(Reactor& reactor, Options options)
    : reactor_(reactor), options_(std::move(options)), watchers_(reactor.ready()) {}

Session::~Session() { flush_output(); }

OpenPolicy Session::policy(const std::optional<OpenPolicy>& chosen) const {
  if (chosen) return *chosen;
  if (options_.follow) return *options_.follow;
  return compatibility_name() ? OpenPolicy::any_file : OpenPolicy::same_directory;
}

std::string Session::version_line() const {
  if (!compatibility_name()) return cat(program(), " version ", BYRE_VERSION, "\n");
  // Scripts take the version apart as each program prints it.
  const bool is_server = program() == "qemu-nbd";
  return cat(program(), is_server ? " " : " version ", kLikeQemu, " (byre ", BYRE_VERSION, ")\n");
}

void Session::print(std::string_view text) {
  printed_ = true;
  if (quiet_) return;
  if (fwrite(text.data(), 1, text.size(), stdout) != text.size()) output_failed_ = true;
}

void Session::say(std::string_view text) {
  if (!json_) print(text);
}

namespace {

/// qemu-img says "Could not open 'x': Could not open 'x': why" of a file that is not there.
std::string said_once(std::string text) {
  constexpr std::string_view kOpen = "Could not open '";
  for (size_t at = text.find(kOpen); at != std::string::npos; at = text.find(kOpen, at + 1)) {
    const size_t end = text.find("': ", at + kOpen.size());
    if (end == std::string::npos) break;
    const std::string clause = text.substr(at, end + 3 - at);
    while (std::string_view(text).substr(at + clause.size()).starts_with(clause)) {
      text.erase(at, clause.size());
    }
  }
  return text;
}

/// With what to do about it.
std::string advised(std::string text) {
  const size_t at = text.rfind("Unknown protocol '");
  const bool ends = at != std::string::npos && text.find(' ', text.find('\'', at)) == text.npos;
  return ends ? text + " (a path that has a colon needs ./ in front)" : text;
}

std::string json_message(std::string_view kind, Json message) {
  return to_json_line({{std::string(kind), std::move(message)}}) + "\n";
}
}  // namespace

void Session::error(std::string_view message) {
  fflush(stdout);
  if (json_) {
    write_error(json_message("error", {{"message", message}}));
    return;
  }
  // Names that an image made up do not drive the terminal.
  const std::string text = printable_lines(cat(program(), ": ", message));
  const size_t columns = columns_of(STDERR_FILENO);
  if (columns == 0) {
    write_error(text + "\n");
    return;
  }
  std::string lines;
  for (const std::string& line : wrap(text, columns - kHanging.size())) {
    lines += cat(lines.empty() ? "" : kHanging, line, "\n");
  }
  write_error(lines);
}

int Session::report(Errc code, std::string_view message) {
  return report(Error(code, std::string(message)));
}

int Session::report(const Error& error) {
  const int exit = compatibility_name() ? kExitFailure : exit_code(error);
  const std::string message =
      compatibility_name() ? error.message() : advised(said_once(error.message()));
  if (!json_) {
    this->error(message);
    return exit;
  }
  fflush(stdout);
  write_error(json_message(
      "error", {{"code", name_of(error.code())}, {"exit-code", exit}, {"message", message}}));
  return exit;
}

void Session::warn(std::string_view message) {
  if (json_) {
    write_error(json_message("warning", {{"message", message}}));
    return;
  }
  error(cat("warning: ", message));
}

void Session::note(std::string_view text) {
  if (!json_) {
    write_error(text);
    return;
  }
  while (text.ends_with('\n')) text.remove_suffix(1);
  if (text.empty()) return;
  write_error(json_message("note", {{"message", text}}));
}

void Session::write_error(std::string_view text) {
  // Nowhere is left to say that stderr is gone.
  if (fwrite(text.data(), 1, text.size(), stderr) != text.size()) return;
  fflush(stderr);
}

size_t Session::width() const {
  constexpr size_t kNoTerminal = 80;
  const size_t columns = columns_of(STDOUT_FILENO);
  return columns == 0 ? kNoTerminal : columns;
}

bool Session::flush_output() {
  if (fflush(stdout) != 0) output_failed_ = true;
  return !output_failed_;
}

Session::Interruptible::Interruptible(Session& session, Interruption interruption)
    : session_(session) {
  BYRE_ASSERT(!session_.interruption_.stop);
  session_.interruption_ = std::move(interruption);
  if (session_.interrupts_) {
    session_.interrupts_->arm();
    return;
  }
  std::string hung =
      cat(session_.program(), ": interrupted, waiting for ", session_.interruption_.about,
          ", which does not answer (interrupt again to exit at once)\n");
  auto interrupts =
      Interrupts::make(session_.reactor_,
                       {.always_term = session_.interruption_.is_server, .hung = std::move(hung)});
  if (!interrupts) return;  // Signals then end the process at once.
  session_.interrupts_ = *std::move(interrupts);
  session_.watchers_.spawn(session_.watch());
}

Session::Interruptible::~Interruptible() {
  if (session_.interrupts_) session_.interrupts_->disarm();
  session_.interruption_ = {};
}

Task<void> Session::watch() {
  const Result<int> number = co_await interrupts_->wait().result();
  if (!number || !interruption_.stop) co_return;
  interruption_.stop();
  int64_t pause = kFirstNotice;
  while (!ending_) {
    timer_ = Op{.kind = Op::Kind::timer, .deadline = reactor_.now() + pause};
    timer_set_ = true;
    co_await reactor_.perform(timer_);
    timer_set_ = false;
    if (ending_ || !interruption_.stop) break;
    const std::string what = interruption_.waiting_for ? interruption_.waiting_for() : "";
    error(cat("interrupted, waiting for ", what.empty() ? "what was begun to end" : what,
              " (interrupt again to exit at once)"));
    pause = kLaterNotices;
  }
}

void Session::end_watch() {
  ending_ = true;
  if (timer_set_) reactor_.cancel(timer_);
  interrupts_->cancel();
}

Task<int> Session::supervise(Task<int> task) {
  Result<int> result = co_await std::move(task).result();
  if (interrupts_) {
    end_watch();
    co_await watchers_.join();
  }
  co_return std::move(result);
}

int run_task(Session& session, Task<int> task) {
  Result<int> result = session.reactor().run(session.supervise(std::move(task)));
  int code = kExitFailure;
  if (result) {
    code = *result;
  } else if (result.error().code() == Errc::cancelled && session.interrupted() != 0) {
    session.error("interrupted");
    code = 128 + session.interrupted();
  } else {
    code = session.report(result.error());
  }
  // A program that asked for JSON gets a value also where there is nothing to tell.
  if (code == 0 && session.json() && !session.printed()) session.print("{}\n");
  if (!session.flush_output() && code == 0) {
    code = session.report(errno_error(errno, "write to stdout"));
  }
  return code;
}

Parsed begin_parse(Session& session, const AnyCommand& command,
                   const std::vector<std::string>& words, void* args) {
  // What is wrong with the words is told in JSON, too.
  bool json = false;
  for (size_t i = 0; i < words.size() && words[i] != "--"; ++i) {
    const bool next = words[i] == "--output" && i + 1 < words.size() && words[i + 1] == "json";
    json |= command.has_json && (next || words[i] == "--output=json");
  }
  session.set_json(json);
  Parsed parsed =
      parse(command, words, args, session.compatibility_name() ? Dialect::qemu : Dialect::byre);
  if (parsed.outcome != Parsed::Outcome::run) return parsed;
  session.set_progress_json(parsed.progress_json);
  session.set_json(parsed.json);
  if (parsed.quiet) session.set_quiet();
  return parsed;
}

namespace {

/// What QEMU's programs say of words that do not fit, each in its own way.
int as_qemu(Session& session, const AnyCommand& command, const Parsed& parsed) {
  const std::string& program = session.program();
  const bool is_img = program == "qemu-img";
  const std::string line = is_img ? cat(program, " ", command.name) : program;
  const bool tells = program != "qemu-io" || !parsed.usage;  // That shows how it is used instead.
  if (parsed.option) {
    session.note(printable_lines(cat(line, ": ", parsed.error)) + "\n");
  } else if (tells) {
    session.error(parsed.error);
  }
  if (!parsed.usage) return kExitFailure;
  if (is_img) {
    session.note(cat("Try '", line, " --help' for more info\n"));
  } else if (program == "qemu-nbd") {
    session.note(
        cat(parsed.option ? "qemu-nbd: " : "", "Try `qemu-nbd --help' for more information.\n"));
  } else {
    session.print(help_of(command, program, Dialect::qemu, session.width()));
  }
  return kExitFailure;
}

}  // namespace

int finish_parse(Session& session, const AnyCommand& command, const Parsed& parsed) {
  const Dialect dialect = session.compatibility_name() ? Dialect::qemu : Dialect::byre;
  switch (parsed.outcome) {
    case Parsed::Outcome::run:
      return 0;
    case Parsed::Outcome::help:
      session.print(help_of(command, session.program(), dialect, session.width()));
      return session.flush_output() ? 0 : 1;
    case Parsed::Outcome::version:
      session.print(session.version_line());
      return session.flush_output() ? 0 : 1;
    case Parsed::Outcome::failed:
      break;
  }
  std::string text = parsed.error;
  if (!session.compatibility_name() && !parsed.advice.empty()) text += cat("; ", parsed.advice);
  if (!session.compatibility_name()) {
    const int code = session.report(Errc::invalid, text);
    if (parsed.usage && !session.json()) {
      const bool named = !command.name.empty();
      session.note(cat("Try '", session.program(), named ? " " : "", named ? command.name : "",
                       " --help' for more information\n"));
    }
    return code;
  }
  return as_qemu(session, command, parsed);
}

}  // namespace byre
