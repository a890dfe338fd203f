// SPDX-License-Identifier: Apache-2.0
#include "cli/serve_reporter.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/findings.h"
#include "cli/live_line.h"
#include "cli/text.h"
#include "qcow2/repair/check.h"

namespace byre {

namespace {

std::string plural(uint64_t count, std::string_view noun) {
  return cat(count, " ", noun, count == 1 ? "" : "s");
}

}  // namespace

void ServeReporter::begin(bool shows) {
  live_ = shows && isatty(STDERR_FILENO) != 0;
  then_ = session_.reactor().now();
}

void ServeReporter::show(const nbd::Statistics& now) {
  const Instant at = session_.reactor().now();
  const double seconds = std::max(1e-9, static_cast<double>(at - then_) / kSecond);
  const auto mib_s = [&](uint64_t bytes) { return static_cast<double>(bytes) / MiB / seconds; };
  // In the order of what must be seen: a narrow terminal shows the first ones.
  const std::vector<std::string> parts = {
      cat(plural(now.connections_open, "client"),
          now.connections_waiting == 0 ? "" : " (the next one waits for a place)"),
      now.requests_failed == 0 ? "" : cat(now.requests_failed, " failed"),
      fmt::format("{} ({:.0f}/s)", plural(now.requests, "request"),
                  static_cast<double>(now.requests - before_.requests) / seconds),
      fmt::format("read {:.1f} MiB/s", mib_s(now.bytes_read - before_.bytes_read)),
      fmt::format("written {:.1f} MiB/s", mib_s(now.bytes_written - before_.bytes_written))};
  const std::string line =
      fit_line(parts, live_ ? terminal_width(STDERR_FILENO) : std::string::npos);
  say_suppressed();
  if (live_) {
    session_.note(cat("\r\x1b[K", line));
  } else if (now.requests != before_.requests || now.connections_open != connections_shown_) {
    session_.note(line + "\n");
  }
  connections_shown_ = now.connections_open;
  before_ = now;
  then_ = at;
}

void ServeReporter::error(const Error& error) {
  ++errors_heard_;
  if (errors_heard_ > kErrorsMax || !errors_) return;
  clear_line();
  session_.error(printable(error.message()));
}

void ServeReporter::say_suppressed() {
  if (errors_heard_ > kErrorsMax && errors_)
    session_.error(cat("and ", errors_heard_ - kErrorsMax, " more errors"));
  errors_heard_ = 0;
}

void ServeReporter::clear_line() {
  if (live_) session_.note("\r\x1b[K");
}

Task<void> ServeReporter::check(Image* image, Progress& progress) {
  const Instant began = session_.reactor().now();
  Result<CheckReport> report = unsupported("this image format does not support checks");
  if (image) {
    const CheckOptions options{.progress = &progress, .attribute = true};
    report = co_await image->check_online(options).result();
  }
  clear_line();
  if (!report) {
    if (report.error().code() == Errc::cancelled) co_return;
    session_.error(cat("check failed: ", report.error().message()));
    co_return;
  }
  show_findings(session_, report->findings);
  const double seconds = static_cast<double>(session_.reactor().now() - began) / kSecond;
  session_.note(cat("checked ", image_, " in ", fmt::format("{:.2f}", seconds),
                    " s: ", plural(report->corruptions, "error"), ", ",
                    plural(report->leaks, "leaked cluster"),
                    report->check_errors == 0
                        ? ""
                        : cat(", ", plural(report->check_errors, "place"), " could not be read"),
                    "\n"));
}

void ServeReporter::end() {
  clear_line();
  say_suppressed();
}

std::string ServeReporter::summary(const nbd::Statistics& now) {
  return cat(plural(now.requests, "request"), " of ", plural(now.connections, "client"), ", ",
             size_text(now.bytes_read), " read, ", size_text(now.bytes_written), " written");
}

}  // namespace byre
