// SPDX-License-Identifier: Apache-2.0
/// What clients are told of nodes and the graph.
#include <sys/stat.h>

#include <algorithm>
#include <map>

#include "block/copy_before_write.h"
#include "block/copy_on_read.h"
#include "block/raw.h"
#include "block/snapshot_below.h"
#include "daemon/nodes.h"
#include "job/live/mirror_filter.h"

namespace byre {

namespace {

using qmp::Json;
using qmp::result_field;

/// The names that users know the modes by.
std::string_view name_of_mode(DetectZeroesMode mode) {
  switch (mode) {
    case DetectZeroesMode::off:
      return "off";
    case DetectZeroesMode::on:
      return "on";
    case DetectZeroesMode::unmap:
      return "unmap";
  }
  return "off";
}

std::string driver_of_node(const Device& device, const NamedNode* named) {
  if (named && named->driver) return std::string(named->driver->name);
  if (dynamic_cast<const Image*>(&device)) return "qcow2";
  if (dynamic_cast<const MirrorFilter*>(&device)) return "mirror_top";
  if (dynamic_cast<const CopyOnRead*>(&device)) return "copy-on-read";
  if (dynamic_cast<const CopyBeforeWrite*>(&device)) return "copy-before-write";
  if (!device.children().empty() && device.children().front()->role() == Role::filtered)
    return "filter";
  return device.children().empty() ? "file" : "raw";
}

/// Bytes that the file takes on its disk; 0 when there is none.
uint64_t actual_size(const Device& device) {
  for (const Device* at = &device; at;) {
    if (at->children().empty()) {
      struct stat status;
      return stat(at->name().c_str(), &status) == 0
                 ? uint64_t{512} * static_cast<uint64_t>(status.st_blocks)
                 : 0;
    }
    at = at->children().front()->get();
  }
  return 0;
}

Json describe_image(Device& device, const std::string& driver, bool flat, Nodes& nodes);

void add_qcow2(Json& out, Image& image, bool flat, Nodes& nodes) {
  const ImageHeader& head = image.head();
  out["cluster-size"] = image.geometry().cluster_size();
  if (head.backing_file) {
    out["backing-filename"] = *head.backing_file;
    out["full-backing-filename"] = resolve_name(image.name(), *head.backing_file);
    if (head.extensions.backing_format)
      out["backing-filename-format"] = *head.extensions.backing_format;
  }
  Json data = {{"compat", head.header.version == 3 ? "1.1" : "0.10"},
               {"refcount-bits", 1u << head.header.refcount_order}};
  out["format-specific"] = {{"type", "qcow2"}, {"data", std::move(data)}};
  if (!flat && image.backing()) {
    Device& below = SnapshotBelow::stands_for(*image.backing());
    const NamedNode* const named = below.node() ? nodes.named(*below.node()) : nullptr;
    out["backing-image"] = describe_image(below, driver_of_node(below, named), flat, nodes);
  }
}

Json describe_image(Device& device, const std::string& driver, bool flat, Nodes& nodes) {
  Json out = {{"filename", device.name()},
              {"format", driver},
              {"virtual-size", device.size()},
              {"actual-size", actual_size(device)},
              {"dirty-flag", false}};
  if (auto* const image = dynamic_cast<Image*>(&device)) add_qcow2(out, *image, flat, nodes);
  return out;
}

uint64_t depth_of(Device& device) {
  uint64_t depth = 0;
  for (auto* image = dynamic_cast<Image*>(&device); image && image->backing();
       image = dynamic_cast<Image*>(&SnapshotBelow::stands_for(*image->backing()))) {
    ++depth;
  }
  return depth;
}

Json access_list(Access access) {
  Json list = Json::array();
  if (access.read) list.push_back("consistent-read");
  if (access.write) list.push_back("write");
  if (access.resize) list.push_back("resize");
  return list;
}

}  // namespace

const qmp::Type& node_description() {
  static const qmp::Struct kCache(
      {result_field<bool>("writeback", "writes are not durable at once"),
       result_field<bool>("direct", "past the page cache"),
       result_field<bool>("no-flush", "flushes are dropped")});
  static const qmp::Struct kNode(
      {result_field<std::string>("node-name", "its name", true),
       result_field<std::string>("file", "what it is called for people"),
       result_field<std::string>("drv", "its driver"),
       result_field<bool>("ro", "nothing is written"),
       result_field<bool>("encrypted", "always false here"),
       result_field<bool>("active", "it may be used"),
       result_field<std::string>("backing_file", "what lies below", true),
       result_field<uint64_t>("backing_file_depth", "how many lie below"),
       result_field<std::string>("detect_zeroes", "off, on or unmap"),
       result_field<uint64_t>("bps", "limits; always 0 here: throttle is a node"),
       result_field<uint64_t>("bps_rd", "always 0"),
       result_field<uint64_t>("bps_wr", "always 0"),
       result_field<uint64_t>("iops", "always 0"),
       result_field<uint64_t>("iops_rd", "always 0"),
       result_field<uint64_t>("iops_wr", "always 0"),
       result_field<uint64_t>("write_threshold", "see block-set-write-threshold"),
       result_field<Json>("image", "the disk"),
       {.name = "cache", .help = "how it is cached", .known = &kCache},
       result_field<std::vector<Json>>("dirty-bitmaps", "its bitmaps", true)});
  return kNode;
}

bool is_shown(const Node& node, Nodes& nodes) {
  if (nodes.named(node)) return true;
  Device& device = node.device();
  return driver_of_node(device, nullptr) != "filter" &&
         &SnapshotBelow::stands_for(device) == &device;
}

Task<Json> describe_nodes(Nodes& nodes, bool flat) {
  Json all = Json::array();
  for (Node* node : nodes.graph()) {
    Device& device = node->device();
    NamedNode* const named = nodes.named(*node);
    const std::string driver = driver_of_node(device, named);
    if (!is_shown(*node, nodes)) continue;
    Json one = {{"node-name", node->name()},
                {"file", device.name()},
                {"drv", driver},
                {"ro", !device.writable() && !(named && named->follows_use)},
                {"encrypted", false},
                {"active", true},
                {"backing_file_depth", depth_of(device)},
                {"detect_zeroes", named ? name_of_mode(named->detect_zeroes) : "off"},
                {"write_threshold", named ? named->bitmaps.threshold.offset : 0}};
    for (const char* limit : {"bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"})
      one[limit] = 0;
    one["cache"] = {{"writeback", true}, {"direct", named && named->direct}, {"no-flush", false}};
    if (auto* const image = dynamic_cast<Image*>(&device); image && image->head().backing_file)
      one["backing_file"] = *image->head().backing_file;
    one["image"] = describe_image(device, driver, flat, nodes);
    if (named) {
      Json bitmaps = co_await describe_bitmaps(*named);
      if (!bitmaps.empty()) one["dirty-bitmaps"] = std::move(bitmaps);
    }
    all.push_back(std::move(one));
  }
  co_return std::move(all);
}

namespace {

/// A filter that nobody named: what lies below it stands for it.
bool is_hidden(const Node& node, Nodes& nodes) {
  if (&SnapshotBelow::stands_for(node.device()) != &node.device()) return true;
  const std::span<Child* const> below = node.device().children();
  return !nodes.named(node) && !below.empty() && below.front()->role() == Role::filtered;
}

/// What uses the node, through filters that nobody named.
std::vector<const Child*> users_of(const Node& node, Nodes& nodes) {
  std::vector<const Child*> users;
  for (const Child* edge : node.parents()) {
    const Node* const above = edge->owner() ? edge->owner()->node() : nullptr;
    if (edge->role() == Role::name) continue;
    if (!above || !is_hidden(*above, nodes)) {
      users.push_back(edge);
      continue;
    }
    for (const Child* user : users_of(*above, nodes)) users.push_back(user);
  }
  return users;
}

}  // namespace

Json describe_graph(Nodes& nodes) {
  std::map<const Node*, uint64_t> ids;
  Json listed = Json::array();
  std::vector<Node*> graph = nodes.graph();
  std::erase_if(graph, [&](const Node* node) { return is_hidden(*node, nodes); });
  for (const Node* node : graph) {
    const uint64_t id = ids.size() + 1;
    ids.emplace(node, id);
    listed.push_back({{"id", id}, {"type", "block-driver"}, {"name", node->name()}});
  }
  Json edges = Json::array();
  uint64_t next = ids.size() + 1;
  for (const Node* node : graph) {
    for (const Child* edge : users_of(*node, nodes)) {
      const Node* const above = edge->owner() ? edge->owner()->node() : nullptr;
      uint64_t parent = 0;
      if (above && ids.contains(above)) {
        parent = ids.at(above);
      } else {
        parent = next++;
        listed.push_back({{"id", parent}, {"type", "block-backend"}, {"name", ""}});
      }
      edges.push_back({{"parent", parent},
                       {"child", ids.at(node)},
                       {"name", edge->role() == Role::filtered ? "file" : name_of(edge->role())},
                       {"perm", access_list(edge->effective().uses)},
                       {"shared-perm", access_list(edge->effective().shares)}});
    }
  }
  return {{"nodes", std::move(listed)}, {"edges", std::move(edges)}};
}

}  // namespace byre
