// SPDX-License-Identifier: Apache-2.0
#include "daemon/jobs.h"

#include <algorithm>
#include <utility>

namespace byre {

namespace {

/// What all events of a block job say.
qmp::Json facts_of(const Job& job) {
  return {{"type", name_of(job.kind())},
          {"device", job.id()},
          {"len", job.progress().total()},
          {"offset", job.progress().done()},
          {"speed", job.speed()}};
}

std::string_view name_of_action(OnError action) {
  return action == OnError::stop ? "stop" : action == OnError::ignore ? "ignore" : "report";
}

}  // namespace

DaemonJobs::DaemonJobs(Daemon& daemon) : daemon_(daemon), list_(daemon.reactor()) {
  list_.set_listener([this](const Job& job, const JobEvent& event) { hear(job, event); });
}

Result<Job*> DaemonJobs::add(std::unique_ptr<JobWork> work, JobOptions options,
                             const std::shared_ptr<JobTransaction>& transaction, NamedNode* node,
                             const std::string& bitmap) {
  Held held{.blocker = cat("block device is in use by block job: ", name_of(work->kind()))};
  for (const Node* used : JobList::held_by(*work)) {
    NamedNode* const named = daemon_.nodes().named(*used);
    if (!named) continue;
    if (Result<void> free = named->check_free(); !free) return std::move(free).error();
    held.nodes.push_back({named, named->device().node()->weak_from_this()});
  }
  const std::string id = options.id;
  Result<Job*> job = list_.add(std::move(work), std::move(options), transaction);
  if (!job) return job;
  for (const HeldNode& each : held.nodes) each.named->blockers.push_back(held.blocker);
  if (node && !bitmap.empty()) {
    ++node->bitmaps.users[bitmap];
    held.bitmap_of = {node, node->device().node()->weak_from_this()};
    held.bitmap = bitmap;
  }
  held_.emplace(id, std::move(held));
  return job;
}

void DaemonJobs::let_go(const std::string& id) {
  const auto found = held_.find(id);
  if (found == held_.end()) return;
  Held& held = found->second;
  for (const HeldNode& each : held.nodes) {
    if (!each.is_there()) continue;
    std::vector<std::string>& blockers = each.named->blockers;
    const auto blocker = std::ranges::find(blockers, held.blocker);
    if (blocker != blockers.end()) blockers.erase(blocker);
  }
  if (held.bitmap_of.is_there()) release_bitmap(*held.bitmap_of.named, held.bitmap);
  held_.erase(found);
}

void DaemonJobs::hear(const Job& job, const JobEvent& event) {
  using Kind = JobEvent::Kind;
  if (event.kind != Kind::status && !is_block_job(job)) return;
  qmp::Json data;
  switch (event.kind) {
    case Kind::status:
      if (job.status() >= JobStatus::concluded) let_go(job.id());
      daemon_.emit("JOB_STATUS_CHANGE", {{"status", name_of(job.status())}, {"id", job.id()}});
      break;
    case Kind::ready:
      daemon_.emit("BLOCK_JOB_READY", facts_of(job));
      break;
    case Kind::pending:
      daemon_.emit("BLOCK_JOB_PENDING", {{"type", name_of(job.kind())}, {"id", job.id()}});
      break;
    case Kind::completed:
      data = facts_of(job);
      if (job.error()) data["error"] = job.error().message();
      daemon_.emit("BLOCK_JOB_COMPLETED", std::move(data));
      break;
    case Kind::cancelled:
      daemon_.emit("BLOCK_JOB_CANCELLED", facts_of(job));
      break;
    case Kind::error:
      daemon_.emit("BLOCK_JOB_ERROR",
                   {{"device", job.id()},
                    {"operation", event.side == JobSide::source ? "read" : "write"},
                    {"action", name_of_action(event.action)}});
      break;
  }
}

Task<void> DaemonJobs::end() { co_await list_.close(); }

}  // namespace byre
