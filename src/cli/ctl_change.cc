// SPDX-License-Identifier: Apache-2.0
/// `byre ctl bitmap`, `export`, `close`, `qmp`: what one command of the monitor does.
#include <utility>

#include "base/option_text.h"
#include "cli/ctl.h"

namespace byre::ctl {

namespace {

// --- Bitmaps -------------------------------------------------------------------------------------

struct BitmapArgs : Args {
  std::string node;
  std::string name;
};
struct NewBitmapArgs : BitmapArgs {
  std::optional<uint64_t> granularity;
  bool transient = false;
  bool disabled = false;
};

template <class A>
Arguments bitmap_operands() {
  return {operand("NODE", static_cast<std::string A::*>(&BitmapArgs::node), "the node that has it"),
          operand("NAME", static_cast<std::string A::*>(&BitmapArgs::name), "the bitmap's name"),
          socket_argument<A>()};
}

Task<int> add_bitmap(Session& session, NewBitmapArgs args) {
  Json arguments = {{"node", args.node},
                    {"name", args.name},
                    {"persistent", !args.transient},
                    {"disabled", args.disabled}};
  if (args.granularity) arguments["granularity"] = *args.granularity;
  co_return co_await do_one(session, args, "block-dirty-bitmap-add", std::move(arguments));
}

Task<int> remove_bitmap(Session& session, BitmapArgs args) {
  Json arguments = {{"node", args.node}, {"name", args.name}};
  co_return co_await do_one(session, args, "block-dirty-bitmap-remove", std::move(arguments));
}

Task<int> clear_bitmap(Session& session, BitmapArgs args) {
  Json arguments = {{"node", args.node}, {"name", args.name}};
  co_return co_await do_one(session, args, "block-dirty-bitmap-clear", std::move(arguments));
}

// --- Exports -------------------------------------------------------------------------------------

struct ExportArgs : Args {
  std::string node;
  std::optional<std::string> id, name, description;
  std::vector<std::string> bitmaps;
  bool writable = false;
};

Task<int> add_export(Session& session, ExportArgs args) {
  const Client client = co_await connect(session, args);
  const std::string id = args.id.value_or(args.node);
  Json arguments = {{"type", "nbd"},
                    {"id", id},
                    {"node-name", args.node},
                    {"name", args.name.value_or(args.node)},
                    {"writable", args.writable}};
  if (args.description) arguments["description"] = *args.description;
  if (!args.bitmaps.empty()) arguments["bitmaps"] = args.bitmaps;
  Result<Json> added = co_await ask(*client, "block-export-add", std::move(arguments)).result();
  if (!added) {
    std::string why = added.error().message();
    if (why.find("server not running") != std::string::npos) {
      why +=
          "; start it by the option --nbd-server of `byre daemon`, or by the command "
          "nbd-server-start";
    }
    co_return Error(added.error().code(), std::move(why));
  }
  if (session.json()) {
    print_json(session, {{"id", id}});
  } else {
    session.print(cat("export ", byre::quoted(id), " serves node ", byre::quoted(args.node), "\n"));
  }
  co_return 0;
}

struct ExportRemoveArgs : Args {
  std::string id;
  bool hard = false;
};

Task<int> remove_export(Session& session, ExportRemoveArgs args) {
  Json arguments = {{"id", args.id}, {"mode", args.hard ? "hard" : "safe"}};
  co_return co_await do_one(session, args, "block-export-del", std::move(arguments));
}

// --- Nodes, and all else -------------------------------------------------------------------------

struct NodeArgs : Args {
  std::string node;
};

Task<int> close_node(Session& session, NodeArgs args) {
  Json arguments = {{"node-name", args.node}};
  co_return co_await do_one(session, args, "blockdev-del", std::move(arguments));
}

struct QmpArgs : Args {
  std::string request;
};

/// What the user wrote, checked as far as the daemon's own reading would be of no help.
Result<Json> request_of(const std::string& text) {
  std::string problem;
  Json request = qmp::parse_json(text, {}, problem);
  if (!problem.empty()) return invalid(problem, ": ", byre::quoted(text));
  if (!request.is_object() || text_at(request, "execute").empty()) {
    return invalid(
        "a request is an object such as {\"execute\": \"query-status\", "
        "\"arguments\": {}}, not ",
        byre::quoted(text));
  }
  for (const auto& [key, value] : request.items()) {
    if (key == "execute" || key == "id") continue;
    if (key != "arguments") return invalid("a request has no member ", byre::quoted(key));
    if (!value.is_object()) return invalid("'arguments' of a request is an object");
  }
  return request;
}

Task<int> raw_request(Session& session, QmpArgs args) {
  Json request = co_await request_of(args.request);
  const Client client = co_await connect(session, args);
  Json arguments = request.value("arguments", Json::object());
  print_json(session, co_await ask(*client, text_at(request, "execute"), std::move(arguments)));
  co_return 0;
}

}  // namespace

Definitions change_commands() {
  static const Command<NewBitmapArgs> kBitmapAdd(
      {.name = "ctl bitmap add",
       .summary = "Make a bitmap, which records what is written to a node",
       .args = {bitmap_operands<NewBitmapArgs>(),
                size_option("-g, --granularity", "SIZE", &NewBitmapArgs::granularity, "granularity",
                            "bytes that one bit stands for, a power of two"),
                flag("--transient", &NewBitmapArgs::transient,
                     "only in the daemon's memory; without it the image keeps the bitmap"),
                flag("--disabled", &NewBitmapArgs::disabled, "it records nothing yet")},
       .run = add_bitmap});
  static const Command<BitmapArgs> kBitmapRemove({.name = "ctl bitmap remove",
                                                  .summary = "Delete a bitmap of a node",
                                                  .args = bitmap_operands<BitmapArgs>(),
                                                  .run = remove_bitmap});
  static const Command<BitmapArgs> kBitmapClear(
      {.name = "ctl bitmap clear",
       .summary = "Forget what a bitmap of a node has recorded",
       .args = bitmap_operands<BitmapArgs>(),
       .run = clear_bitmap});
  static const Command<ExportArgs> kExportAdd(
      {.name = "ctl export add",
       .summary = "Let NBD clients use a node",
       .args = {operand("NODE", &ExportArgs::node, "what is exported"),
                option("--id", "ID", &ExportArgs::id,
                       "what the daemon calls the export; the node's name without it"),
                option("-x, --name", "NAME", &ExportArgs::name,
                       "what clients ask for; the node's name without it"),
                option("-D, --description", "TEXT", &ExportArgs::description,
                       "for people who list exports"),
                flag("-w, --writable", &ExportArgs::writable, "let clients write"),
                option(
                    "-B, --bitmap", "NAME", &ExportArgs::bitmaps,
                    "let clients see what this bitmap of the node has recorded; may be repeated"),
                socket_argument<ExportArgs>()},
       .run = add_export});
  static const Command<ExportRemoveArgs> kExportRemove(
      {.name = "ctl export remove",
       .summary = "End an export",
       .args = {operand("ID", &ExportRemoveArgs::id, "which export"),
                flag("--hard", &ExportRemoveArgs::hard,
                     "end the connections of its clients; without it, an export that has some "
                     "stays"),
                socket_argument<ExportRemoveArgs>()},
       .run = remove_export});
  static const Command<NodeArgs> kClose(
      {.name = "ctl close",
       .summary = "Close a node that nothing uses",
       .args = {operand("NODE", &NodeArgs::node, "which node"), socket_argument<NodeArgs>()},
       .run = close_node});
  static const Command<QmpArgs> kQmp(
      {.name = "ctl qmp",
       .summary = "Send one command as it is, and print what it returns",
       .args = {operand("JSON", &QmpArgs::request,
                        "such as '{\"execute\": \"query-block-jobs\"}'; `byre daemon "
                        "--list-commands` tells what there is"),
                socket_argument<QmpArgs>()},
       .run = raw_request});
  return {&kBitmapAdd, &kBitmapRemove, &kBitmapClear, &kExportAdd, &kExportRemove, &kClose, &kQmp};
}

}  // namespace byre::ctl
