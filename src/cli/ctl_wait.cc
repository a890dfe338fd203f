// SPDX-License-Identifier: Apache-2.0
#include "cli/ctl_wait.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "cli/progress_line.h"

namespace byre::ctl {

namespace {

constexpr int64_t kFirstPause = 20 * kMillisecond;
constexpr int64_t kLongestPause = 500 * kMillisecond;

/// How it ended, as the event says that came over the same connection; nullopt: none came.
std::optional<Result<void>> told_end(const std::string& id, const std::vector<Json>& events) {
  for (const Json& event : events) {
    const std::string name = text_at(event, "event");
    const auto data = event.find("data");
    if (data == event.end() || text_at(*data, "device") != id) continue;
    if (name == "BLOCK_JOB_CANCELLED") {
      return Error(Errc::cancelled, cat("job ", byre::quoted(id), " was cancelled"));
    }
    if (name != "BLOCK_JOB_COMPLETED") continue;
    const std::string why = text_at(*data, "error");
    if (why.empty()) return Result<void>();
    return Error(Errc::io, cat("job ", byre::quoted(id), " has failed: ", why));
  }
  return std::nullopt;
}

/// What a job that has concluded means for the exit code.
Result<void> result_of(const JobFacts& job) {
  if (job.error.empty()) return {};
  const auto ends_with = [&](std::string_view text) { return job.error.ends_with(text); };
  Errc code = Errc::io;
  if (ends_with("No space left on device")) code = Errc::no_space;
  if (ends_with("Operation canceled") || ends_with("Operation cancelled") ||
      ends_with("was cancelled")) {
    return Error(Errc::cancelled, cat("job ", byre::quoted(job.id), " was cancelled"));
  }
  return Error(code, cat("job ", byre::quoted(job.id), " has failed: ", job.error));
}

Json json_of(const JobFacts& job) {
  Json json = {{"id", job.id},
               {"type", job.type},
               {"status", job.status},
               {"current-progress", job.done},
               {"total-progress", job.total}};
  if (job.verified) json["x-byre-verified"] = *job.verified;
  return json;
}

/// One wait, with what ctrl-C has to end.
class Waiting {
 public:
  Waiting(Session& session, Args args, WaitOptions options)
      : session_(session), args_(std::move(args)), options_(std::move(options)) {}

  Task<int> run() {
    const Session::Interruptible guard(session_,
                                       {.about = "the daemon",
                                        .stop = [this] { stop(); },
                                        .waiting_for = [] { return "the daemon to answer"; }});
    Result<int> waited = co_await wait().result();
    if (!stopped_) co_return std::move(waited);
    line_.reset();
    session_.note(cat("job ", byre::quoted(options_.job), " goes on: 'byre ctl wait ", options_.job,
                      "' waits for it again, 'byre ctl cancel ", options_.job, "' ends it\n"));
    co_return Error(Errc::cancelled, "interrupted");
  }

 private:
  void stop() {
    stopped_ = true;
    if (pause_.pending) session_.reactor().cancel(pause_);
    if (asked_) asked_->stop();
  }

  Task<void> pause() {
    pause_ = Op{.kind = Op::Kind::timer, .deadline = session_.reactor().now() + pause_ns_};
    pause_ns_ = std::min(pause_ns_ * 3 / 2, kLongestPause);
    if (!stopped_) co_await session_.reactor().perform(pause_);
  }

  Task<std::optional<JobFacts>> look() {
    if (!client_) {
      Client made = co_await connect(session_, args_, &asked_);
      client_ = std::move(made);
    }
    co_return co_await look_at_job(*client_, options_.job);
  }

  void hang_up() {
    asked_ = nullptr;
    client_.reset();
  }

  using Code = std::optional<int>;
  /// The exit code; nullopt: it is not over.
  Task<Code> consider(const JobFacts& job) {
    if (job.is_over()) {
      co_await dismiss(*client_, job);
      if (line_ && job.error.empty()) line_->finish();
      line_.reset();
      co_await result_of(job);
      const std::string_view verified = job.verified ? ", and its copy was verified" : "";
      co_return told(job, cat("job ", byre::quoted(job.id), " is done", verified, "\n"));
    }
    if (job.is_ready() && !options_.complete) {
      line_.reset();
      co_return told(job, cat("job ", byre::quoted(job.id), " is ready: 'byre ctl complete ",
                              job.id, "' ends it and leads users to its target, 'byre ctl cancel ",
                              job.id, "' ends it and leaves all as it is\n"));
    }
    if (job.is_ready() && !std::exchange(completed_, true)) {
      (void)co_await ask(*client_, "job-complete", {{"id", job.id}});
    }
    if (job.status == "pending" && !job.auto_finalize) {
      line_.reset();
      co_return told(job, cat("job ", byre::quoted(job.id), " is pending: 'byre ctl finalize ",
                              job.id, "' ends it\n"));
    }
    tell_when_held(job);
    tell_when_overtaken(job);
    co_return Code();
  }

  Code told(const JobFacts& job, const std::string& text) {
    if (session_.json()) {
      print_json(session_, json_of(job));
    } else {
      session_.print(text);
    }
    return 0;
  }

  void tell_when_overtaken(const JobFacts& job) {
    const std::string name = byre::quoted(job.id);
    if (job.went_blocking && !std::exchange(told_blocking_, true)) {
      told_overtaken_ = true;
      session_.note(cat("job ", name,
                        ": guests wrote faster than it copies, so they write to both disks now, at "
                        "the speed of the slower one\n"));
    }
    if (job.overtaken && !std::exchange(told_overtaken_, true)) {
      session_.note(cat("job ", name,
                        ": guests write faster than it copies, so it may never be ready: 'byre ctl "
                        "speed ",
                        job.id,
                        "' changes its limit, and --converge auto would let guests write "
                        "to both disks\n"));
    }
  }

  void tell_when_held(const JobFacts& job) {
    const bool held = job.status == "paused" || job.status == "standby";
    const bool failed = job.io_status == "nospace" || job.io_status == "failed";
    held_looks_ = held ? held_looks_ + 1 : 0;
    // QEMU's jobs pause for a moment when the graph changes.
    if (held && !told_held_ && (failed || held_looks_ > 1)) {
      const std::string why = job.io_status == "nospace"  ? " because a disk is full"
                              : job.io_status == "failed" ? " because a request of it has failed"
                                                          : "";
      session_.note(cat("job ", byre::quoted(job.id), " is paused", why, ": 'byre ctl resume ",
                        job.id, "' lets it go on\n"));
    }
    told_held_ = held && (told_held_ || failed || held_looks_ > 1);
  }

  Task<int> wait() {
    bool kept = false;  // How it ends can be asked later.
    for (bool first = true;; first = false) {
      const std::optional<JobFacts> job = co_await look();
      if (!job && first) co_return no_such_job(options_.job);
      if (!job) co_return co_await gone();
      if (!line_) {
        const bool shown = options_.progress || isatty(STDOUT_FILENO) == 1;
        line_.emplace(session_, shown, ProgressLine::Unit::bytes);
      }
      line_->update(job->done, std::max<uint64_t>(job->total, 1));
      const std::optional<int> code = co_await consider(*job);
      if (code) co_return *code;
      kept = !job->auto_dismiss;
      if (kept) hang_up();
      co_await pause();
      if (stopped_) co_return Error(Errc::cancelled, "interrupted");
    }
  }

  Task<int> gone() {
    const std::string& id = options_.job;
    line_.reset();
    const std::vector<Json> events = client_ ? client_->take_events() : std::vector<Json>();
    std::optional<Result<void>> end = told_end(id, events);
    if (!end) {
      co_return Error(Errc::not_found, cat("job ", byre::quoted(id),
                                           " is gone, and how it ended cannot be asked any more: "
                                           "somebody else has dismissed it"));
    }
    co_await std::move(*end);
    const JobFacts job{.id = id, .status = "concluded"};
    co_return *told(job, cat("job ", byre::quoted(id), " is done\n"));
  }

  Session& session_;
  const Args args_;
  const WaitOptions options_;
  Client client_;
  qmp::Client* asked_ = nullptr;  ///< What waits for the daemon now.
  std::optional<ProgressLine> line_;
  Op pause_;
  int64_t pause_ns_ = kFirstPause;
  bool stopped_ = false;
  bool completed_ = false;
  unsigned held_looks_ = 0;  ///< So often it was paused, one after another.
  bool told_held_ = false;
  bool told_overtaken_ = false;
  bool told_blocking_ = false;
};

}  // namespace

Task<std::optional<JobFacts>> look_at_job(qmp::Client& client, std::string id) {
  const Json jobs = co_await ask(client, "query-jobs");
  const Json* const job = find_by(jobs, "id", id);
  if (!job) co_return std::optional<JobFacts>();
  JobFacts facts{.id = id,
                 .type = text_at(*job, "type"),
                 .status = text_at(*job, "status"),
                 .error = text_at(*job, "error"),
                 .done = number_at(*job, "current-progress"),
                 .total = number_at(*job, "total-progress"),
                 .verified = job->contains("x-byre-verified")
                                 ? std::optional(number_at(*job, "x-byre-verified"))
                                 : std::nullopt,
                 .completing = truth_at(*job, "x-byre-completing"),
                 .overtaken = truth_at(*job, "x-byre-overtaken"),
                 .went_blocking = truth_at(*job, "x-byre-went-write-blocking")};
  const Json block_jobs = co_await ask(client, "query-block-jobs");
  if (const Json* const more = find_by(block_jobs, "device", id)) {
    facts.auto_dismiss = truth_at(*more, "auto-dismiss");
    facts.auto_finalize = truth_at(*more, "auto-finalize");
    facts.io_status = text_at(*more, "io-status");
  }
  co_return std::optional<JobFacts>(std::move(facts));
}

Error no_such_job(const std::string& id) {
  return Error(Errc::not_found, cat("there is no job ", byre::quoted(id),
                                    "; `byre ctl jobs` shows those there are"));
}

std::string target_node_of(const std::string& job) { return cat(job, "-target"); }

Task<void> dismiss(qmp::Client& client, JobFacts job) {
  if (!job.auto_dismiss) (void)co_await ask(client, "job-dismiss", {{"id", job.id}});
  if (job.type != "backup" && job.error.empty()) co_return;
  const Json nodes = co_await ask(client, "query-named-block-nodes", {{"flat", true}});
  const std::string target = target_node_of(job.id);
  if (!find_by(nodes, "node-name", target)) co_return;
  (void)co_await ask(client, "blockdev-del", {{"node-name", target}})
      .doing("close the target of job ", byre::quoted(job.id));
}

Task<int> wait_for_job(Session& session, Args args, WaitOptions options) {
  Waiting waiting(session, std::move(args), std::move(options));
  co_return co_await waiting.run();
}

}  // namespace byre::ctl
