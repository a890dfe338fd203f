// SPDX-License-Identifier: Apache-2.0
#include "cli/ctl_target.h"

#include <unistd.h>

#include <filesystem>
#include <utility>

#include "cli/ctl_wait.h"
#include "cli/new_disk.h"

namespace byre::ctl {

namespace {

Error no_such_node(const std::string& name) {
  return Error(Errc::not_found, cat("there is no node ", byre::quoted(name),
                                    "; `byre ctl nodes` shows those there are"));
}

/// The node below `node` in its chain; empty: there is none.
Task<std::string> backing_node_of(qmp::Client& client, std::string node) {
  const Json graph = co_await ask(client, "x-debug-query-block-graph");
  const auto nodes = graph.find("nodes");
  const auto edges = graph.find("edges");
  if (nodes == graph.end() || edges == graph.end()) co_return std::string();
  const Json* at = find_by(*nodes, "name", node);
  // Filters lie above the image.
  for (size_t steps = 0; at && steps <= nodes->size(); ++steps) {
    const uint64_t id = number_at(*at, "id");
    const Json* below = nullptr;
    for (const Json& edge : *edges) {
      if (number_at(edge, "parent") != id) continue;
      const std::string role = text_at(edge, "name");
      if (role != "backing" && (below || role != "file")) continue;
      below = &edge;
      if (role == "backing") break;
    }
    if (!below) co_return std::string();
    at = nullptr;
    for (const Json& one : *nodes) {
      if (number_at(one, "id") == number_at(*below, "child")) at = &one;
    }
    if (at && text_at(*below, "name") == "backing") co_return text_at(*at, "name");
  }
  co_return std::string();
}

/// For a target that gets the top image only, the one below it is the source's as well.
Result<void> set_backing(NewDisk& disk, const Json& image) {
  const std::string name = text_at(image, "full-backing-filename");
  const std::string format = text_at(image, "backing-filename-format");
  if (!name.starts_with('/') || format.empty()) {
    return unsupported("the header of ", byre::quoted(text_at(image, "filename")),
                       " does not tell the absolute name and the format of its backing file, so "
                       "no image can be made that has the same: make it with `byre create`, add "
                       "it to the daemon, and give the name of that node as the target");
  }
  disk.backing_file = name;
  disk.backing_format = format;
  return {};
}

}  // namespace

Task<Target> take_target(Session& session, qmp::Client& client, TargetWanted wanted) {
  const Json nodes = co_await ask(client, "query-named-block-nodes", {{"flat", true}});
  const Json* const source = find_by(nodes, "node-name", wanted.source);
  if (!source) co_return no_such_node(wanted.source);
  if (find_by(nodes, "node-name", wanted.word)) co_return Target{.node = wanted.word};
  if (wanted.word.find_first_of("/.") == std::string::npos) {
    Error error = no_such_node(wanted.word);
    co_return Error(error.code(),
                    cat(error.message(), " (a file is meant by ./", wanted.word, ")"));
  }
  if (wanted.sync == "none") {
    co_return unsupported(
        "with --sync none the target needs the source below it: make it with `byre create`, add it "
        "to the daemon with the source as its backing, and give the name of that node");
  }
  const std::string node = target_node_of(wanted.job);
  if (find_by(nodes, "node-name", node)) {
    co_return Error(Errc::exists,
                    cat("node ", byre::quoted(node), " of an earlier job is still there; ",
                        "'byre ctl close ", node, "' closes it, or give another name by --job"));
  }
  const Json image = source->contains("image") ? (*source)["image"] : Json::object();
  NewDisk disk{.format = DiskFormat::qcow2, .size = number_at(image, "virtual-size")};
  Json options = {{"driver", "qcow2"}, {"node-name", node}};
  if (wanted.sync == "top") {
    const std::string below = co_await backing_node_of(client, wanted.source);
    if (!below.empty()) {
      co_await set_backing(disk, image);
      options["backing"] = below;
    }
  }
  std::error_code failure;
  const std::string path = std::filesystem::absolute(wanted.word, failure).string();
  if (failure) co_return errno_error(failure.value(), "find the current folder");
  const bool existed = access(path.c_str(), F_OK) == 0;
  if (!wanted.force) co_await refuse_existing(path);
  SystemGate opener(session.reactor(), OpenPolicy::any_file);
  co_await make_disk(session, opener, path, std::move(disk), {.replace = wanted.force});

  Target target{.node = node, .file = path, .existed = existed};
  options["file"] = {{"driver", "file"}, {"filename", path}};
  Result<Json> opened = co_await ask(client, "blockdev-add", std::move(options)).result();
  if (!opened) {
    if (!existed) unlink(path.c_str());
    co_return std::move(opened).error().while_doing(
        cat("the daemon cannot use ", byre::quoted(path), ", which was made for it"));
  }
  co_return std::move(target);
}

Task<void> take_back(qmp::Client& client, Target target) {
  if (target.file.empty()) co_return;
  (void)co_await ask(client, "blockdev-del", {{"node-name", target.node}}).result();
  if (!target.existed) unlink(target.file.c_str());
}

}  // namespace byre::ctl
