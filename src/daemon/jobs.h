// SPDX-License-Identifier: Apache-2.0
/// DaemonJobs: the jobs of a daemon: which nodes they hold, and what clients hear of them.
///
/// A node that a job holds says so in NamedNode::blockers, from the job's creation to its end; a
/// bitmap that it uses counts as used for as long.
/// Not here: what jobs do (job/live), commands (job_commands.cc).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "daemon/daemon.h"
#include "job/live/job_list.h"

namespace byre {

/// The others have no block-job-* commands and events.
inline bool is_block_job(const Job& job) { return job.kind() < JobKind::create; }

class DaemonJobs final : public NodeUser {
 public:
  explicit DaemonJobs(Daemon& daemon);
  ~DaemonJobs() = default;

  /// Errc::busy when something holds one of its nodes.  `bitmap`: of `node`, which it uses.
  Result<Job*> add(std::unique_ptr<JobWork> work, JobOptions options,
                   const std::shared_ptr<JobTransaction>& transaction, NamedNode* node = nullptr,
                   const std::string& bitmap = "");
  JobList& list() { return list_; }
  /// Cancels all, and waits.
  Task<void> end() override;

 private:
  /// A node may go before the job does: one that a stream no longer needs.
  struct HeldNode {
    NamedNode* named;
    std::weak_ptr<Node> node;
    bool is_there() const { return !node.expired(); }
  };
  struct Held {
    std::vector<HeldNode> nodes;
    std::string blocker;
    HeldNode bitmap_of{};
    std::string bitmap;
  };
  void hear(const Job& job, const JobEvent& event);
  void let_go(const std::string& id);

  Daemon& daemon_;
  JobList list_;
  std::map<std::string, Held> held_;
};

}  // namespace byre
