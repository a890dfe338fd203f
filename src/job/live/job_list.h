// SPDX-License-Identifier: Apache-2.0
/// JobList: the jobs of a process, and their transactions.
///
///     auto transaction = jobs.begin_transaction();                    // or none: a job of its own
///     Job* job = co_await jobs.add(std::move(work), options, transaction);
///     jobs.start(*transaction);
///
/// Jobs of a transaction end alike: all commit, or all abort.  A job that has run waits for the
/// others; one that fails or is cancelled cancels the others.
/// Invariant: no two jobs have one id; no two hold one node, so none changes what another one
/// works on.
/// Cost: nothing while nothing changes.
/// Not here: what a job does (job.h).
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "coro/scope.h"
#include "job/live/job.h"

namespace byre {

class JobTransaction {
 public:
  explicit JobTransaction(ReadyQueue& ready) : settled_(ready) {}

 private:
  friend class Job;
  friend class JobList;
  enum class Step : uint8_t { running, finalizing, committed, aborted };
  void has_run(Scope& scope);
  void fails(Job& job);
  void begin_to_finalize(Scope& scope);
  bool all(JobStatus status) const;
  Task<void> finalize();

  std::vector<Job*> jobs_;
  Step step_ = Step::running;
  Event settled_;  ///< Committed or aborted.
};

class JobList {
 public:
  using Listener = std::function<void(const Job&, const JobEvent&)>;

  explicit JobList(Reactor& reactor)
      : reactor_(reactor), scope_(reactor.ready()), changed_(reactor.ready()) {}
  JobList(const JobList&) = delete;
  ~JobList();

  /// Called at once, from inside a job: it must not wait.
  void set_listener(Listener listener) { listener_ = std::move(listener); }

  std::shared_ptr<JobTransaction> begin_transaction();
  /// The job is created, and does nothing yet.  Errc::exists for an id that is taken, Errc::busy
  /// when another job holds one of its nodes.
  Result<Job*> add(std::unique_ptr<JobWork> work, JobOptions options,
                   const std::shared_ptr<JobTransaction>& transaction);
  /// Those of its jobs that were not started yet.
  void start(JobTransaction& transaction);
  /// Of a transaction that does not begin after all: its jobs are gone, without an event.
  Task<void> drop(JobTransaction& transaction);
  /// add() and start().
  Result<Job*> run(std::unique_ptr<JobWork> work, JobOptions options);

  /// Null: none has this id.
  Job* find(std::string_view id) const;
  std::vector<Job*> jobs() const;
  /// The nodes that a job holds: its own, and of filters what they are over, whoever put them
  /// there: to another job that is the same disk.
  static std::vector<Node*> held_by(const JobWork& work);
  /// Errc::busy when a job holds the node: "Node 'a' is busy: block device is in use by block job:
  /// mirror".
  Result<void> check_free(const Node& node) const;

  /// Waits until the job has this status, or is gone.
  Task<void> wait_for(std::string id, JobStatus status);
  /// Cancels all jobs, and waits until none is left.
  Task<void> close();
  /// The simulated process died.
  void abandon();

 private:
  friend class Job;
  friend class JobTransaction;
  void interrupt_later(const Job& job);
  Task<void> interrupt_if_it_runs(const Job* job);
  void forget_interrupt(const Job& job);
  void tell(const Job& job, const JobEvent& event);
  void remove(Job& job);

  Reactor& reactor_;
  Scope scope_;
  Event changed_;  ///< A status has changed, or a job is gone.
  Listener listener_;
  std::vector<std::unique_ptr<Job>> jobs_;
  /// Timers of jobs that were cancelled; each goes with its job.
  std::vector<std::pair<const Job*, Op*>> interrupts_;
};

}  // namespace byre
