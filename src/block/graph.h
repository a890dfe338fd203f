// SPDX-License-Identifier: Apache-2.0
/// Nodes and edges: how devices are put together, and put together anew while they are used.
///
/// A Node is a Device with a name and parents.  A Child is an edge: it leads from its owner (the
/// device that is above, or something outside: an export, a job, a command) to a node, and says
/// what the node is to the owner, and what the owner does with it and lets others do.
///   disk.qcow2's node <- file - [image] <- filtered - [throttle] <- outside - an export
/// A node lives while an edge leads to it.  Closing the last edge closes the device; closing
/// another gives up that edge alone.
///
/// Edges can be led elsewhere while guests read and write, by who holds a Drain (drain.h) of them:
/// so a filter enters above a disk in use, or a backing file is replaced.  check_moves() says
/// first, on the graph as it would be, whether that is allowed; repoint() then does it in one step,
/// without a wait.
///
/// Permissions: what each edge does, all other edges of the node must let others do.  A filter
/// does and allows what its own parents do and allow.
/// Invariant: the graph has no circle; a device is in one node; nobody sees a graph that is half
/// changed.
/// Cost: a request goes from a device to its child through one pointer, as it would without nodes.
/// Memory: about 250 bytes a node with its edge, and its name.
/// Threads: those of its devices; all of a graph belong to one reactor.
/// Not here: names of nodes (node_list.h), where requests enter (entrance.h), opening.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "block/device.h"

namespace byre {

class Child;
class Drain;
class Gate;

/// What a node is to the owner of an edge.
enum class Role : uint8_t {
  outside,   ///< The owner is no device: an export, a job or a command.
  name,      ///< The owner only keeps the node open: the edge stays where it is.
  filtered,  ///< What a filter passes its requests to.
  file,      ///< Where an image's metadata are.
  data,      ///< An external data file.
  backing,   ///< What shows where an image has nothing.
  other,     ///< A log, a device to compare with.
};
std::string_view name_of(Role role);

/// What an owner does with a node, or lets others do.
struct Access {
  bool read = false;  ///< And counts on what it reads: no one else's half-made changes.
  bool write = false;
  bool resize = false;

  static constexpr Access none() { return {}; }
  static constexpr Access all() { return {true, true, true}; }
  static constexpr Access reading() { return {true, false, false}; }
  Access operator|(Access o) const {
    return {read || o.read, write || o.write, resize || o.resize};
  }
  Access operator&(Access o) const {
    return {read && o.read, write && o.write, resize && o.resize};
  }
  Access without(Access o) const {
    return {read && !o.read, write && !o.write, resize && !o.resize};
  }
  bool any() const { return read || write || resize; }
  bool operator==(const Access&) const = default;
};
/// "'write', 'resize'"
std::string describe(Access access);

struct Permissions {
  Access uses = Access::none();
  Access shares = Access::all();  ///< What other edges of the node may use.
  bool operator==(const Permissions&) const = default;
};

/// Made by the first edge to a device.
class Node : public std::enable_shared_from_this<Node> {
 public:
  ~Node();
  Node(const Node&) = delete;

  Device& device() const { return device_; }
  /// What users call it; made up ("#block7") unless one was given.
  const std::string& name() const { return name_; }
  void set_name(std::string name) { name_ = std::move(name); }
  std::span<Child* const> parents() const { return parents_; }

 private:
  friend class Child;
  friend class Drain;
  static std::shared_ptr<Node> make(Device& device, std::unique_ptr<Device> owned);
  Node(Device& device, std::unique_ptr<Device> owned);

  Device& device_;
  std::unique_ptr<Device> owned_;  ///< Null: the device is somebody else's, and lives longer.
  std::string name_;
  std::vector<Child*> parents_;
  std::vector<Drain*> drains_;  ///< Those that hold all edges to it.
};

/// An edge, or none.  Move-only; whoever has it is its owner, or acts for it.
class Child {
 public:
  Child() = default;
  /// To a device that nothing leads to yet; the node is new.
  Child(std::unique_ptr<Device> device);  // NOLINT(google-explicit-constructor)
  template <class Derived>
    requires std::is_base_of_v<Device, Derived>
  Child(std::unique_ptr<Derived> device)  // NOLINT(google-explicit-constructor)
      : Child(std::unique_ptr<Device>(std::move(device))) {}
  /// Another edge to the node of `device`; if it has none, to one that does not own it.
  static Child to(Device& device);
  /// Another edge to the same node, of an owner that is outside.
  Child another() const { return node_ ? to(*device_) : Child(); }
  /// The same, of an owner that only keeps the node open.
  Child hold() const;
  Child(Child&& other) noexcept;
  Child& operator=(Child&& other) noexcept;
  ~Child() { reset(); }

  explicit operator bool() const { return device_ != nullptr; }
  Device& operator*() const { return *device_; }
  Device* operator->() const { return device_; }
  /// Null when there is none.
  Device* get() const { return device_; }
  Node& node() const { return *node_; }

  /// From here on it belongs to the device `owner`, which is above.
  void belong_to(Device& owner, Role role);
  /// Of an owner outside: where its requests enter; null: none run while the graph changes.
  void set_gate(Gate* gate);
  Gate* gate() const { return gate_; }
  /// Null: the owner is outside.
  Device* owner() const { return owner_; }
  Role role() const { return role_; }

  /// Errc::busy when other edges of the node do not allow that, and the edge is as it was.
  Result<void> set_permissions(Permissions permissions);
  const Permissions& permissions() const { return permissions_; }
  /// What it really does and allows: for a filter's that of its parents.
  Permissions effective() const;

  /// Gives up the edge: the device is closed when this is the last that leads to it.  The device
  /// stays until the edge ends.
  Task<void> close();
  /// Likewise without I/O.
  void abandon();
  /// Ends the edge; the device goes with its last one, which was closed or abandoned.
  void reset();

 private:
  friend class Drain;
  friend class Node;
  friend struct GraphChange;
  explicit Child(std::shared_ptr<Node> node);
  void link();
  void unlink();
  std::vector<Drain*> leave_drains();

  Device* device_ = nullptr;  ///< That of node_, one step nearer.
  std::shared_ptr<Node> node_;
  Device* owner_ = nullptr;
  Gate* gate_ = nullptr;
  Role role_ = Role::outside;
  Permissions permissions_;
  bool linked_ = false;         ///< Among the node's parents.
  std::vector<Drain*> drains_;  ///< Those that hold it.
};

/// An edge, and where it is to lead.
struct Move {
  Child& edge;
  Node& to;
};

/// May all of `moves` be made at once?  Errc::busy when permissions conflict, Errc::invalid for a
/// circle; both name the nodes.
Result<void> check_moves(std::span<const Move> moves);

/// Makes them.  `drain` holds every edge, and check_moves() said yes.  The edges keep their owners,
/// roles and permissions.
void repoint(const Drain& drain, std::span<const Move> moves);

/// Puts the filter that `filter` leads to between the node of `below` and the parents that it has
/// otherwise, or removes it again.  The filter's own edge leads there already.  Waits for a drain.
Task<void> insert_above(Node& below, Child& filter);
/// `filter` is then the only edge that leads to the filter.
Task<void> remove_filter(Child& filter);

}  // namespace byre
