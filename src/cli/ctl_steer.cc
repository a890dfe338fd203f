// SPDX-License-Identifier: Apache-2.0
/// `byre ctl wait`, `pause`, `resume`, `cancel`, `complete`, `finalize`, `dismiss`, `speed`: what
/// is asked of a job that has begun.
#include <utility>

#include "base/option_text.h"
#include "cli/ctl_wait.h"

namespace byre::ctl {

namespace {

struct JobArgs : Args {
  std::string job;
};
template <class A>
Arguments job_operand() {
  return {operand("JOB", static_cast<std::string A::*>(&JobArgs::job), "which job"),
          socket_argument<A>()};
}

Task<int> pause(Session& session, JobArgs args) {
  co_return co_await do_one(session, args, "job-pause", {{"id", args.job}});
}
Task<int> resume(Session& session, JobArgs args) {
  co_return co_await do_one(session, args, "job-resume", {{"id", args.job}});
}
Task<int> complete(Session& session, JobArgs args) {
  co_return co_await do_one(session, args, "job-complete", {{"id", args.job}});
}
Task<int> finalize(Session& session, JobArgs args) {
  co_return co_await do_one(session, args, "job-finalize", {{"id", args.job}});
}

struct CancelArgs : JobArgs {
  bool force = false;
};
Task<int> cancel(Session& session, CancelArgs args) {
  Json arguments = {{"device", args.job}, {"force", args.force}};
  co_return co_await do_one(session, args, "block-job-cancel", std::move(arguments));
}

Task<int> dismiss_job(Session& session, JobArgs args) {
  const Client client = co_await connect(session, args);
  std::optional<JobFacts> job = co_await look_at_job(*client, args.job);
  if (!job) co_return no_such_job(args.job);
  job->auto_dismiss = false;  // Whoever asks for it wants to hear why it cannot be.
  co_await dismiss(*client, *std::move(job));
  co_return 0;
}

struct SpeedArgs : JobArgs {
  std::string speed;
};
Task<int> speed(Session& session, SpeedArgs args) {
  const uint64_t bytes = co_await parse_size_option(args.speed, "speed");
  Json arguments = {{"device", args.job}, {"speed", bytes}};
  co_return co_await do_one(session, args, "block-job-set-speed", std::move(arguments));
}

struct WaitArgs : JobArgs {
  bool pivot = false;
  bool progress = false;
};
Task<int> wait(Session& session, WaitArgs args) {
  WaitOptions options{.job = args.job, .complete = args.pivot, .progress = args.progress};
  co_return co_await wait_for_job(session, args, std::move(options));
}

}  // namespace

Definitions steer_commands() {
  static const Command<WaitArgs> kWait(
      {.name = "ctl wait",
       .summary = "Wait until a job has ended",
       .description =
           "The exit code tells how it ended, and a job that is kept until somebody looks is "
           "dismissed. A job that is ready or waits to be finalized is told of and left. Ctrl-C "
           "ends the waiting, and not the job.",
       .args = {job_operand<WaitArgs>(),
                flag("--pivot", &WaitArgs::pivot, "complete it once it is ready, and wait on"),
                flag("-p, --progress", &WaitArgs::progress,
                     "show how far it is also where stdout is no terminal")},
       .run = wait});
  static const Command<JobArgs> kPause(
      {.name = "ctl pause", .summary = "Hold a job", .args = job_operand<JobArgs>(), .run = pause});
  static const Command<JobArgs> kResume({.name = "ctl resume",
                                         .summary = "Let a job go on",
                                         .args = job_operand<JobArgs>(),
                                         .run = resume});
  static const Command<CancelArgs> kCancel(
      {.name = "ctl cancel",
       .summary = "End a job before its end",
       .description = "Its disks stay sound. A mirror that is ready leaves a complete copy.",
       .args = {job_operand<CancelArgs>(),
                flag("--force", &CancelArgs::force,
                     "also when it is paused; a mirror that is ready is broken off as well")},
       .run = cancel});
  static const Command<JobArgs> kComplete(
      {.name = "ctl complete",
       .summary = "End a job that is ready, and lead users to its target",
       .args = job_operand<JobArgs>(),
       .run = complete});
  static const Command<JobArgs> kFinalize({.name = "ctl finalize",
                                           .summary = "End a job that is pending",
                                           .args = job_operand<JobArgs>(),
                                           .run = finalize});
  static const Command<JobArgs> kDismiss(
      {.name = "ctl dismiss",
       .summary = "Forget a job that has ended",
       .description = "What 'byre ctl wait JOB' does in the end, without the result.",
       .args = job_operand<JobArgs>(),
       .run = dismiss_job});
  static const Command<SpeedArgs> kSpeed(
      {.name = "ctl speed",
       .summary = "Limit how much a job copies",
       .args = {operand("JOB", static_cast<std::string SpeedArgs::*>(&JobArgs::job), "which job"),
                operand("SPEED", &SpeedArgs::speed, "bytes a second, such as 50M; 0 is no limit"),
                socket_argument<SpeedArgs>()},
       .run = speed});
  return {&kWait, &kPause, &kResume, &kCancel, &kComplete, &kFinalize, &kDismiss, &kSpeed};
}

}  // namespace byre::ctl
