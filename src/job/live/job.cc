// SPDX-License-Identifier: Apache-2.0
#include "job/live/job.h"

#include <algorithm>
#include <utility>

#include "block/let_through.h"
#include "job/live/job_list.h"

namespace byre {

namespace {

/// Before a request that failed is tried again.
constexpr int64_t kRetryAfter = 100 * kMillisecond;
/// A rest beside the time that the piece before it took, which counts as this long at most: where a
/// piece has to wait for a processor or a disk that others keep busy, the job still goes on.
constexpr int64_t kRestsPerPiece = 5;
constexpr int64_t kPieceMax = 1 * kMillisecond;
/// Guests that have asked nothing for so long are not at work.
constexpr int64_t kGuestsRest = 20 * kMillisecond;

}  // namespace

std::string_view name_of(JobKind kind) {
  switch (kind) {
    case JobKind::commit:
      return "commit";
    case JobKind::stream:
      return "stream";
    case JobKind::mirror:
      return "mirror";
    case JobKind::backup:
      return "backup";
    case JobKind::create:
      return "create";
    case JobKind::amend:
      return "amend";
    case JobKind::resize:
      return "resize";
  }
  return "unknown";
}

std::string_view name_of(JobStatus status) {
  switch (status) {
    case JobStatus::created:
      return "created";
    case JobStatus::running:
      return "running";
    case JobStatus::paused:
      return "paused";
    case JobStatus::ready:
      return "ready";
    case JobStatus::standby:
      return "standby";
    case JobStatus::waiting:
      return "waiting";
    case JobStatus::pending:
      return "pending";
    case JobStatus::aborting:
      return "aborting";
    case JobStatus::concluded:
      return "concluded";
    case JobStatus::null:
      return "null";
  }
  return "unknown";
}

Task<void> JobWork::prepare(Job&) { co_return; }
Task<void> JobWork::commit(Job&) { co_return; }
Task<void> JobWork::abort(Job&) { co_return; }

Job::Job(JobList& list, std::unique_ptr<JobWork> work, JobOptions options, Reactor& reactor)
    : list_(list),
      reactor_(reactor),
      work_(std::move(work)),
      options_(std::move(options)),
      gate_(reactor.ready()),
      idle_(reactor.ready()),
      changed_(reactor.ready()),
      speed_(options_.speed) {}

Job::~Job() = default;

// --- What users ask ------------------------------------------------------------------------------

Error Job::refused(std::string_view verb) const {
  return invalid("Job '", id(), "' in state '", name_of(status_), "' cannot accept command verb '",
                 verb, "'");
}

Result<void> Job::check(std::string_view verb, std::initializer_list<JobStatus> states) const {
  if (std::ranges::find(states, status_) != states.end()) return {};
  return refused(verb);
}

Result<void> Job::pause() {
  using enum JobStatus;
  if (Result<void> can = check("pause", {created, running, paused, ready, standby}); !can)
    return can;
  if (user_paused_) return invalid("Job is already paused");
  user_paused_ = true;
  gate_.close(idle_);
  if (started_) list_.scope_.spawn(watch_pause());
  return {};
}

/// Shows the pause when nothing is under way any more.
Task<void> Job::watch_pause() {
  while (user_paused_ && !gate_.is_idle()) co_await idle_.wait();
  show_pause();
}

void Job::show_pause() {
  if (!user_paused_ || !gate_.is_idle()) return;
  if (status_ == JobStatus::running) set_status(JobStatus::paused);
  if (status_ == JobStatus::ready) set_status(JobStatus::standby);
}

void Job::open_gate() {
  if (!std::exchange(user_paused_, false)) return;
  io_status_ = JobIoStatus::ok;
  gate_.open(idle_);
  idle_.notify();
  if (status_ == JobStatus::paused) set_status(JobStatus::running);
  if (status_ == JobStatus::standby) set_status(JobStatus::ready);
}

Result<void> Job::resume() {
  if (!user_paused_) return invalid("Can't resume a job that was not paused");
  open_gate();
  wake();
  return {};
}

Result<void> Job::cancel(bool force) {
  using enum JobStatus;
  // No throttle holds up the end of what is under way.
  const auto let_through = [](JobList& list, const Job* job) -> Task<void> {
    if (job->status_ >= waiting) co_return;
    LetThrough unthrottled;
    for (const Node* node : job->work_->nodes()) unthrottled.add(node->device());
    const auto lives = [job](const auto& one) { return one.get() == job; };
    while (std::ranges::any_of(list.jobs_, lives) && job->status_ < concluded)
      co_await list.changed_.wait();
  };
  if (Result<void> can =
          check("cancel", {created, running, paused, ready, standby, waiting, pending});
      !can) {
    return can;
  }
  if (!force && ready_ && work_->ends_without_switch()) {
    if (status_ == ready || status_ == standby) soft_cancelled_ = completing_ = true;
    list_.scope_.spawn(let_through(list_, this));
    open_gate();
    wake();
    return {};
  }
  if (!std::exchange(cancelled_, true)) list_.scope_.spawn(let_through(list_, this));
  open_gate();
  list_.interrupt_later(*this);
  wake();
  if (status_ == waiting || status_ == pending) transaction_->fails(*this);
  return {};
}

Result<void> Job::complete() {
  if (Result<void> can = check("complete", {JobStatus::ready, JobStatus::standby}); !can)
    return can;
  if (cancelled_) return refused("complete");
  completing_ = true;
  wake();
  return {};
}

Result<void> Job::set_speed(uint64_t speed) {
  using enum JobStatus;
  if (Result<void> can = check("set-speed", {created, running, paused, ready, standby}); !can) {
    return can;
  }
  speed_ = speed;
  next_start_ = reactor_.now();
  wake();
  return {};
}

Result<void> Job::finalize() {
  if (Result<void> can = check("finalize", {JobStatus::pending}); !can) return can;
  transaction_->begin_to_finalize(list_.scope_);
  return {};
}

Result<void> Job::dismiss() {
  if (Result<void> can = check("dismiss", {JobStatus::concluded}); !can) return can;
  set_status(JobStatus::null);
  list_.remove(*this);
  return {};
}

// --- For its work --------------------------------------------------------------------------------

Error Job::cancelled_error() const {
  return Error(Errc::cancelled, cat("the job '", id(), "' was cancelled"), ECANCELED);
}

Task<Gate::Pass> Job::enter() {
  if (cancelled_) co_await fail(cancelled_error());
  Gate::Pass pass = co_await gate_.enter();
  if (cancelled_) co_await fail(cancelled_error());
  co_return std::move(pass);
}

Task<void> Job::limit(uint64_t bytes) {
  while (speed_ != 0 && is_limited()) {
    const uint64_t speed = speed_;
    const Instant start = std::max(next_start_, reactor_.now());
    const double seconds = static_cast<double>(bytes) / static_cast<double>(speed);
    next_start_ = start + static_cast<int64_t>(std::min(seconds, 1e6) * 1e9);
    const Instant booked = next_start_;
    while (reactor_.now() < start && speed_ == speed && next_start_ >= booked && is_limited()) {
      co_await sleep_until(start);
    }
    if (speed_ == speed && next_start_ >= booked) break;  // Else somebody has set another speed.
  }
}

Task<void> Job::give_way(Instant began, uint64_t guest_requests) {
  const Instant now = reactor_.now();
  if (std::exchange(guest_requests_, guest_requests) != guest_requests) guests_seen_ = now;
  if (!options_.gives_way || speed_ != 0 || now - guests_seen_ > kGuestsRest) co_return;
  const int64_t took = std::min(now - began, kPieceMax);
  next_start_ = std::max(next_start_, now) + kRestsPerPiece * took;
  const Instant start = next_start_;
  while (reactor_.now() < start && speed_ == 0 && next_start_ >= start && is_limited() &&
         options_.gives_way) {
    co_await sleep_until(start);
  }
}

Task<void> Job::sleep_until(Instant end) {
  Op timer{.kind = Op::Kind::timer, .deadline = end};
  sleepers_.push_back(&timer);
  co_await reactor_.perform(timer);
  std::erase(sleepers_, &timer);
}

/// Whoever waits for time or a user looks again.
void Job::wake() {
  changed_.notify();
  for (Op* timer : sleepers_) reactor_.cancel(*timer);
}

Task<bool> Job::retries(JobSide side, const Error& error) {
  if (cancelled_) co_return false;
  OnError action = side == JobSide::source ? options_.on_source_error : options_.on_target_error;
  const bool is_full = error.code() == Errc::no_space;
  if (action == OnError::enospc) action = is_full ? OnError::stop : OnError::report;
  tell({.kind = JobEvent::Kind::error, .side = side, .action = action});
  if (action == OnError::report) co_return false;
  if (action == OnError::ignore) {
    const Instant again = reactor_.now() + kRetryAfter;
    while (reactor_.now() < again && !cancelled_) co_await sleep_until(again);
    co_return !cancelled_;
  }
  if (!user_paused_) (void)pause();
  if (user_paused_) io_status_ = is_full ? JobIoStatus::no_space : JobIoStatus::failed;
  const Gate::Pass pass = co_await gate_.enter();  // When somebody lets it go on.
  co_return !cancelled_;
}

void Job::fail_soon() {
  if (std::exchange(failing_, true)) return;
  wake();
  list_.interrupt_later(*this);
}

void Job::set_ready() {
  if (std::exchange(ready_, true)) return;
  // A pause that is not yet shown is shown as standby.
  if (status_ == JobStatus::paused) set_status(JobStatus::standby);
  if (status_ == JobStatus::running) set_status(JobStatus::ready);
  tell({.kind = JobEvent::Kind::ready});
  show_pause();
}

// --- Its life ------------------------------------------------------------------------------------

void Job::set_status(JobStatus status) {
  status_ = status;
  tell({.kind = JobEvent::Kind::status});
}

void Job::tell(JobEvent event) { list_.tell(*this, event); }

Task<void> Job::live() {
  co_await reactor_.ready().yield();  // Whoever started it still has it in hand.
  show_pause();
  Result<void> ran;
  if (cancelled_) {
    ran = cancelled_error();
  } else {
    ran = co_await work_->run(*this).result();
  }
  (void)co_await gate_.enter();  // A job that is paused does not end.
  if (ran && cancelled_) ran = cancelled_error();
  if (!ran) error_ = std::move(ran).error();
  if (error_) {
    transaction_->fails(*this);
  } else {
    set_status(JobStatus::waiting);
    transaction_->has_run(list_.scope_);
  }
  co_await transaction_->settled_.wait();

  const bool failed = transaction_->step_ == JobTransaction::Step::aborted;
  if (failed) {
    if (!error_) error_ = cancelled_error();
    set_status(JobStatus::aborting);
    (void)co_await work_->abort(*this).result();
  }
  Result<void> cleaned = co_await work_->clean(*this).result();
  Result<void> given_back = co_await work_->loans.give_back().result();
  if (cleaned) cleaned = std::move(given_back);
  if (!cleaned && !error_) error_ = std::move(cleaned).error();
  const bool was_cancelled = error_ && error_.code() == Errc::cancelled;
  tell({.kind = was_cancelled ? JobEvent::Kind::cancelled : JobEvent::Kind::completed});
  list_.forget_interrupt(*this);
  set_status(JobStatus::concluded);
  if (options_.auto_dismiss) (void)dismiss();
}

}  // namespace byre
