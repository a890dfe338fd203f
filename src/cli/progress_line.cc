// SPDX-License-Identifier: Apache-2.0
#include "cli/progress_line.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>

#include "cli/json.h"
#include "cli/live_line.h"
#include "cli/text.h"
#include "io/signal.h"

namespace byre {

namespace {

constexpr int64_t kRedraw = 200 * kMillisecond;
/// How much the last interval counts in the rate.
constexpr double kNewest = 0.2;
constexpr size_t kBar = 20;

std::string duration(double seconds) {
  const auto whole = static_cast<uint64_t>(std::min(seconds + 0.5, 1e9));
  if (whole < 100) return cat(whole, " s");
  if (whole < 100 * 60) return cat(whole / 60, " min ", whole % 60, " s");
  return cat(whole / 3600, " h ", whole / 60 % 60, " min");
}

double part_of(uint64_t done, uint64_t total) {
  return total == 0 ? 0 : static_cast<double>(done) / static_cast<double>(total);
}

std::string bar(double part) {
  const auto filled = std::min(kBar, static_cast<size_t>(part * static_cast<double>(kBar)));
  std::string text(filled, '=');
  if (filled < kBar) text += '>';
  text.resize(kBar, ' ');
  return cat("[", text, "]");
}

}  // namespace

std::string progress_line(uint64_t done, uint64_t total, double rate, bool in_bytes, size_t width) {
  const double part = part_of(done, total);
  std::vector<std::string> parts = {cat(bar(part), fmt::format(" {:3.0f} %", 100 * part))};
  if (in_bytes) parts.push_back(cat(size_text(done), " of ", size_text(total)));
  if (in_bytes && rate >= 1) parts.push_back(cat(size_text(static_cast<uint64_t>(rate)), "/s"));
  if (rate > 0 && done < total) {
    parts.push_back(cat(duration(static_cast<double>(total - done) / rate), " left"));
  }
  return fit_line(parts, width);
}

ProgressLine::Form ProgressLine::form_of(const Session& session, bool enabled) {
  if (!enabled) return Form::none;
  if (session.progress_json()) return Form::json;
  if (session.json()) return Form::none;
  const bool has_terminal = isatty(STDOUT_FILENO) == 1;
  return has_terminal && !session.compatibility_name() ? Form::bar : Form::percent;
}

ProgressLine::ProgressLine(Session& session, bool enabled, Unit unit, double step,
                           std::string_view what)
    : session_(session),
      form_(form_of(session, enabled)),
      in_bytes_(unit == Unit::bytes),
      step_(step),
      description_(what),
      begun_(session.reactor().now()),
      drawn_(begun_) {
  if (description_.empty() && !session.words().empty()) description_ = session.words()[0];
  if (form_ == Form::percent) show(0);
  if (form_ == Form::json) show_json(false);
}

ProgressLine::~ProgressLine() {
  // What nobody called finished is, when all of it was done.
  const bool is_whole = total_ != 0 && done_ == total_;
  if (!finished_ && is_whole && form_ != Form::percent) finish();
  if (!finished_ && form_ == Form::json) show_json(false);
  if (form_ != Form::percent && form_ != Form::bar) return;
  session_.print("\n");
  session_.flush_output();
}

double ProgressLine::seconds_since(Instant start) const {
  return static_cast<double>(session_.reactor().now() - start) / static_cast<double>(kSecond);
}

void ProgressLine::update(uint64_t done, uint64_t total) {
  done_ = done;
  total_ = total;
  if (form_ == Form::bar || form_ == Form::json) {
    if (session_.reactor().now() - drawn_ < kRedraw) return;
    measure_rate();
    if (form_ == Form::bar) show_bar();
    if (form_ == Form::json) show_json(false);
    return;
  }
  const double percent = total == 0 ? 100 : 100 * part_of(done, total);
  if (form_ == Form::none && questions_ != progress_questions()) {
    questions_ = progress_questions();
    session_.note(fmt::format("    ({:3.2f}/100%)\n", percent));
  }
  if (percent >= shown_ + step_ || (percent >= 100 && shown_ < 100)) show(percent);
}

void ProgressLine::finish() {
  if (form_ == Form::none) return;
  if (form_ == Form::percent) return update(1, 1);
  // At the end: how fast it was as a whole.
  done_ = total_;
  const double seconds = seconds_since(begun_);
  rate_ = seconds > 0 ? static_cast<double>(total_) / seconds : 0;
  finished_ = true;
  if (form_ == Form::bar) show_bar();
  if (form_ == Form::json) show_json(true);
}

void ProgressLine::show(double percent) {
  shown_ = percent;
  if (form_ != Form::percent) return;
  session_.print(fmt::format("    ({:3.2f}/100%)\r", percent));
  session_.flush_output();
}

void ProgressLine::measure_rate() {
  const double seconds = seconds_since(drawn_);
  const double newest = static_cast<double>(done_ - std::min(done_, drawn_done_)) / seconds;
  rate_ = rate_ == 0 ? newest : (1 - kNewest) * rate_ + kNewest * newest;
  drawn_ = session_.reactor().now();
  drawn_done_ = done_;
}

void ProgressLine::show_bar() {
  const size_t width = terminal_width(STDOUT_FILENO);
  session_.print(cat("\r", progress_line(done_, total_, rate_, in_bytes_, width), "\x1b[K"));
  session_.flush_output();
}

/// Json has no fractions, and these are the only ones.
void ProgressLine::show_json(bool finished) {
  finished_ = finished;
  session_.write_error(fmt::format(
      "{{\"progress\": {{\"description\": {}, \"unit\": \"{}\", \"transferred\": {}, \"size\": {}, "
      "\"elapsed\": {:.3f}, \"rate\": {:.0f}, \"finished\": {}}}}}\n",
      to_json_line(Json(description_)), in_bytes_ ? "bytes" : "steps", done_, total_,
      seconds_since(begun_), rate_, finished));
}

}  // namespace byre
