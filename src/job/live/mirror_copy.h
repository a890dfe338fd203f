// SPDX-License-Identifier: Apache-2.0
/// MirrorCopy: the requests of a job that copies what is dirty in a MirrorFilter, several at a
/// time, in the order of the disk, round after round.
///
/// Cost: that of MirrorFilter::copy().  Memory: requests_max requests.
/// Not here: what is dirty (mirror_filter.h), what comes afterwards (mirror.h, commit_below.h).
#pragma once

#include <functional>

#include "job/live/job.h"
#include "job/live/mirror_filter.h"

namespace byre {

class MirrorCopy {
 public:
  /// The filter outlives it.  `on_round` is called when a round over the disk begins anew.
  MirrorCopy(MirrorFilter& filter, unsigned requests_max, std::function<void()> on_round = {})
      : filter_(filter), requests_max_(requests_max), on_round_(std::move(on_round)) {}

  /// How many requests guests have made so far, where they do not come through the filter.
  void set_guest_requests(std::function<uint64_t()> count) { guest_requests_ = std::move(count); }
  /// Until nothing is dirty, or `enough` says so; the first error that the job does not try again.
  Task<void> run(Job& job, std::function<bool()> enough = {});
  /// The same for whoever has drained the graph: no passes, nothing is waited for or tried again.
  Task<void> run_alone();

 private:
  uint64_t guest_requests() const {
    return guest_requests_ ? guest_requests_() : filter_.guest_requests();
  }
  Task<void> worker(Job& job, const std::function<bool()>& enough);

  MirrorFilter& filter_;
  const unsigned requests_max_;
  const std::function<void()> on_round_;
  std::function<uint64_t()> guest_requests_;
  uint64_t cursor_ = 0;  ///< Of the next piece.
  bool failed_ = false;  ///< Its workers end.
};

}  // namespace byre
