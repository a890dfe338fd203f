// SPDX-License-Identifier: Apache-2.0
/// `byre ctl commit`, `stream`, `mirror`, `backup`: begin a job, and wait for it if that is wanted.
///
/// A job that begins here is kept by the daemon when it has ended, until `byre ctl wait` or
/// `dismiss`: so its result is never lost.
#include <utility>

#include "base/option_text.h"
#include "cli/ctl_target.h"
#include "cli/ctl_wait.h"

namespace byre::ctl {

namespace {

struct StartArgs : Args {
  std::string node;
  std::optional<std::string> job;
  std::optional<uint64_t> speed;
  bool wait = false;
  bool progress = false;
};

template <class A>
Arguments start_arguments() {
  return {
      option("--job", "ID", static_cast<std::optional<std::string> A::*>(&StartArgs::job),
             "the name of the job; what it does and the node's name without it"),
      size_option("--speed", "SPEED", static_cast<std::optional<uint64_t> A::*>(&StartArgs::speed),
                  "speed", "bytes a second, such as 50M; no limit without it"),
      flag("--wait", static_cast<bool A::*>(&StartArgs::wait),
           "wait until it has ended; the exit code tells how"),
      flag("-p, --progress", static_cast<bool A::*>(&StartArgs::progress),
           "with --wait, show how far it is also where stdout is no terminal"),
      socket_argument<A>()};
}

constexpr std::string_view kConverge =
    "when guests write faster than it copies: report (the default): 'byre ctl jobs' and 'wait' say "
    "so; auto: guests write to both disks from then on, at the speed of the slower one";

constexpr std::string_view kOnError =
    "report (the default): the job fails; ignore: it tries again later; stop: it pauses until "
    "'byre ctl resume'; enospc: stop for a full disk, else report";

std::string id_of(const StartArgs& args, std::string_view kind) {
  return args.job.value_or(cat(kind, "-", args.node));
}

Json job_arguments(const StartArgs& args, const std::string& id) {
  Json arguments = {{"device", args.node}, {"job-id", id}, {"auto-dismiss", false}};
  if (args.speed) arguments["speed"] = *args.speed;
  return arguments;
}

void set(Json& arguments, const char* key, const std::optional<std::string>& value) {
  if (value) arguments[key] = *value;
}

/// Says that it has begun, or waits for it.
Task<int> follow(Session& session, StartArgs args, Target target, WaitOptions options) {
  if (args.wait) co_return co_await wait_for_job(session, args, std::move(options));
  if (session.json()) {
    Json begun = {{"job", options.job}};
    if (!target.node.empty()) begun["target"] = target.node;
    if (!target.file.empty()) begun["file"] = target.file;
    print_json(session, begun);
  } else {
    session.print(cat("job ", byre::quoted(options.job), " has begun; 'byre ctl wait ", options.job,
                      "' waits for it\n"));
  }
  co_return 0;
}

/// A refusal to begin: what to do where the name is taken.
Error advised(Error error, const std::string& id) {
  if (error.message().find("already in use") == std::string::npos ||
      error.message().find(id) == std::string::npos) {
    return error;
  }
  return Error(error.code(),
               cat(error.message(), "; 'byre ctl dismiss ", id,
                   "' forgets one that has ended, and --job gives this one another name"));
}

Result<void> check_progress(const StartArgs& args) {
  if (args.progress && !args.wait) return invalid("--progress goes with --wait");
  return {};
}

// --- Into the chain ------------------------------------------------------------------------------

struct CommitArgs : StartArgs {
  std::optional<std::string> base, top, on_error, converge;
  bool no_pivot = false;
};

Task<int> commit(Session& session, CommitArgs args) {
  co_await check_progress(args);
  if (args.no_pivot && !args.wait) co_return invalid("--no-pivot goes with --wait");
  const std::string id = id_of(args, "commit");
  Json arguments = job_arguments(args, id);
  set(arguments, "base-node", args.base);
  set(arguments, "top-node", args.top);
  set(arguments, "on-error", args.on_error);
  set(arguments, "x-byre-converge", args.converge);
  {
    const Client client = co_await connect(session, args);
    Result<Json> begun = co_await ask(*client, "block-commit", std::move(arguments)).result();
    if (!begun) co_return advised(std::move(begun).error(), id);
  }
  WaitOptions options{.job = id, .complete = !args.no_pivot, .progress = args.progress};
  co_return co_await follow(session, args, Target(), std::move(options));
}

struct StreamArgs : StartArgs {
  std::optional<std::string> base, on_error;
};

Task<int> stream(Session& session, StreamArgs args) {
  co_await check_progress(args);
  const std::string id = id_of(args, "stream");
  Json arguments = job_arguments(args, id);
  set(arguments, "base-node", args.base);
  set(arguments, "on-error", args.on_error);
  {
    const Client client = co_await connect(session, args);
    Result<Json> begun = co_await ask(*client, "block-stream", std::move(arguments)).result();
    if (!begun) co_return advised(std::move(begun).error(), id);
  }
  WaitOptions options{.job = id, .progress = args.progress};
  co_return co_await follow(session, args, Target(), std::move(options));
}

// --- To a target ---------------------------------------------------------------------------------

struct CopyArgs : StartArgs {
  std::string target;
  std::optional<std::string> sync, on_source_error, on_target_error;
  bool force = false;
  bool verify = false;
};

template <class A>
Arguments copy_arguments(std::string_view sync_help) {
  using Text = std::optional<std::string> A::*;
  return {
      operand("NODE", static_cast<std::string A::*>(&StartArgs::node), "what is copied"),
      operand("TARGET", static_cast<std::string A::*>(&CopyArgs::target),
              "a node of the daemon; or the name of a file, with a slash or a dot in it: a "
              "qcow2 image that is made here, and that the daemon must be able to open"),
      option("--sync", "WHAT", static_cast<Text>(&CopyArgs::sync), sync_help),
      option("--on-source-error", "ACTION", static_cast<Text>(&CopyArgs::on_source_error),
             kOnError),
      option("--on-target-error", "ACTION", static_cast<Text>(&CopyArgs::on_target_error),
             "the same where the target fails"),
      flag("--force", static_cast<bool A::*>(&CopyArgs::force), "overwrite a file that is there"),
      flag("--verify", static_cast<bool A::*>(&CopyArgs::verify),
           "read the target back and compare it with what was read from the disk; the job fails "
           "where they differ")};
}

Task<int> copy(Session& session, CopyArgs args, std::string command, Json arguments,
               WaitOptions options) {
  const std::string sync = args.sync.value_or("full");
  Target target;
  {
    const Client client = co_await connect(session, args);
    // Before a file is made.
    if (co_await look_at_job(*client, options.job)) {
      co_return advised(invalid("Job ID '", options.job, "' already in use"), options.job);
    }
    target = co_await take_target(session, *client,
                                  {.word = args.target,
                                   .source = args.node,
                                   .job = options.job,
                                   .sync = sync,
                                   .force = args.force});
    if (args.force && target.file.empty()) {
      co_return invalid("--force is for a file; ", byre::quoted(args.target), " is a node");
    }
    arguments["target"] = target.node;
    arguments["sync"] = sync;
    if (args.verify) arguments["x-byre-verify"] = true;
    set(arguments, "on-source-error", args.on_source_error);
    set(arguments, "on-target-error", args.on_target_error);
    Result<Json> begun = co_await ask(*client, std::move(command), std::move(arguments)).result();
    if (!begun) {
      co_await take_back(*client, target);
      co_return advised(std::move(begun).error(), options.job);
    }
  }
  co_return co_await follow(session, args, std::move(target), std::move(options));
}

struct MirrorArgs : CopyArgs {
  std::optional<std::string> copy_mode, converge;
  bool pivot = false;
};

Task<int> mirror(Session& session, MirrorArgs args) {
  co_await check_progress(args);
  if (args.pivot && !args.wait) co_return invalid("--pivot goes with --wait");
  const std::string id = id_of(args, "mirror");
  Json arguments = job_arguments(args, id);
  set(arguments, "copy-mode", args.copy_mode);
  set(arguments, "x-byre-converge", args.converge);
  WaitOptions options{.job = id, .complete = args.pivot, .progress = args.progress};
  co_return co_await copy(session, args, "blockdev-mirror", std::move(arguments),
                          std::move(options));
}

struct BackupArgs : CopyArgs {
  std::optional<std::string> bitmap, bitmap_mode, on_cbw_error, cbw_timeout;
  bool compress = false;
};

Task<int> backup(Session& session, BackupArgs args) {
  co_await check_progress(args);
  const std::string id = id_of(args, "backup");
  Json arguments = job_arguments(args, id);
  set(arguments, "bitmap", args.bitmap);
  set(arguments, "bitmap-mode", args.bitmap_mode);
  set(arguments, "x-byre-on-cbw-error", args.on_cbw_error);
  if (args.cbw_timeout) {
    const Result<uint64_t> seconds = parse_number(*args.cbw_timeout, 0, UINT32_MAX);
    if (!seconds) {
      co_return invalid("Invalid --cbw-timeout: ", byre::quoted(*args.cbw_timeout),
                        " (seconds; 0: any time)");
    }
    arguments["x-byre-cbw-timeout"] = *seconds;
  }
  if (args.compress) arguments["compress"] = true;
  if (args.bitmap && !args.sync) args.sync = args.bitmap_mode ? "bitmap" : "incremental";
  WaitOptions options{.job = id, .progress = args.progress};
  co_return co_await copy(session, args, "blockdev-backup", std::move(arguments),
                          std::move(options));
}

}  // namespace

Definitions start_commands() {
  static const Command<CommitArgs> kCommit(
      {.name = "ctl commit",
       .summary = "Move what a disk in use has into one below it",
       .description =
           "Without --top it is the disk itself that is committed: its users are led to the base "
           "in the end, which --wait does once all is copied. The images between are then needed "
           "no more.",
       .args = {operand("NODE", static_cast<std::string CommitArgs::*>(&StartArgs::node),
                        "the disk in whose chain it happens"),
                option("--base", "NODE", &CommitArgs::base,
                       "what is committed into; the lowest of the chain without it"),
                option("--top", "NODE", &CommitArgs::top,
                       "the uppermost of those that are committed; the disk itself without it"),
                option("--on-error", "ACTION", &CommitArgs::on_error, kOnError),
                option("--converge", "HOW", &CommitArgs::converge, kConverge),
                flag("--no-pivot", &CommitArgs::no_pivot,
                     "with --wait: leave the job when it is ready, and its users where they are"),
                start_arguments<CommitArgs>()},
       .run = commit});
  static const Command<StreamArgs> kStream(
      {.name = "ctl stream",
       .summary = "Fill an image in use with what lies below it",
       .args = {operand("NODE", static_cast<std::string StreamArgs::*>(&StartArgs::node),
                        "the image that is filled"),
                option("--base", "NODE", &StreamArgs::base,
                       "what stays below it; nothing without it"),
                option("--on-error", "ACTION", &StreamArgs::on_error, kOnError),
                start_arguments<StreamArgs>()},
       .run = stream});
  static const Command<MirrorArgs> kMirror(
      {.name = "ctl mirror",
       .summary = "Copy a disk in use, and keep the copy alike",
       .description =
           "Once both are alike the job is ready: 'byre ctl complete' leads the users of the "
           "disk to the copy, 'byre ctl cancel' leaves the copy as it is then.",
       .args = {copy_arguments<MirrorArgs>(
                    "full (the default): all; top: only the top image; none: "
                    "only what is written from now on"),
                option("--copy-mode", "MODE", &MirrorArgs::copy_mode,
                       "background (the default); write-blocking: what is written goes to both at "
                       "once"),
                option("--converge", "HOW", &MirrorArgs::converge, kConverge),
                flag("--pivot", &MirrorArgs::pivot, "with --wait: complete it once it is ready"),
                start_arguments<MirrorArgs>()},
       .run = mirror});
  static const Command<BackupArgs> kBackup(
      {.name = "ctl backup",
       .summary = "Copy a disk in use as it is at this moment",
       .args = {copy_arguments<BackupArgs>(
                    "full (the default): all; top: only the top image; incremental, bitmap: what "
                    "--bitmap has; none: only what is about to be overwritten"),
                option("-B, --bitmap", "NAME", &BackupArgs::bitmap,
                       "copy what this bitmap of the node has recorded (--sync incremental)"),
                option("--bitmap-mode", "MODE", &BackupArgs::bitmap_mode,
                       "when the bitmap begins anew: on-success, never or always (--sync bitmap)"),
                flag("--compress", &BackupArgs::compress, "write compressed clusters"),
                option("--on-cbw-error", "WHAT", &BackupArgs::on_cbw_error,
                       "when what a guest is about to change cannot be copied first: "
                       "break-snapshot (the default): the backup fails, and the guest goes on; "
                       "break-guest-write: the guest's request fails"),
                option("--cbw-timeout", "SECONDS", &BackupArgs::cbw_timeout,
                       "how long such a copy may hold up a guest: 30 is the default; 0: as "
                       "long as it takes"),
                start_arguments<BackupArgs>()},
       .run = backup});
  return {&kCommit, &kStream, &kMirror, &kBackup};
}

}  // namespace byre::ctl
