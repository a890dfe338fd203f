// SPDX-License-Identifier: Apache-2.0
#include "job/live/job_list.h"

#include <algorithm>
#include <utility>

#include "block/graph.h"

namespace byre {

// --- Transactions --------------------------------------------------------------------------------

bool JobTransaction::all(JobStatus status) const {
  return std::ranges::all_of(jobs_, [&](const Job* job) { return job->status() == status; });
}

/// One of them has run.
void JobTransaction::has_run(Scope& scope) {
  if (step_ != Step::running || !all(JobStatus::waiting)) return;
  bool waits_for_a_user = false;
  for (Job* job : jobs_) {
    job->set_status(JobStatus::pending);
    if (job->options().auto_finalize) continue;
    waits_for_a_user = true;
    job->tell({.kind = JobEvent::Kind::pending});
  }
  if (!waits_for_a_user) begin_to_finalize(scope);
}

/// One of them has failed or was cancelled.
void JobTransaction::fails(Job& job) {
  if (step_ != Step::running) return;  // finalize() sees to it, or it is too late.
  step_ = Step::aborted;
  settled_.set();
  for (Job* other : jobs_) {
    if (other != &job && !other->is_cancelled()) (void)other->cancel(true);
  }
}

void JobTransaction::begin_to_finalize(Scope& scope) {
  if (step_ != Step::running) return;
  step_ = Step::finalizing;
  scope.spawn(finalize());
}

Task<void> JobTransaction::finalize() {
  bool failed = false;
  for (Job* job : jobs_) {
    Result<void> prepared;
    if (job->is_cancelled()) prepared = job->cancelled_error();
    if (prepared) prepared = co_await job->work().prepare(*job).result();
    if (prepared) continue;
    job->error_ = std::move(prepared).error();
    failed = true;
    break;
  }
  failed |= std::ranges::any_of(jobs_, &Job::is_cancelled);
  if (failed) {
    step_ = Step::aborted;
  } else {
    step_ = Step::committed;
    for (Job* job : jobs_) {
      Result<void> committed = co_await job->work().commit(*job).result();
      if (!committed) job->error_ = std::move(committed).error();
    }
  }
  settled_.set();
}

/// A letter, then letters, digits, '-', '.' and '_'.
static bool is_well_formed(std::string_view id) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  return !id.empty() && is_letter(id.front()) && std::ranges::all_of(id, [&](char c) {
    return is_letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  });
}

// --- The list ------------------------------------------------------------------------------------

JobList::~JobList() { BYRE_ASSERT(jobs_.empty()); }

std::shared_ptr<JobTransaction> JobList::begin_transaction() {
  return std::make_shared<JobTransaction>(reactor_.ready());
}

std::vector<Node*> JobList::held_by(const JobWork& work) {
  std::vector<Node*> held;
  for (Node* node : work.nodes()) {
    while (node && std::ranges::find(held, node) == held.end()) {
      held.push_back(node);
      const std::span<Child* const> below = node->device().children();
      const auto filtered = std::ranges::find(below, Role::filtered, &Child::role);
      node = filtered == below.end() ? nullptr : &(*filtered)->node();
    }
  }
  return held;
}

Result<void> JobList::check_free(const Node& node) const {
  for (const auto& job : jobs_) {
    if (job->status() == JobStatus::concluded || job->status() == JobStatus::null) continue;
    for (const Node* held : held_by(job->work())) {
      if (held != &node) continue;
      return Error(Errc::busy,
                   cat("Node '", node.name(),
                       "' is busy: block device is in use by block job: ", name_of(job->kind())));
    }
  }
  return {};
}

Result<Job*> JobList::add(std::unique_ptr<JobWork> work, JobOptions options,
                          const std::shared_ptr<JobTransaction>& transaction) {
  if (!is_well_formed(options.id)) return invalid("Invalid job ID '", options.id, "'");
  if (find(options.id)) {
    return Error(Errc::exists, cat("Job ID '", options.id, "' already in use"));
  }
  for (const Node* node : held_by(*work)) {
    if (Result<void> free = check_free(*node); !free) return std::move(free).error();
  }
  jobs_.push_back(
      std::unique_ptr<Job>(new Job(*this, std::move(work), std::move(options), reactor_)));
  Job* job = jobs_.back().get();
  job->transaction_ = transaction;
  transaction->jobs_.push_back(job);
  tell(*job, {.kind = JobEvent::Kind::status});
  return job;
}

void JobList::start(JobTransaction& transaction) {
  std::vector<Job*> begun;
  for (Job* job : transaction.jobs_) {
    if (std::exchange(job->started_, true)) continue;
    job->set_status(JobStatus::running);
    begun.push_back(job);
  }
  for (Job* job : begun) scope_.spawn(job->live());
}

Task<void> JobList::drop(JobTransaction& transaction) {
  for (Job* job : std::exchange(transaction.jobs_, {})) {
    (void)co_await job->work().abort(*job).result();
    (void)co_await job->work().clean(*job).result();
    (void)co_await job->work().loans.give_back().result();
    job->set_status(JobStatus::null);
    remove(*job);
  }
}

Result<Job*> JobList::run(std::unique_ptr<JobWork> work, JobOptions options) {
  const std::shared_ptr<JobTransaction> transaction = begin_transaction();
  Result<Job*> job = add(std::move(work), std::move(options), transaction);
  if (job) start(*transaction);
  return job;
}

Job* JobList::find(std::string_view id) const {
  const auto found = std::ranges::find_if(jobs_, [&](const auto& job) { return job->id() == id; });
  return found == jobs_.end() ? nullptr : found->get();
}

std::vector<Job*> JobList::jobs() const {
  std::vector<Job*> jobs;
  for (const auto& job : jobs_) jobs.push_back(job.get());
  return jobs;
}

void JobList::tell(const Job& job, const JobEvent& event) {
  changed_.notify();
  if (listener_) listener_(job, event);
}

/// A job that was cancelled has this long to end what is under way in good order.
constexpr int64_t kInterruptAfter = 3 * kSecond;

void JobList::interrupt_later(const Job& job) {
  if (job.started_ &&
      std::ranges::none_of(interrupts_, [&](const auto& one) { return one.first == &job; })) {
    scope_.spawn(interrupt_if_it_runs(&job));
  }
}

Task<void> JobList::interrupt_if_it_runs(const Job* job) {
  Op timer{.kind = Op::Kind::timer, .deadline = reactor_.now() + kInterruptAfter};
  interrupts_.emplace_back(job, &timer);
  co_await reactor_.perform(timer);
  // The job may be gone: then it was taken out of the list.
  const auto found =
      std::ranges::find(interrupts_, &timer, [](const auto& one) { return one.second; });
  if (found == interrupts_.end()) co_return;
  interrupts_.erase(found);
  if (job->status() < JobStatus::concluded) job->work().interrupt();
}

/// It has ended: nobody waits for it.
void JobList::forget_interrupt(const Job& job) {
  const auto found =
      std::ranges::find(interrupts_, &job, [](const auto& one) { return one.first; });
  if (found == interrupts_.end()) return;
  Op* const timer = found->second;
  interrupts_.erase(found);
  reactor_.cancel(*timer);
}

void JobList::remove(Job& job) {
  forget_interrupt(job);
  std::erase(job.transaction_->jobs_, &job);
  std::erase_if(jobs_, [&](const auto& one) { return one.get() == &job; });
  changed_.notify();
}

Task<void> JobList::wait_for(std::string id, JobStatus status) {
  for (const Job* job = find(id); job && job->status() != status; job = find(id)) {
    co_await changed_.wait();
  }
}

Task<void> JobList::close() {
  for (Job* job : jobs()) (void)job->cancel(true);
  while (!jobs_.empty()) {
    for (Job* job : jobs()) (void)job->dismiss();
    if (!jobs_.empty()) co_await changed_.wait();
  }
  co_await scope_.join();
}

void JobList::abandon() {
  scope_.forget();
  interrupts_.clear();
  for (const auto& job : jobs_) job->gate_.forget();
  jobs_.clear();
}

}  // namespace byre
