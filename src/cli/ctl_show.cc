// SPDX-License-Identifier: Apache-2.0
/// `byre ctl nodes`, `exports`, `jobs`, `bitmap list`: what a daemon has.
#include <fmt/core.h>

#include <utility>

#include "cli/ctl.h"
#include "cli/text.h"

namespace byre::ctl {

namespace {

using Rows = std::vector<std::vector<std::string>>;

/// JSON is the daemon's own; people get a table of it.
void show(Session& session, const Json& all, const Rows& rows) {
  if (session.json()) {
    print_json(session, all);
  } else {
    session.print(table(rows));
  }
}

Task<int> nodes(Session& session, Args args) {
  const Client client = co_await connect(session, std::move(args));
  const Json all = co_await ask(*client, "query-named-block-nodes", {{"flat", true}});
  Rows rows = {{"NODE", "DRIVER", "SIZE", "ACCESS", "FILE"}};
  for (const Json& node : all) {
    const uint64_t size = node.contains("image") ? number_at(node["image"], "virtual-size") : 0;
    rows.push_back({text_at(node, "node-name"), text_at(node, "drv"), size_text(size),
                    truth_at(node, "ro") ? "read" : "write", text_at(node, "file")});
  }
  show(session, all, rows);
  co_return 0;
}

Task<int> exports(Session& session, Args args) {
  const Client client = co_await connect(session, std::move(args));
  const Json all = co_await ask(*client, "query-block-exports");
  Rows rows = {{"EXPORT", "TYPE", "NODE", "STATE"}};
  for (const Json& one : all) {
    rows.push_back({text_at(one, "id"), text_at(one, "type"), text_at(one, "node-name"),
                    truth_at(one, "shutting-down") ? "ending" : "serving"});
  }
  show(session, all, rows);
  co_return 0;
}

/// What is to be said of a job beside its state.
std::string note_on(const Json& job) {
  std::string note;
  if (truth_at(job, "x-byre-overtaken")) note = "guests write faster than it copies";
  if (truth_at(job, "x-byre-went-write-blocking")) note = "guests write to both disks";
  if (!job.contains("x-byre-verified")) return note;
  if (!note.empty()) note += ", ";
  return cat(note, size_text(number_at(job, "x-byre-verified")), " verified");
}

std::string done_text(const Json& job) {
  const uint64_t done = number_at(job, "current-progress");
  const uint64_t total = number_at(job, "total-progress");
  const double part = total == 0 ? 0 : static_cast<double>(done) / static_cast<double>(total);
  return cat(size_text(done), " of ", size_text(total), fmt::format(" ({:.0f} %)", 100 * part));
}

Task<int> jobs(Session& session, Args args) {
  const Client client = co_await connect(session, std::move(args));
  Json all = co_await ask(*client, "query-jobs");
  const Json details = co_await ask(*client, "query-block-jobs");
  Rows rows = {{"JOB", "TYPE", "STATE", "DONE", "LIMIT", "ERROR", "NOTE"}};
  for (Json& job : all) {
    // Both lists tell a part.
    const Json* const more = find_by(details, "device", text_at(job, "id"));
    if (more && job.is_object()) job.insert(more->begin(), more->end());
    const uint64_t speed = number_at(job, "speed");
    rows.push_back({text_at(job, "id"), text_at(job, "type"), text_at(job, "status"),
                    done_text(job), speed == 0 ? "none" : cat(size_text(speed), "/s"),
                    text_at(job, "error"), note_on(job)});
  }
  show(session, all, rows);
  co_return 0;
}

struct ListArgs : Args {
  std::optional<std::string> node;
};

Task<int> bitmaps(Session& session, ListArgs args) {
  const Client client = co_await connect(session, args);
  const Json nodes = co_await ask(*client, "query-named-block-nodes", {{"flat", true}});
  if (args.node && !find_by(nodes, "node-name", *args.node)) {
    co_return Error(Errc::not_found, cat("there is no node ", byre::quoted(*args.node),
                                         "; `byre ctl nodes` shows those there are"));
  }
  Json all = Json::array();
  Rows rows = {{"NODE", "BITMAP", "BIT", "DIRTY", "STATE", "KEPT"}};
  for (const Json& node : nodes) {
    const std::string name = text_at(node, "node-name");
    if ((args.node && name != *args.node) || !node.contains("dirty-bitmaps")) continue;
    for (const Json& bitmap : node["dirty-bitmaps"]) {
      if (!bitmap.is_object()) continue;
      Json one = bitmap;
      one["node"] = name;
      const std::string state = truth_at(bitmap, "inconsistent") ? "inconsistent"
                                : truth_at(bitmap, "busy")       ? "busy"
                                : truth_at(bitmap, "recording")  ? "recording"
                                                                 : "disabled";
      rows.push_back({name, text_at(bitmap, "name"), size_text(number_at(bitmap, "granularity")),
                      size_text(number_at(bitmap, "count")), state,
                      truth_at(bitmap, "persistent") ? "in the image" : "in memory"});
      all.push_back(std::move(one));
    }
  }
  show(session, all, rows);
  co_return 0;
}

}  // namespace

Definitions show_commands() {
  static const Command<Args> kNodes({.name = "ctl nodes",
                                     .summary = "List the nodes of a daemon",
                                     .args = {socket_argument<Args>()},
                                     .run = nodes});
  static const Command<Args> kExports({.name = "ctl exports",
                                       .summary = "List the exports of a daemon",
                                       .args = {socket_argument<Args>()},
                                       .run = exports});
  static const Command<Args> kJobs({.name = "ctl jobs",
                                    .summary = "List the jobs of a daemon",
                                    .args = {socket_argument<Args>()},
                                    .run = jobs});
  static const Command<ListArgs> kBitmaps(
      {.name = "ctl bitmap list",
       .summary = "List the bitmaps of a daemon's nodes",
       .args = {optional_operand("NODE", &ListArgs::node, "only those of this node"),
                socket_argument<ListArgs>()},
       .run = bitmaps});
  return {&kNodes, &kExports, &kJobs, &kBitmaps};
}

}  // namespace byre::ctl
