// SPDX-License-Identifier: Apache-2.0
/// Progress: how far something long is, and whether it is still wanted.
///
/// Whoever starts a job (a conversion, a check, an amendment) owns one and gives its address along;
/// the job says how far it is and asks now and then whether to go on:
///
///     Progress progress;
///     progress.on_change([&](const Progress& p) { line.update(p.done(), p.total()); });
///     ... in the job: progress.set_total(size); progress.advance(n); co_await
///     progress.check("copy");
///     ... anywhere on the same thread: progress.stop();
///
/// Invariant: done() never passes total(), and neither begins anew: a job of several steps gives
/// each a Share of the whole.
/// Cost: an addition and a call for each step; steps are pieces of work of milliseconds.
/// Threads: one, that of the job's reactor.
/// Not here: how it is shown (cli/progress_line.h), pausing and speed limits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string_view>
#include <utility>

#include "base/cat.h"
#include "base/error.h"

namespace byre {

class Progress {
 public:
  Progress() = default;
  Progress(const Progress&) = delete;

  // For whoever waits for the job.
  /// In the units of the job (bytes, where it says nothing else).
  uint64_t done() const { return done_; }
  /// 0: not known yet.
  uint64_t total() const { return total_; }
  /// 0 to 1.
  double fraction() const {
    return total_ == 0 ? 0 : static_cast<double>(done_) / static_cast<double>(total_);
  }
  /// Called after each step, from inside the job: it must not wait.
  void on_change(std::function<void(const Progress&)> call) { on_change_ = std::move(call); }
  /// The job ends with Errc::cancelled at its next step.
  void stop() { stopped_ = true; }
  /// Asked at each step, besides: true is a stop().
  void stop_when(std::function<bool()> wanted) { stop_wanted_ = std::move(wanted); }

  // For the job.
  void set_total(uint64_t total) { set(done_, total); }
  void advance(uint64_t by) { set(done_ + by, total_); }
  /// For work that is not counted in bytes: 0 to 1.
  void set_fraction(double fraction) { set(static_cast<uint64_t>(fraction * 1e6), 1'000'000); }
  void set(uint64_t done, uint64_t total) {
    total_ = std::max(total_, total);
    done_ = std::min(std::max(done_, done), total_);
    if (on_change_) on_change_(*this);
  }
  bool stopped() {
    if (!stopped_ && stop_wanted_ && stop_wanted_()) stopped_ = true;
    return stopped_;
  }
  /// Errc::cancelled after stop(); `what` completes "the ... was stopped".
  Result<void> check(std::string_view what) {
    if (!stopped()) return {};
    return Error(Errc::cancelled, cat("the ", what, " was stopped"));
  }

 private:
  uint64_t done_ = 0;
  uint64_t total_ = 0;
  bool stopped_ = false;
  std::function<void(const Progress&)> on_change_;
  std::function<bool()> stop_wanted_;
};

}  // namespace byre
