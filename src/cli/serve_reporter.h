// SPDX-License-Identifier: Apache-2.0
/// ServeReporter: what the user is told while clients are served.
///
/// On a terminal one live line; elsewhere a line every ten seconds in which something happened.
/// Invariant: a client can make as many errors as it likes; between two such lines ten of them are
/// printed, and the others counted.
/// Not here: when it is asked (serve_plan.cc), the words about the start (serve_plan.cc).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "base/progress.h"
#include "cli/session.h"
#include "export/nbd_session.h"

namespace byre {

class ServeReporter {
 public:
  /// `image`: as the user named it.  `errors`: say what went wrong with clients and requests.
  ServeReporter(Session& session, std::string image, bool errors)
      : session_(session), image_(std::move(image)), errors_(errors) {}

  /// Clients come from now on.  `shows`: show() will be called.
  void begin(bool shows);
  /// How often to show().
  int64_t pause_ns() const { return live_ ? kLivePause : kLogPause; }
  void show(const nbd::Statistics& now);
  void error(const Error& error);
  /// Checks the image while it is served, and says what it found; null: it has no checks.
  Task<void> check(Image* image, Progress& progress);
  void end();

  /// "7 requests of 1 client, 1 MiB read, 0 B written"
  static std::string summary(const nbd::Statistics& now);

 private:
  static constexpr int64_t kLivePause = 500 * kMillisecond;
  static constexpr int64_t kLogPause = 10 * kSecond;
  static constexpr unsigned kErrorsMax = 10;

  void clear_line();
  void say_suppressed();

  Session& session_;
  std::string image_;
  bool errors_;
  bool live_ = false;
  nbd::Statistics before_;
  Instant then_{};
  uint64_t connections_shown_ = 0;
  unsigned errors_heard_ = 0;
};

}  // namespace byre
