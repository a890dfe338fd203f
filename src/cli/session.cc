// SPDX-License-Identifier: Apache-2.0
#include "cli/session.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "cli/command.h"
#include "cli/text.h"

namespace byre {

namespace {

constexpr int64_t kFirstNotice = 500 * kMillisecond;
constexpr int64_t kLaterNotices = 10 * kSecond;

std::string_view first_line(std::string_view text) { return text.substr(0, text.find('\n')); }

}  // namespace

Session::Session(Reactor& reactor, Options options)
    : reactor_(reactor), options_(std::move(options)), watchers_(reactor.ready()) {}

Session::~Session() { flush_output(); }

OpenPolicy Session::policy(const std::optional<OpenPolicy>& chosen) const {
  return chosen.value_or(stand_in() ? OpenPolicy::any_file : OpenPolicy::same_directory);
}

std::string Session::version_line() const {
  if (!stand_in()) return cat(program(), " version ", BYRE_VERSION, "\n");
  return cat(program(), " version 7.2.0 (byre ", BYRE_VERSION, ")\n");
}

void Session::print(std::string_view text) {
  if (fwrite(text.data(), 1, text.size(), stdout) != text.size()) output_failed_ = true;
}

void Session::error(std::string_view message) {
  fflush(stdout);
  // Names that an image made up do not drive the terminal.
  note(printable_lines(cat(program(), ": ", message, "\n")));
}

void Session::warn(std::string_view message) { error(cat("warning: ", message)); }

void Session::note(std::string_view text) {
  // Nowhere is left to say that stderr is gone.
  if (fwrite(text.data(), 1, text.size(), stderr) != text.size()) return;
  fflush(stderr);
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
  int code = 1;
  if (result) {
    code = *result;
  } else if (result.error().code() == Errc::cancelled && session.interrupted() != 0) {
    session.error("interrupted");
    code = 128 + session.interrupted();
  } else {
    session.error(result.error().message());
  }
  if (!session.flush_output() && code == 0) {
    session.error(cat("write to stdout: ", std::strerror(errno)));
    code = 1;
  }
  return code;
}

int finish_parse(Session& session, const AnyCommand& command, const Parsed& parsed) {
  switch (parsed.outcome) {
    case Parsed::Outcome::run:
      return 0;
    case Parsed::Outcome::help:
      session.print(help_of(command, session.program()));
      return session.flush_output() ? 0 : 1;
    case Parsed::Outcome::version:
      session.print(session.version_line());
      return session.flush_output() ? 0 : 1;
    case Parsed::Outcome::failed:
      break;
  }
  std::string_view rest = parsed.error;
  while (!rest.empty()) {
    const std::string_view line = first_line(rest);
    session.error(line);
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
  }
  if (parsed.usage) {
    const bool named = !session.stand_in() && !command.name.empty();
    session.note(cat("Try '", session.program(), named ? " " : "", named ? command.name : "",
                     " --help' for more information\n"));
  }
  return 1;
}

}  // namespace byre
