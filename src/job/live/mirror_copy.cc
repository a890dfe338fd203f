// SPDX-License-Identifier: Apache-2.0
#include "job/live/mirror_copy.h"

#include <utility>

#include "coro/scope.h"

namespace byre {

Task<void> MirrorCopy::run(Job& job, std::function<bool()> enough) {
  failed_ = false;
  Scope workers(job.reactor().ready());
  for (unsigned i = 0; i < requests_max_; ++i) workers.spawn(worker(job, enough));
  co_await workers.join();
}

Task<void> MirrorCopy::worker(Job& job, const std::function<bool()>& enough) {
  while (!failed_ && !(enough && enough())) {
    MirrorFilter::Copied copied;
    Instant began;
    {
      const Gate::Pass pass = co_await job.enter();
      began = job.reactor().now();
      const auto taken = co_await filter_.take(cursor_);
      if (!taken) break;
      if (taken->first < cursor_ && on_round_) on_round_();
      cursor_ = taken->end;
      copied = co_await filter_.copy(*taken);
    }
    Progress& progress = job.progress();
    const uint64_t done = progress.done() + copied.bytes;
    progress.set(done, done + filter_.dirty_bytes());
    if (copied.error) {
      if (co_await job.retries(copied.side, copied.error)) continue;
      failed_ = true;
      co_await fail(job.is_cancelled() ? job.cancelled_error() : std::move(copied.error));
    }
    co_await job.limit(copied.bytes);
    if (copied.bytes != 0) co_await job.give_way(began, guest_requests());
  }
}

Task<void> MirrorCopy::run_alone() {
  while (filter_.is_dirty()) {
    const auto taken = co_await filter_.take(0);
    if (!taken) break;
    MirrorFilter::Copied copied = co_await filter_.copy(*taken);
    if (copied.error) co_await fail(std::move(copied.error));
  }
}

}  // namespace byre
