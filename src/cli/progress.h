// SPDX-License-Identifier: Apache-2.0
/// Progress: the line "    (12.34/100%)" that -p asks for, redrawn when it has moved by a percent.
/// Without -p each SIGUSR1 is answered by such a line on stderr, at the next step of the work.
#pragma once

#include <fmt/format.h>

#include "cli/session.h"
#include "io/signal.h"

namespace byre {

class Progress {
 public:
  Progress(Session& session, bool enabled)
      : session_(session), enabled_(enabled && !session.json()) {
    show(0);
  }
  Progress(const Progress&) = delete;
  ~Progress() {
    if (!enabled_) return;
    session_.print("\n");
    session_.flush_output();
  }
  void update(uint64_t done, uint64_t total) {
    const double percent =
        total == 0 ? 100 : 100 * static_cast<double>(done) / static_cast<double>(total);
    if (!enabled_ && questions_ != progress_questions()) {
      questions_ = progress_questions();
      session_.note(fmt::format("    ({:3.2f}/100%)\n", percent));
    }
    if (percent >= shown_ + 1 || (percent >= 100 && shown_ < 100)) show(percent);
  }

 private:
  void show(double percent) {
    shown_ = percent;
    if (!enabled_) return;
    session_.print(fmt::format("    ({:3.2f}/100%)\r", percent));
    session_.flush_output();
  }

  Session& session_;
  bool enabled_;
  double shown_ = 0;
  uint64_t questions_ = 0;  ///< Those that came before it began are answered, too.
};

}  // namespace byre
