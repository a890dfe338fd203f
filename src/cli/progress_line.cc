// SPDX-License-Identifier: Apache-2.0
#include "cli/progress_line.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>

#include "cli/text.h"
#include "io/signal.h"

namespace byre {

namespace {

constexpr int64_t kRedraw = 200 * kMillisecond;
/// How much the last interval counts in the rate.
constexpr double kNewest = 0.2;

std::string duration(double seconds) {
  const auto whole = static_cast<uint64_t>(std::min(seconds + 0.5, 1e9));
  if (whole < 100) return cat(whole, " s");
  if (whole < 100 * 60) return cat(whole / 60, " min ", whole % 60, " s");
  return cat(whole / 3600, " h ", whole / 60 % 60, " min");
}

}  // namespace

std::string progress_line(uint64_t done, uint64_t total, double rate) {
  const double part = total == 0 ? 1 : static_cast<double>(done) / static_cast<double>(total);
  std::string line =
      cat(size_text(done), " of ", size_text(total), fmt::format(" ({:.0f} %)", 100 * part));
  if (rate >= 1) {
    line += cat(", ", size_text(static_cast<uint64_t>(rate)), "/s");
    if (done < total) {
      line += cat(", ", duration(static_cast<double>(total - done) / rate), " left");
    }
  }
  return line;
}

ProgressLine::ProgressLine(Session& session, bool enabled, Unit unit, double step)
    : session_(session),
      enabled_(enabled && !session.json()),
      step_(step),
      in_bytes_(unit == Unit::bytes && !session.compatibility_name() && isatty(STDOUT_FILENO) == 1),
      begun_(session.reactor().now()),
      drawn_(begun_) {
  if (!in_bytes_) show(0);
}

ProgressLine::~ProgressLine() {
  if (!enabled_) return;
  session_.print("\n");
  session_.flush_output();
}

void ProgressLine::update(uint64_t done, uint64_t total) {
  if (enabled_ && in_bytes_) {
    total_ = total;
    if (session_.reactor().now() - drawn_ >= kRedraw) show_bytes(done, total);
    return;
  }
  const double percent =
      total == 0 ? 100 : 100 * static_cast<double>(done) / static_cast<double>(total);
  if (!enabled_ && questions_ != progress_questions()) {
    questions_ = progress_questions();
    session_.note(fmt::format("    ({:3.2f}/100%)\n", percent));
  }
  if (percent >= shown_ + step_ || (percent >= 100 && shown_ < 100)) show(percent);
}

void ProgressLine::finish() {
  if (!enabled_) return;
  if (!in_bytes_) return update(1, 1);
  // At the end: how fast it was as a whole.
  const double seconds =
      static_cast<double>(session_.reactor().now() - begun_) / static_cast<double>(kSecond);
  const double rate = seconds > 0 ? static_cast<double>(total_) / seconds : 0;
  session_.print(cat("\r", progress_line(total_, total_, rate), "\x1b[K"));
  session_.flush_output();
}

void ProgressLine::show(double percent) {
  shown_ = percent;
  if (!enabled_) return;
  session_.print(fmt::format("    ({:3.2f}/100%)\r", percent));
  session_.flush_output();
}

void ProgressLine::show_bytes(uint64_t done, uint64_t total) {
  const Instant now = session_.reactor().now();
  const double seconds = static_cast<double>(now - drawn_) / static_cast<double>(kSecond);
  const double newest = static_cast<double>(done - drawn_done_) / seconds;
  rate_ = rate_ == 0 ? newest : (1 - kNewest) * rate_ + kNewest * newest;
  drawn_ = now;
  drawn_done_ = done;
  session_.print(cat("\r", progress_line(done, total, rate_), "\x1b[K"));
  session_.flush_output();
}

}  // namespace byre
