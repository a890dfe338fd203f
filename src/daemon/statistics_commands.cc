// SPDX-License-Identifier: Apache-2.0
/// What was asked of nodes so far, and who is told when they fill up.
///
/// Requests are those of the clients of the exports that lead to a node now: an export that a job
/// leads to another node takes its numbers along, and they go with the export.  The highest offset
/// that was written is known of files, whoever writes, and of what clients write.
/// Not here: who counts (export/export_counts.h, block/raw.h), metrics (metrics_page.h).
#include <algorithm>

#include "block/raw.h"
#include "daemon/daemon.h"
#include "daemon/modules.h"

namespace byre::qmp {

namespace {

// --- query-blockstats ----------------------------------------------------------------------------

struct QueryStatistics {
  bool query_nodes = false;
};
const Struct& definition_of(const QueryStatistics*) {
  static const Struct kStruct({with_default("query-nodes", &QueryStatistics::query_nodes,
                                            "of nodes; of drives of a machine there are none")});
  return kStruct;
}

/// The file whose bytes are the node's own, one to one; null: there is none.
const RawDevice* file_of(const Device& device) {
  for (const Device* at = &device; at;) {
    if (const auto* const raw = dynamic_cast<const RawDevice*>(at)) return raw;
    const auto down = std::ranges::find(at->children(), Role::filtered, &Child::role);
    at = down == at->children().end() ? nullptr : (*down)->get();
  }
  return nullptr;
}

/// Where the node's bytes lie, when that is another node.
Node* storage_of(const Device& device, Nodes& nodes) {
  for (const Child* edge : device.children()) {
    if (edge->role() == Role::backing || edge->role() == Role::data) continue;
    return is_shown(edge->node(), nodes) ? &edge->node() : storage_of(**edge, nodes);
  }
  return nullptr;
}

void add_kind(Json& out, const std::string& name, const nbd::ExportCounts::Kind& kind) {
  out[name + "_bytes"] = kind.bytes;
  out[name + "_operations"] = kind.done;
  out["failed_" + name + "_operations"] = kind.failed;
}

/// Everything that QEMU's schema demands; what has no meaning here is 0.
Json numbers_of(const nbd::ExportCounts& counts, uint64_t written_end) {
  Json out = {{"wr_highest_offset", std::max(written_end, counts.written_end)},
              {"account_invalid", false},
              {"account_failed", false},
              {"timed_stats", Json::array()}};
  for (const char* kind : {"rd", "wr", "unmap", "zone_append"}) {
    const std::string name = kind;
    add_kind(out, name, {});
    out[name + "_merged"] = 0;
  }
  for (const char* kind : {"rd", "wr", "flush", "unmap", "zone_append"}) {
    out[cat(kind, "_total_time_ns")] = 0;
    out[cat("invalid_", kind, "_operations")] = 0;
  }
  add_kind(out, "rd", counts.reads);
  add_kind(out, "wr", counts.writes);
  add_kind(out, "unmap", counts.trims);
  out["flush_operations"] = counts.flushes.done;
  out["failed_flush_operations"] = counts.flushes.failed;
  return out;
}

Json describe(const Node& node, Nodes& nodes, const BlockExports& exports) {
  const NamedNode* const named = nodes.named(node);
  const RawDevice* const file = file_of(node.device());
  Json out = {{"node-name", node.name()},
              {"stats", numbers_of(named ? exports.counts_of(named->name) : nbd::ExportCounts(),
                                   file ? file->counts().written_end : 0)}};
  if (const Node* const below = storage_of(node.device(), nodes)) {
    out["parent"] = describe(*below, nodes, exports);
  } else if (file) {
    out["driver-specific"] = {{"driver", named && named->driver ? named->driver->name : "file"},
                              {"discard-nb-ok", file->counts().discards},
                              {"discard-nb-failed", file->counts().discards_failed},
                              {"discard-bytes-ok", file->counts().bytes_discarded}};
  }
  return out;
}

const Type& list_of_statistics() {
  static const Struct kNode(
      {result_field<std::string>("node-name", "which", true),
       result_field<Json>("stats", "how much clients of exports have asked; times are 0"),
       result_field<Json>("driver-specific", "of files: what discards gave back", true),
       result_field<Json>("parent", "the same of the file below", true)});
  static const Array kList(kNode);
  return kList;
}

Task<Json> query_blockstats(Call& call, QueryStatistics args) {
  Json all = Json::array();
  if (!args.query_nodes) co_return std::move(all);
  Nodes& nodes = call.daemon().nodes();
  for (const Node* node : nodes.graph()) {
    if (is_shown(*node, nodes)) all.push_back(describe(*node, nodes, call.daemon().exports()));
  }
  co_return std::move(all);
}
const Command<QueryStatistics> kQueryStatistics({.name = "query-blockstats",
                                                 .help = "how much was asked of nodes",
                                                 .result = &list_of_statistics(),
                                                 .run = query_blockstats});

// --- block-set-write-threshold -------------------------------------------------------------------

struct Threshold {
  std::string node;
  uint64_t offset = 0;
};
const Struct& definition_of(const Threshold*) {
  static const Struct kStruct(
      {field("node-name", &Threshold::node, "which"),
       field("write-threshold", &Threshold::offset,
             "the first write that ends behind this offset is told, once; 0: none is")});
  return kStruct;
}
constexpr std::string_view kPassed = "BLOCK_WRITE_THRESHOLD";

Task<Json> block_set_write_threshold(Call& call, Threshold args) {
  NamedNode* const node = call.daemon().nodes().find(args.node);
  if (!node) co_return Error(Errc::not_found, cat("Device '", args.node, "' not found"));
  Daemon& daemon = call.daemon();
  WriteThreshold wanted{.offset = args.offset};
  wanted.passed = [&daemon, name = args.node, offset = args.offset](uint64_t end) {
    daemon.emit(
        kPassed,
        {{"node-name", name}, {"amount-exceeded", end - offset}, {"write-threshold", offset}});
  };
  co_await set_write_threshold(*node, std::move(wanted));
  co_return Json();
}
const Command<Threshold> kThreshold(
    {.name = "block-set-write-threshold",
     .help = "tells once when a write ends behind an offset of a node",
     .run = block_set_write_threshold});

const EventDefinition kPassedEvent{
    .name = kPassed,
    .help = "a write has ended behind the offset; the threshold is gone",
    .data = Struct({result_field<std::string>("node-name", "which"),
                    result_field<uint64_t>("amount-exceeded", "how far behind it"),
                    result_field<uint64_t>("write-threshold", "the offset")})};

}  // namespace

void add_statistics_commands(CommandSet& set) {
  set.add(kQueryStatistics);
  set.add(kThreshold);
  set.add(kPassedEvent);
}

}  // namespace byre::qmp
