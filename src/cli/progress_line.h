// SPDX-License-Identifier: Apache-2.0
/// ProgressLine: how far a command is, in the form that -p or --progress=json asks for.
///
///  * Under a QEMU name, and where standard output is no terminal: "    (12.34/100%)" for each
///    percent, as qemu-img prints it and scripts read it.
///  * On a terminal under the name byre: a bar, how much of it is done, how fast, and how long it
///    will take, a few times a second.
///  * --progress=json: lines on standard error, the first at once, then a few each second, the last
///    one when it ends, however it ends:
///      {"progress": {"description": "convert", "unit": "bytes", "transferred": 1048576,
///                    "size": 4194304, "elapsed": 0.204, "rate": 5140196, "finished": false}}
///    `unit` is "bytes", or "steps" where the work has no bytes to count; `rate` is in units a
///    second, at the end that of the whole.  `finished` is true in the last line of what succeeded.
/// Without -p each SIGUSR1 is answered by a line on stderr, at the next step of the work.
/// Cost: a look at the clock for each step.
/// Not here: what is counted (base/progress.h).
#pragma once

#include <string>
#include <string_view>

#include "base/progress.h"
#include "cli/session.h"

namespace byre {

class ProgressLine {
 public:
  enum class Unit : uint8_t { percent, bytes };
  /// `step`: how many percent it must move to be drawn again; `what` is being done: without it,
  /// what the command's name says.
  ProgressLine(Session& session, bool enabled, Unit unit = Unit::percent, double step = 1,
               std::string_view what = {});
  ProgressLine(const ProgressLine&) = delete;
  ~ProgressLine();
  void update(uint64_t done, uint64_t total);
  /// Shows each change of it; the line outlives the job.
  void follow(Progress& progress) {
    progress.on_change([this](const Progress& now) { update(now.done(), now.total()); });
  }
  /// Everything is done.
  void finish();

 private:
  enum class Form : uint8_t { none, percent, bar, json };
  static Form form_of(const Session& session, bool enabled);
  double seconds_since(Instant start) const;
  void show(double percent);
  void measure_rate();
  void show_bar();
  void show_json(bool finished);

  Session& session_;
  const Form form_;
  const bool in_bytes_;
  const double step_;
  std::string description_;
  double shown_ = 0;        ///< Percent.
  uint64_t questions_ = 0;  ///< Those that came before it began are answered, too.
  uint64_t done_ = 0;
  uint64_t total_ = 0;
  bool finished_ = false;
  // When the line was drawn, what was done then, and how fast that went.
  Instant begun_;
  Instant drawn_;
  uint64_t drawn_done_ = 0;
  double rate_ = 0;
};

/// "[=====>              ]  25 %, 2.5 GiB of 10 GiB, 350 MiB/s, 22 s left": the line, without its
/// end, in less than `width` columns.  `rate` in units a second; 0: not known yet.
std::string progress_line(uint64_t done, uint64_t total, double rate, bool in_bytes, size_t width);

}  // namespace byre
