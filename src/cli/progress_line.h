// SPDX-License-Identifier: Apache-2.0
/// ProgressLine: the line that -p asks for, redrawn when it has moved.
///
/// "    (12.34/100%)" for each percent, as qemu-img prints it and scripts read it.  What counts
/// bytes says more on a terminal, under the name byre: how many, how fast, and how long it will
/// take, a few times a second.
/// Without -p each SIGUSR1 is answered by such a line on stderr, at the next step of the work.
#pragma once

#include "base/progress.h"
#include "cli/session.h"

namespace byre {

class ProgressLine {
 public:
  enum class Unit : uint8_t { percent, bytes };
  /// `step`: how many percent it must move to be drawn again.
  ProgressLine(Session& session, bool enabled, Unit unit = Unit::percent, double step = 1);
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
  void show(double percent);
  void show_bytes(uint64_t done, uint64_t total);

  Session& session_;
  const bool enabled_;
  const double step_;
  bool in_bytes_ = false;
  double shown_ = 0;
  uint64_t questions_ = 0;  ///< Those that came before it began are answered, too.
  // With bytes: when the line was drawn, what was done then, and how fast that went.
  Instant begun_;
  Instant drawn_;
  uint64_t drawn_done_ = 0;
  uint64_t total_ = 0;
  double rate_ = 0;
};

/// "1.25 GiB of 10 GiB (12 %), 350 MiB/s, 25 s left": the line, without its end.  `rate` in bytes a
/// second; 0: not known yet.
std::string progress_line(uint64_t done, uint64_t total, double rate);

}  // namespace byre
