// SPDX-License-Identifier: Apache-2.0
/// Waiting for a job of a daemon, with a line that shows how far it is.
///
///   1. The daemon is asked again and again, at most twice a second; between two looks nothing is
///      connected, so that other clients are heard.  A job that nobody keeps when it has ended
///      (auto-dismiss) is watched over one connection, or how it ended would be lost.
///   2. A job that is ready is completed, or left as it is: then the waiting has an end, too.
///   3. A job that has concluded is dismissed, and its error becomes that of the command.
/// Ctrl-C ends the waiting; the job goes on, and that is said.
/// Not here: what begins a job (ctl_start.cc).
#pragma once

#include <optional>
#include <string>

#include "cli/ctl.h"

namespace byre::ctl {

/// A job, as the daemon tells of it.
struct JobFacts {
  std::string id, type, status, error, io_status;
  uint64_t done = 0, total = 0;
  std::optional<uint64_t> verified;  ///< Bytes.
  bool auto_dismiss = false;
  bool auto_finalize = true;
  bool completing = false;     ///< It is ready, and was asked to complete.
  bool overtaken = false;      ///< Guests write faster than it copies.
  bool went_blocking = false;  ///< And write to both disks because of that.

  bool is_over() const { return status == "concluded"; }
  /// And waits to be asked to complete.
  bool is_ready() const { return status == "ready" && !completing; }
};
/// nullopt: there is none of that name.
Task<std::optional<JobFacts>> look_at_job(qmp::Client& client, std::string id);
Error no_such_job(const std::string& id);

/// The name of the node that was made for the target of a job.
std::string target_node_of(const std::string& job);

/// Dismisses a job that has concluded, and closes the node that was made for its target where
/// nothing can need it any more: after a backup, and after any job that has failed.
Task<void> dismiss(qmp::Client& client, JobFacts job);

struct WaitOptions {
  std::string job;
  bool complete = false;  ///< Once it is ready.
  bool progress = false;  ///< Also where stdout is no terminal.
};
/// The exit code; a job that has failed is an error.
Task<int> wait_for_job(Session& session, Args args, WaitOptions options);

}  // namespace byre::ctl
