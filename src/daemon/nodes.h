// SPDX-License-Identifier: Apache-2.0
/// Nodes: the devices of a daemon, by their node-names.
///
/// What blockdev-add opens is owned by the monitor: an edge of the role `name` keeps it open
/// (block/graph.h) until blockdev-del.  A device below that has a name can be referred to as well;
/// it goes with the one that it was opened for.  Devices that images name have made-up names; they
/// are shown, and cannot be referred to.
/// Invariant: a name means one node at a time; a node that an export, a job or another device uses
/// is never closed; add() that fails leaves nothing open.
/// Cost: a few hundred bytes a node, beside its device.
/// Not here: what devices are (job/device_tree.h), bitmaps (bitmaps.h), exports (exports.h).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/bitmaps.h"
#include "daemon/qmp_type.h"
#include "job/device_tree.h"
#include "job/objects.h"
#include "job/open_tree.h"

namespace byre {

inline constexpr size_t kNodesMax = 4096;

/// A node that has a name.
class NamedNode {
 public:
  NamedNode(std::string n, Node& opened, const DeviceNode& said);

  const std::string name;
  const Driver* const driver;
  const std::string filename;  ///< Of a file; else empty.
  const DetectZeroesMode detect_zeroes;
  const bool direct;
  NodeBitmaps bitmaps;
  /// What keeps others from changing it: "block device is in use by block job: commit".
  std::vector<std::string> blockers;

  /// Users said that it is not to be written: nothing above it makes it writable.
  bool read_only = false;
  /// A file that is open for reading until something above it is to write (auto-read-only).
  bool follows_use = false;

  bool is_owned() const { return bool(hold_); }
  bool is_there() const { return !node_.expired(); }
  /// What it is itself.
  Device& device() const;
  /// Where somebody who wants to use it leads an edge to: what records into bitmaps lies over it.
  Device& entry() const;
  /// Null when it is no image, nor a filter over one.
  Image* image() const;
  /// Errc::busy, in QEMU's words, while something blocks it.
  Result<void> check_free() const;

 private:
  friend class Nodes;
  std::weak_ptr<Node> node_;
  std::string opened_for_;  ///< The node with which it was opened: itself, or one above.
  DeviceTree tree_;         ///< Of one that is owned.
  qmp::Json options_;       ///< Null where somebody else has opened it.
  Child hold_;
};

class Nodes {
 public:
  struct Options {
    FileOpener& files;
    std::shared_ptr<Objects> objects;
    /// Told what users should know of an image: that it was not closed, and the like.
    std::function<void(const std::string&)> message;
  };
  Nodes(Reactor& reactor, Options options) : reactor_(reactor), options_(std::move(options)) {}
  Nodes(const Nodes&) = delete;

  /// `options` were checked (blockdev_options.h).
  Task<void> add(qmp::Json options);
  Task<void> remove(std::string name);
  /// What somebody else has opened, and the disks below it: they are kept open as the node `name`
  /// and, from the top down, NAME-1, NAME-2 ...; `name` is one that a new node may have.
  void adopt(Disk& disk, const std::string& name, bool direct);
  /// Gives it other options: read-only at any time, the others only where nobody uses it.
  Task<void> reopen(qmp::Json options);
  /// A node that follows its use is about to be written by itself.
  Task<void> prepare_to_write(NamedNode& node);
  /// What follows its use and is written by nothing any more is only read.
  Task<void> let_follow();
  /// For what is reopened for writing below a node (block/reopen.h).
  Result<void> may_reopen(const Node& node);
  /// All that is left, those above first.  The first error; all are tried.
  Task<void> close_all();

  /// Null: there is none.
  NamedNode* find(std::string_view name);
  /// "Cannot find device='' nor node-name='x'"; `device` is what users gave as that.
  Result<NamedNode*> need(std::string_view name, std::string_view device = "");
  std::vector<NamedNode*> all();
  /// Every node of the graph, once, those above first.
  std::vector<Node*> graph();
  NamedNode* named(const Node& node);
  /// Filters of jobs that users have named: they lie above nodes of theirs, and are no such nodes.
  std::vector<Node*> named_filters();
  /// Errc::invalid for a name that no new node may have.
  Result<void> check_new_name(const std::string& name);
  Reactor& reactor() { return reactor_; }

 private:
  Task<Disk> open(DeviceTree tree, std::vector<std::unique_ptr<NamedNode>>& opened);
  Task<void> open_as(DeviceTree tree, qmp::Json options);
  Task<Disk> open_once(DeviceTree tree, std::vector<std::unique_ptr<NamedNode>>& opened,
                       bool writable);
  Task<void> change_read_only(NamedNode& node, qmp::Json options);
  OpenNodes known();
  Result<void> check_children(const qmp::Json& options);
  void add_adopted(Device& device, const std::string& name, const std::string& top, bool direct);
  Result<void> check_unused(const NamedNode& node);
  Task<void> close(NamedNode& node);
  void forget(const std::string& opened_for);

  Reactor& reactor_;
  const Options options_;
  std::map<std::string, std::unique_ptr<NamedNode>, std::less<>> nodes_;
};

/// The image that the device is, maybe below filters; null: none.
Image* image_of(Device& device);

/// "Cannot find device='x' nor node-name='x'"
Error no_such_node(std::string_view device, std::string_view name);

/// Is it told to users?  Filters that nobody named are not, but for those of jobs.
bool is_shown(const Node& node, Nodes& nodes);
/// What query-named-block-nodes says; `flat`: without the images below.
Task<qmp::Json> describe_nodes(Nodes& nodes, bool flat);
const qmp::Type& node_description();
/// What x-debug-query-block-graph says.
qmp::Json describe_graph(Nodes& nodes);

}  // namespace byre
