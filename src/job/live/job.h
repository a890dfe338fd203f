// SPDX-License-Identifier: Apache-2.0
/// Job: something long that is done to disks in use, and what users may ask of it meanwhile.
///
///   created -> running <-> paused ;  running -> ready <-> standby
///   running or ready -> waiting -> pending -> concluded -> null
///   all before pending, and pending -> aborting -> concluded
/// A job runs; it waits for the others of its transaction; it is pending until somebody finalizes
/// it (at once, with auto_finalize); its result is kept until somebody dismisses it.  The states,
/// and what may be asked in each, are those of QEMU's documentation (qapi/job.json).
///
/// What a job does is its JobWork (mirror.h, backup.h, stream.h).  The work does its requests in
/// pieces.  Each has a pass of the job's gate, so one mechanism pauses a job, and keeps it still
/// while the graph changes: the edges of a job have its gate (Child::set_gate()).
/// Invariant: while the job is paused or a drain holds its edges, no request of it is under way.
/// Whoever waits for time, for a user or for a drain has no pass.
/// Invariant: a job ends by commit() or by abort(), once, then by clean(); commit() of all jobs of
/// a transaction, or of none.
/// Cost: an idle job has no timer.  Memory: about 1 KiB, and what its work has.
/// Threads: one, that of the reactor.
/// Not here: which jobs there are (job_list.h), how users ask (the daemon).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "coro/event.h"
#include "coro/gate.h"
#include "io/reactor.h"
#include "job/live/write_loans.h"

namespace byre {

class Job;
class JobList;
class JobTransaction;
class Node;

enum class JobKind : uint8_t { commit, stream, mirror, backup, create, amend, resize };
std::string_view name_of(JobKind kind);

enum class JobStatus : uint8_t {
  created,
  running,
  paused,
  ready,      ///< The target holds what the source does; both are kept alike.
  standby,    ///< Paused when it was ready.
  waiting,    ///< For the other jobs of its transaction.
  pending,    ///< For whoever finalizes it.
  aborting,   ///< It has failed or was cancelled.
  concluded,  ///< Nothing is done any more; its result can be read.
  null,       ///< Gone.
};
std::string_view name_of(JobStatus status);

/// What happens when a request of a job fails.
enum class OnError : uint8_t {
  report,  ///< The job fails.
  ignore,  ///< It is tried again later.
  enospc,  ///< stop for a full disk, report for all else.
  stop,    ///< The job pauses, and the request is tried again when it goes on.
};
enum class JobSide : uint8_t { source, target };
/// Of the request that failed last: until the job goes on.
enum class JobIoStatus : uint8_t { ok, failed, no_space };

struct JobOptions {
  std::string id;
  bool auto_finalize = true;
  bool auto_dismiss = true;
  uint64_t speed = 0;  ///< Bytes a second; 0: no limit.
  OnError on_source_error = OnError::report;
  OnError on_target_error = OnError::report;
  /// Without a speed: while guests are at work on the disk, it rests longer than it copies.
  bool gives_way = false;
};

/// What a job does.  Every call is made once, in this order; nothing is called after an error of
/// run() but abort() and clean().
class JobWork {
 public:
  virtual ~JobWork() = default;
  virtual JobKind kind() const = 0;
  /// The nodes that nobody may change as a whole (resize, amend, apply a snapshot) meanwhile.
  virtual std::vector<Node*> nodes() const = 0;
  /// Everything that may take long.  It ends with an error, or when all is copied; a job that was
  /// ready, when somebody has asked it to complete.  Errc::cancelled after Job::is_cancelled().
  virtual Task<void> run(Job& job) = 0;
  /// All jobs of the transaction have run: the last step that may fail.  What it began is ended by
  /// commit() or abort(), which follow without a wait for a user.
  virtual Task<void> prepare(Job& job);
  virtual Task<void> commit(Job& job);
  virtual Task<void> abort(Job& job);
  virtual Task<void> clean(Job& job) = 0;
  /// A cancel without force of a job that is ready: true ends it as complete, but the graph stays
  /// as it is.
  virtual bool ends_without_switch() { return false; }
  /// The job was cancelled, and what is under way has not ended for long: it is given up, where
  /// nobody but the job counts on the device.  May come at any time before clean() has ended.
  virtual void interrupt() {}
  /// Bytes of the target that were read back and compared; nullopt where that is not done.
  virtual std::optional<uint64_t> verified() const { return std::nullopt; }

  /// What was opened for writing for this job; given back behind clean().
  WriteLoans loans;
};

/// What is told to those who listen.
struct JobEvent {
  enum class Kind : uint8_t { status, ready, pending, completed, cancelled, error };
  Kind kind = Kind::status;
  // Of an error: what failed, and what the job does about it (never enospc).
  JobSide side = JobSide::source;
  OnError action = OnError::report;
};

class Job {
 public:
  ~Job();
  Job(const Job&) = delete;

  // --- What users see and ask ----------------------------------------------------------------
  const std::string& id() const { return options_.id; }
  JobKind kind() const { return work_->kind(); }
  JobStatus status() const { return status_; }
  const JobOptions& options() const { return options_; }
  const Progress& progress() const { return progress_; }
  uint64_t speed() const { return speed_; }
  JobIoStatus io_status() const { return io_status_; }
  bool is_ready() const { return ready_; }
  /// Somebody has paused it; it may still be ending what is under way.
  bool is_paused() const { return user_paused_; }
  bool is_busy() const { return !gate_.is_idle(); }
  /// Null unless it has failed or was cancelled.
  const Error& error() const { return error_; }
  JobWork& work() const { return *work_; }

  /// Errc::invalid with a sentence in QEMU's words when that cannot be asked in this state.
  Result<void> pause();
  Result<void> resume();
  /// Always ends the job.  Without `force` a job that is ready may end as complete.
  Result<void> cancel(bool force);
  Result<void> complete();
  Result<void> set_speed(uint64_t speed);
  /// Of its whole transaction.
  Result<void> finalize();
  /// The job is gone, and this object with it.
  Result<void> dismiss();
  /// Can `verb` be asked now?  For what only some jobs understand.
  Result<void> check(std::string_view verb, std::initializer_list<JobStatus> states) const;

  // --- For its work --------------------------------------------------------------------------
  Reactor& reactor() const { return reactor_; }
  Gate& gate() { return gate_; }
  Progress& progress() { return progress_; }
  /// A piece of work may begin; its requests end before the pass does.  Errc::cancelled when the
  /// job is to end.
  Task<Gate::Pass> enter();
  /// Waits until `bytes` more are within the job's speed, or somebody has asked for its end: what
  /// is left then is not limited.  Without a pass.
  Task<void> limit(uint64_t bytes);
  /// A piece that began then has ended, and there have been so many requests of guests so far:
  /// rests if guests come first (JobOptions::gives_way) and nobody has asked for its end.  Without
  /// a pass.
  ///
  /// One thread copies and serves guests, so a job that copies all the time takes most of it. Rests
  /// follow each other, whoever copied: one piece at a time is under way then, and its time, which
  /// is that of a few requests of guests as well, is a sixth of all at most.
  Task<void> give_way(Instant began, uint64_t guest_requests);
  /// From here on it does not: guests write faster than it copies.
  void hurry() {
    if (std::exchange(options_.gives_way, false)) wake();
  }
  /// A request has failed: true when it is to be tried again, now.  Waits as long as the job is
  /// stopped by it.  Without a pass.
  Task<bool> retries(JobSide side, const Error& error);
  /// The work can only fail from here on: it waits for no speed, and what is under way is given up
  /// when it has not ended soon, as after a cancel.
  void fail_soon();
  /// The target is like the source; from here on somebody may complete the job.
  void set_ready();
  bool is_cancelled() const { return cancelled_; }
  /// Somebody has asked for the end of a job that is ready: by complete(), or by a cancel() that is
  /// to leave the graph as it is.
  bool shall_complete() const { return completing_; }
  bool shall_switch() const { return !soft_cancelled_; }
  Error cancelled_error() const;
  /// Notified when one of these has changed.
  Event& changed() { return changed_; }

 private:
  friend class JobList;
  friend class JobTransaction;
  Job(JobList& list, std::unique_ptr<JobWork> work, JobOptions options, Reactor& reactor);
  Task<void> live();
  void set_status(JobStatus status);
  void tell(JobEvent event);
  bool is_limited() const { return !cancelled_ && !completing_ && !failing_; }
  void show_pause();
  Task<void> watch_pause();
  void open_gate();
  void wake();
  Task<void> sleep_until(Instant end);
  Error refused(std::string_view verb) const;

  JobList& list_;
  Reactor& reactor_;
  std::unique_ptr<JobWork> work_;
  JobOptions options_;
  std::shared_ptr<JobTransaction> transaction_;
  JobStatus status_ = JobStatus::created;
  Progress progress_;
  Gate gate_;
  Event idle_;     ///< Nothing is under way, and the gate was closed by a pause.
  Event changed_;  ///< The work looks again.
  uint64_t speed_ = 0;
  Instant next_start_;  ///< With a speed or a rest: no piece begins before.
  uint64_t guest_requests_ = 0;
  Instant guests_seen_{-kSecond};  ///< When that number was another.
  std::vector<Op*> sleepers_;      ///< Timers under way.
  bool started_ = false;
  bool user_paused_ = false;
  bool ready_ = false;
  bool completing_ = false;
  bool soft_cancelled_ = false;
  bool cancelled_ = false;
  bool failing_ = false;  ///< fail_soon()
  JobIoStatus io_status_ = JobIoStatus::ok;
  Error error_;
};

}  // namespace byre
