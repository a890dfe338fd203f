// SPDX-License-Identifier: Apache-2.0
/// Session: what a running command has: a reactor, a name to speak under, a terminal, and signals.
///
/// Messages go to stderr as "PROGRAM: message"; PROGRAM is the name that the user called.
/// Ctrl-C: a command that has something to end in order says so with an Interruptible.  The first
/// SIGINT, SIGTERM or SIGHUP then calls its `stop`, and if it has not ended soon, the user is told
/// what it waits for; the second one ends the process, whatever hangs (io/interrupts.h).  Outside
/// of an Interruptible signals end the process at once: every image byre writes survives that.
/// SIGUSR1 asks a command that has progress to tell it (progress.h); others go on.
/// Not here: words and options (command.h).
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coro/scope.h"
#include "io/file_opener.h"
#include "io/interrupts.h"
#include "io/reactor.h"
#include "qcow2/image.h"

namespace byre {

/// The QEMU whose interface byre has under the names of its programs.
inline constexpr std::string_view kLikeQemu = "10.0.0";

class Session {
 public:
  struct Options {
    std::string program = "byre";
    /// Called by the name of a QEMU program: where byre is stricter by default, it is not.
    bool compatibility_name = false;
    /// What images may name where no option says it; none: as the name demands.
    std::optional<OpenPolicy> follow = std::nullopt;
    uint32_t chain_max = kChainMax;
    /// All that came behind the program's name.
    std::vector<std::string> words = {};
  };
  Session(Reactor& reactor, Options options);
  Session(const Session&) = delete;
  ~Session();

  Reactor& reactor() { return reactor_; }
  const std::string& program() const { return options_.program; }
  const std::vector<std::string>& words() const { return options_.words; }
  bool compatibility_name() const { return options_.compatibility_name; }
  /// "byre version 0.1.0"; a stand-in names the QEMU whose behaviour it has first, since scripts
  /// look for that.
  std::string version_line() const;
  /// What images may name, unless an option or BYRE_FOLLOW says otherwise: any file for the
  /// stand-ins, files beside the image for byre.
  OpenPolicy policy(const std::optional<OpenPolicy>& chosen) const;
  /// How many images may lie below one.
  uint32_t chain_max() const { return options_.chain_max; }

  /// Under the name byre, --output=json: what is printed is one JSON value, and each message on
  /// stderr a JSON object in a line of its own.
  bool json() const { return json_; }
  void set_json(bool json) { json_ = json && !compatibility_name(); }
  /// --progress=json: how far it is goes to stderr, an object in a line of its own for each step.
  bool progress_json() const { return progress_json_; }
  void set_progress_json(bool json) { progress_json_ = json && !compatibility_name(); }
  /// Nothing goes to stdout from here on.
  void set_quiet() { quiet_ = true; }

  /// To stdout: the result.
  void print(std::string_view text);
  /// To stdout for people: nothing in JSON.
  void say(std::string_view text);
  /// Was anything printed?
  bool printed() const { return printed_; }
  /// To stderr, with the program's name in front of the first line.
  void error(std::string_view message);
  /// Prints what failed; the exit code that tells its class, under QEMU's names 1.
  int report(const Error& error);
  int report(Errc code, std::string_view message);
  void warn(std::string_view message);
  /// To stderr: as it is, or in JSON as a message.
  void note(std::string_view text);
  /// To stderr as it is, for what is in the form of messages in JSON already.
  void write_error(std::string_view text);
  /// How wide the terminal is; 80 without one.
  size_t width() const;
  /// Writes out what was printed; false when stdout did not take it.
  bool flush_output();

  struct Interruption {
    std::string about;                         ///< The disks that it may have to wait for.
    std::function<void()> stop;                ///< Ask the work to end.
    std::function<std::string()> waiting_for;  ///< What it still waits for; may be empty.
    bool is_server = false;  ///< SIGTERM ends it even where the parent ignores that.
  };
  /// While it lives, signals mean what it says.  One at a time.
  class [[nodiscard]] Interruptible {
   public:
    Interruptible(Session& session, Interruption interruption);
    Interruptible(const Interruptible&) = delete;
    ~Interruptible();

   private:
    Session& session_;
  };

  /// The signal that came, or 0.
  int interrupted() const { return interrupts_ ? interrupts_->seen() : 0; }
  /// Runs a command's task and what watches over it.
  Task<int> supervise(Task<int> task);

 private:
  Task<void> watch();
  void end_watch();

  Reactor& reactor_;
  Options options_;
  Interruption interruption_;
  std::unique_ptr<Interrupts> interrupts_;  ///< From the first Interruptible on.
  Scope watchers_;
  Op timer_;
  bool timer_set_ = false;
  bool ending_ = false;
  bool output_failed_ = false;
  bool json_ = false;
  bool progress_json_ = false;
  bool quiet_ = false;
  bool printed_ = false;
};

}  // namespace byre
