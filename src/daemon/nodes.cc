// SPDX-License-Identifier: Apache-2.0
#include "daemon/nodes.h"

#include <algorithm>
#include <set>
#include <utility>

#include "block/reopen.h"
#include "daemon/blockdev_options.h"
#include "job/layers.h"

namespace byre {

namespace {

std::string filename_of(const DeviceNode& node) {
  return node.driver && node.driver->is_protocol ? node.text("filename").value_or("") : "";
}

/// The edge that leads from the graph to what records, and that from the monitor, do not count as
/// users of a node.
bool is_user(const Child& edge, const NamedNode& node) {
  if (edge.role() == Role::name) return false;
  return !node.bitmaps.recorder || edge.owner() != node.bitmaps.recorder.get();
}

/// Who uses the node, in the words that QEMU has for it; none: nobody.
Result<void> in_use(const NamedNode& node, std::span<Child* const> edges) {
  for (const Child* edge : edges) {
    if (!is_user(*edge, node)) continue;
    if (!edge->owner()) return Error(Errc::busy, cat("Node ", node.name, " is in use"));
    if (edge->role() == Role::backing) {
      const Node* const above = edge->owner()->node();
      return Error(Errc::busy,
                   cat("Node '", node.name, "' is busy: node is used as backing hd of '",
                       above ? above->name() : edge->owner()->name(), "'"));
    }
    return Error(Errc::busy, cat("Block device ", node.name, " is in use"));
  }
  return {};
}

/// A file that could not be opened, as QEMU says it.
Error in_words(Error error) {
  constexpr std::string_view kOpen = "open '";
  if (!error.message().starts_with(kOpen)) return error;
  return Error(error.code(), cat("Could not ", error.message()), error.sys_errno(), error.where());
}

}  // namespace

Error no_such_node(std::string_view device, std::string_view name) {
  return Error(Errc::not_found,
               cat("Cannot find device='", device, "' nor node-name='", name, "'"));
}

NamedNode::NamedNode(std::string n, Node& opened, const DeviceNode& said)
    : name(std::move(n)),
      driver(said.driver),
      filename(filename_of(said)),
      detect_zeroes(said.detect_zeroes),
      direct(said.direct.value_or(false)),
      read_only(said.read_only.value_or(false)),
      node_(opened.weak_from_this()) {}

Device& NamedNode::device() const {
  const std::shared_ptr<Node> node = node_.lock();
  BYRE_ASSERT(node);
  return node->device();
}

Device& NamedNode::entry() const { return bitmaps.recorder ? *bitmaps.recorder : device(); }

Image* image_of(Device& device) {
  for (Device* at = &device; at;) {
    if (auto* const image = dynamic_cast<Image*>(at)) return image;
    const auto down = std::ranges::find(at->children(), Role::filtered, &Child::role);
    at = down == at->children().end() ? nullptr : (*down)->get();
  }
  return nullptr;
}

Image* NamedNode::image() const { return image_of(device()); }

Result<void> NamedNode::check_free() const {
  if (blockers.empty()) return {};
  return Error(Errc::busy, cat("Node '", name, "' is busy: ", blockers.front()));
}

NamedNode* Nodes::find(std::string_view name) {
  const auto found = nodes_.find(name);
  if (found == nodes_.end()) return nullptr;
  if (found->second->is_there()) return found->second.get();
  nodes_.erase(found);
  return nullptr;
}

Result<NamedNode*> Nodes::need(std::string_view name, std::string_view device) {
  NamedNode* const found = find(name);
  if (!found) return no_such_node(device, name);
  return found;
}

std::vector<NamedNode*> Nodes::all() {
  std::erase_if(nodes_, [](const auto& entry) { return !entry.second->is_there(); });
  std::vector<NamedNode*> nodes;
  for (const auto& [name, node] : nodes_) nodes.push_back(node.get());
  return nodes;
}

std::vector<Node*> Nodes::graph() {
  std::vector<Node*> found;
  std::set<const Node*> seen;
  const auto visit = [&](const auto& self, Device& device) -> void {
    Node* const node = device.node();
    if (!node || !seen.insert(node).second) return;
    found.push_back(node);
    for (const Child* child : device.children()) self(self, **child);
  };
  // Tops first, so that what lies below follows.
  const std::vector<NamedNode*> nodes = all();
  for (const NamedNode* node : nodes) {
    if (node->is_owned() && !in_use(*node, node->device().node()->parents())) continue;
    if (node->is_owned()) visit(visit, node->device());
  }
  for (const NamedNode* node : nodes) visit(visit, node->device());
  for (Node* filter : named_filters()) visit(visit, filter->device());
  return found;
}

NamedNode* Nodes::named(const Node& node) {
  for (NamedNode* one : all()) {
    if (one->device().node() == &node) return one;
  }
  return nullptr;
}

std::vector<Node*> Nodes::named_filters() {
  std::vector<Node*> found;
  for (const NamedNode* node : all()) {
    for (Device* device = &node->device(); device;) {
      Device* above = nullptr;
      for (const Child* edge : device->node()->parents()) {
        if (edge->owner() && edge->role() == Role::filtered && edge->owner()->node()) {
          above = edge->owner();
        }
      }
      device = above;
      if (!device || device->node()->name().starts_with('#') || named(*device->node())) continue;
      if (std::ranges::find(found, device->node()) == found.end()) found.push_back(device->node());
    }
  }
  return found;
}

Result<void> Nodes::check_new_name(const std::string& name) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  const auto may_follow = [&](char c) {
    return is_letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  };
  if (name.empty() || !is_letter(name.front()) || !std::ranges::all_of(name, may_follow)) {
    return invalid("Invalid node-name: '", name, "'");
  }
  if (name.size() > 31) return invalid("Node name too long");
  const auto is_taken = [&](const Node* node) { return node->name() == name; };
  if (!find(name) && std::ranges::none_of(named_filters(), is_taken)) return {};
  return invalid("Duplicate nodes with node-name='", name, "'");
}

OpenNodes Nodes::known() {
  OpenNodes known;
  for (const NamedNode* node : all()) {
    auto open = std::make_shared<DeviceNode>();
    open->driver = node->driver;
    open->node_name = node->name;
    open->open = node->entry().node()->shared_from_this();
    known.emplace(node->name, std::move(open));
  }
  for (Node* filter : named_filters()) {
    auto open = std::make_shared<DeviceNode>();
    open->driver = *find_driver("raw");  // What lies over it sees a disk.
    open->node_name = filter->name();
    open->open = filter->shared_from_this();
    known.emplace(filter->name(), std::move(open));
  }
  return known;
}

namespace {

/// Files are written when what lies above them is, as far as users did not say otherwise.
bool follows_use(const DeviceNode& node) {
  const bool is_file =
      node.driver && (node.driver->name == "file" || node.driver->name == "host_device");
  return is_file && node.auto_read_only && !node.read_only;
}

/// Open nodes that `node` refers to, and would write.
void collect_written(const DeviceNode& node, bool writable, std::vector<Node*>& found) {
  writable &= node.read_only != true;
  if (!writable) return;
  if (node.open) {
    found.push_back(node.open.get());
    return;
  }
  for (const auto& [role, child] : node.children) {
    if (child && role != "backing") collect_written(*child, true, found);
  }
}

/// Does something above it count on writing it?
bool has_writer(const Node& node) {
  return std::ranges::any_of(node.parents(), [](const Child* edge) {
    if (edge->effective().uses.write) return true;
    return edge->owner() && edge->role() != Role::backing &&
           (edge->role() == Role::filtered || edge->owner()->writable());
  });
}

}  // namespace

Task<Disk> Nodes::open_once(DeviceTree tree, std::vector<std::unique_ptr<NamedNode>>& opened,
                            bool writable) {
  OpenTreeOptions options{.image = {.writable = writable,
                                    .scan = ImageOptions::Scan::beside_requests,
                                    .message = options_.message}};
  options.growable = options.image.writable;
  options.reactor = &reactor_;
  options.objects = options_.objects;
  options.keep_nodes = true;
  options.on_node = [&opened](const DeviceNode& said, Node& node) {
    if (said.node_name.empty()) return;
    opened.push_back(std::make_unique<NamedNode>(said.node_name, node, said));
  };
  follow_named_devices(options.image, reactor_);
  std::vector<Node*> written;
  collect_written(*tree, writable, written);
  for (Node* node : written) {
    if (NamedNode* const below = named(*node)) co_await prepare_to_write(*below);
  }
  Result<Disk> disk = co_await open_node(options_.files, tree, options).result();
  if (!disk) opened.clear();
  co_return std::move(disk);
}

Task<Disk> Nodes::open(DeviceTree tree, std::vector<std::unique_ptr<NamedNode>>& opened) {
  const bool follows = follows_use(*tree);
  const bool writable = !tree->read_only.value_or(false) && !follows;
  Result<Disk> disk = co_await open_once(tree, opened, writable).result();
  if (!disk && writable && tree->auto_read_only) {
    disk = co_await open_once(tree, opened, false).result();
  }
  if (!disk) {
    co_await let_follow();
    co_return in_words(std::move(disk).error());
  }
  co_return *std::move(disk);
}

Task<void> Nodes::add(qmp::Json options) {
  OptionTree tree = co_await qmp::tree_of_json(options);
  DeviceTree parsed = co_await parse_named_tree(std::move(tree), known());
  if (nodes_.size() >= kNodesMax) {
    co_await fail(invalid("There are ", kNodesMax, " nodes already"));
  }
  co_await open_as(std::move(parsed), std::move(options));
}

Task<void> Nodes::open_as(DeviceTree tree, qmp::Json options) {
  std::vector<std::unique_ptr<NamedNode>> opened;
  Disk disk = co_await open(tree, opened);
  for (std::unique_ptr<NamedNode>& node : opened) {
    node->opened_for_ = tree->node_name;
    if (node->name == tree->node_name) {
      node->tree_ = tree;
      node->options_ = options;
      node->follows_use = follows_use(*tree);
      node->hold_ = disk.device.hold();
    }
    std::string name = node->name;
    nodes_.insert_or_assign(std::move(name), std::move(node));
  }
  // The monitor's edge keeps it open; this one only ends.
  co_await disk.device.close();
}

void Nodes::add_adopted(Device& device, const std::string& name, const std::string& top,
                        bool direct) {
  DeviceNode said;
  said.driver = &driver_of(image_of(device) ? DiskFormat::qcow2 : DiskFormat::raw);
  said.direct = direct;
  auto named = std::make_unique<NamedNode>(name, *device.node(), said);
  named->opened_for_ = top;
  device.node()->set_name(name);
  nodes_.insert_or_assign(name, std::move(named));
}

void Nodes::adopt(Disk& disk, const std::string& name, bool direct) {
  size_t depth = 0;
  for (Device* layer : layers_of(*disk.device)) {
    // One that has no node is part of the layer above.
    if (layer->node()) add_adopted(*layer, depth == 0 ? name : cat(name, "-", depth), name, direct);
    ++depth;
  }
  nodes_.at(name)->hold_ = disk.device.hold();
}

Result<void> Nodes::check_unused(const NamedNode& node) {
  if (Result<void> free = node.check_free(); !free) return free;
  if (Result<void> unused = in_use(node, node.device().node()->parents()); !unused) return unused;
  return node.bitmaps.recorder ? in_use(node, node.entry().node()->parents()) : Result<void>();
}

/// The names of what was opened with it; what somebody else uses as well keeps its name.
void Nodes::forget(const std::string& opened_for) {
  std::erase_if(nodes_, [](const auto& entry) { return !entry.second->is_there(); });
  for (auto& [name, node] : nodes_) {
    if (node->opened_for_ == opened_for && name != opened_for) node->opened_for_ = name;
  }
}

Task<void> Nodes::close(NamedNode& node) {
  for (NamedNode* other : all()) {
    if (other->opened_for_ == node.name) co_await drop_bitmaps(*other);
  }
  Result<void> closed = co_await node.hold_.close().result();
  if (!closed) node.hold_.abandon();
  node.hold_.reset();
  const std::string name = node.name;  // It goes with the entry.
  forget(name);
  co_await let_follow();
  co_await std::move(closed);
}

Result<void> Nodes::may_reopen(const Node& node) {
  const NamedNode* const known = named(node);
  if (known && known->read_only) return Error(Errc::read_only, "Block node is read-only");
  return {};
}

Task<void> Nodes::prepare_to_write(NamedNode& node) {
  if (!node.follows_use || node.device().writable()) co_return;
  co_await keep(co_await set_writable(*node.device().node(), true));
}

Task<void> Nodes::let_follow() {
  std::vector<std::string> names;
  for (const NamedNode* node : all()) {
    if (node->follows_use) names.push_back(node->name);
  }
  for (const std::string& name : names) {
    NamedNode* const node = find(name);
    if (!node || !node->device().writable() || has_writer(*node->device().node())) continue;
    Result<Reopened> reopened = co_await set_writable(*node->device().node(), false).result();
    if (reopened) co_await keep(*std::move(reopened));
  }
}

Task<void> Nodes::remove(std::string name) {
  NamedNode* const node = find(name);
  if (!node) {
    co_await fail(Error(Errc::not_found, cat("Failed to find node with node-name='", name, "'")));
  }
  if (!node->is_owned()) co_await fail(invalid("Node ", name, " is not owned by the monitor"));
  co_await check_unused(*node);
  for (const NamedNode* other : all()) {
    if (other->opened_for_ != name) continue;
    co_await other->check_free();
    // An export shows it, whatever node its clients have been led to.
    if (!other->bitmaps.users.empty()) {
      co_await fail(Error(Errc::busy, cat("Node '", other->name, "' is busy: bitmap '",
                                          other->bitmaps.users.begin()->first, "' is in use")));
    }
  }
  co_await close(*node);
}

namespace {

bool says_read_only(const qmp::Json& options) { return options.value("read-only", false); }

/// In that alone?
bool differs_in_read_only(qmp::Json one, qmp::Json other) {
  for (qmp::Json* options : {&one, &other}) {
    options->erase("read-only");
    options->erase("auto-read-only");
  }
  return one == other;
}

}  // namespace

/// While others use it.
Task<void> Nodes::change_read_only(NamedNode& node, qmp::Json options) {
  const bool read_only = says_read_only(options);
  if (node.device().writable() == read_only) {
    const auto may = [this](const Node& below) { return may_reopen(below); };
    Result<Reopened> reopened =
        co_await set_writable(*node.device().node(), !read_only, may).result();
    if (!reopened && read_only && reopened.error().code() == Errc::busy) {
      co_await fail(Error(Errc::busy, cat("Read-only block node '", node.name,
                                          "' cannot support read-write users")));
    }
    co_await keep(co_await std::move(reopened));
  }
  node.read_only = read_only;
  node.options_ = std::move(options);
}

/// Children that are named are to be there.
Result<void> Nodes::check_children(const qmp::Json& options) {
  BYRE_TRY(driver, find_driver(qmp::text_in(options["driver"])));
  for (const ChildSpec& spec : driver->children) {
    const auto child = options.find(spec.role);
    if (child == options.end() || !child->is_string()) continue;
    const std::string name = qmp::text_in(*child);
    if (!name.empty() && !find(name)) return no_such_node("", name);
  }
  return {};
}

Task<void> Nodes::reopen(qmp::Json options) {
  OptionTree tree = co_await qmp::tree_of_json(options);
  const auto named = options.find("node-name");
  if (named == options.end()) co_await fail(invalid("node-name not specified"));
  const std::string name = qmp::text_in(*named);
  NamedNode* const node = find(name);
  if (!node) {
    co_await fail(Error(Errc::not_found, cat("Failed to find node with node-name='", name, "'")));
  }
  if (!node->is_owned()) co_await fail(invalid("Node ", name, " is not owned by the monitor"));
  if (node->options_.is_null()) {
    co_await fail(unsupported("Node '", name, "' is as the command line of this server says"));
  }
  if (options["driver"] != node->options_["driver"]) {
    co_await fail(invalid("Cannot change the option 'driver'"));
  }
  if (options == node->options_) co_return;
  if (differs_in_read_only(options, node->options_) && !node->follows_use) {
    co_await change_read_only(*node, std::move(options));
    co_return;
  }
  co_await check_children(options);
  OpenNodes others = known();
  for (const NamedNode* other : all()) {
    if (other->opened_for_ == name) others.erase(other->name);
  }
  DeviceTree wanted = co_await parse_named_tree(std::move(tree), others);
  if (Result<void> unused = check_unused(*node); !unused) {
    co_await fail(Error(Errc::busy, cat(unused.error().message(),
                                        ": options of a node change only while nobody uses it")));
  }
  if (!node->bitmaps.loose.empty()) {
    co_await fail(Error(Errc::busy, cat("Node '", name, "' has bitmaps that are not persistent")));
  }
  const qmp::Json before = node->options_;
  OptionTree old_tree = co_await qmp::tree_of_json(before);
  DeviceTree old = co_await parse_named_tree(std::move(old_tree), others);
  co_await close(*node);
  Result<void> opened = co_await open_as(std::move(wanted), std::move(options)).result();
  if (opened) co_return;
  Result<void> restored = co_await open_as(std::move(old), before).result();
  if (!restored) {
    co_await fail(std::move(opened).error().while_doing(
        cat("Node '", name, "' is closed, and could not be opened as it was (",
            restored.error().message(), ")")));
  }
  co_await std::move(opened);
}

Task<void> Nodes::close_all() {
  Result<void> first;
  for (bool progress = true; progress;) {
    progress = false;
    for (NamedNode* node : all()) {
      if (!node->is_owned() || !check_unused(*node)) continue;
      Result<void> closed = co_await close(*node).result();
      if (!closed && first) first = std::move(closed);
      progress = true;
      break;  // The list has changed.
    }
  }
  co_await std::move(first);
}

}  // namespace byre
