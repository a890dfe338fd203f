// SPDX-License-Identifier: Apache-2.0
#include "block/graph.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <set>

#include "block/drain.h"
#include "coro/gate.h"

namespace byre {

std::string_view name_of(Role role) {
  switch (role) {
    case Role::outside:
      return "root";
    case Role::name:
      return "name";
    case Role::filtered:
      return "filtered";
    case Role::file:
      return "file";
    case Role::data:
      return "data-file";
    case Role::backing:
      return "backing";
    case Role::other:
      return "other";
  }
  return "unknown";
}

std::string describe(Access access) {
  std::string text;
  const auto add = [&](bool has, std::string_view word) {
    if (has) text += cat(text.empty() ? "" : ", ", "'", word, "'");
  };
  add(access.read, "consistent read");
  add(access.write, "write");
  add(access.resize, "resize");
  return text;
}

// --- Nodes ---------------------------------------------------------------------------------------

namespace {
std::string made_up_name() {
  static std::atomic<uint64_t> count = 0;
  return cat("#block", count++);
}
}  // namespace

Node::Node(Device& device, std::unique_ptr<Device> owned)
    : device_(device), owned_(std::move(owned)), name_(made_up_name()) {
  BYRE_ASSERT(!device_.node_);
  device_.node_ = this;
}

std::shared_ptr<Node> Node::make(Device& device, std::unique_ptr<Device> owned) {
  std::shared_ptr<Node> node(new Node(device, std::move(owned)));
  // What is drained below it is drained here.
  for (Child* below : device.children()) {
    for (Drain* drain : below->drains_) drain->hold(*node);
  }
  return node;
}

Node::~Node() {
  BYRE_ASSERT(parents_.empty() && drains_.empty());
  device_.node_ = nullptr;
}

// --- Edges ---------------------------------------------------------------------------------------

Child::Child(std::shared_ptr<Node> node)
    : device_(node ? &node->device() : nullptr), node_(std::move(node)) {
  if (node_) link();
}

Child::Child(std::unique_ptr<Device> device)
    : Child(device ? Node::make(*device, std::move(device)) : nullptr) {}

Child Child::to(Device& device) {
  if (device.node()) return Child(device.node()->shared_from_this());
  return Child(Node::make(device, nullptr));
}

Child Child::hold() const {
  Child edge = another();
  edge.role_ = Role::name;
  return edge;
}

Child::Child(Child&& other) noexcept { *this = std::move(other); }

Child& Child::operator=(Child&& other) noexcept {
  if (this == &other) return *this;
  reset();
  device_ = std::exchange(other.device_, nullptr);
  node_ = std::move(other.node_);
  owner_ = std::exchange(other.owner_, nullptr);
  gate_ = std::exchange(other.gate_, nullptr);
  role_ = std::exchange(other.role_, Role::outside);
  permissions_ = std::exchange(other.permissions_, {});
  linked_ = std::exchange(other.linked_, false);
  drains_ = std::move(other.drains_);
  if (linked_) std::ranges::replace(node_->parents_, &other, this);
  if (owner_) std::ranges::replace(owner_->children_, &other, this);
  for (Drain* drain : drains_) drain->replace(other, *this);
  return *this;
}

void Child::link() {
  node_->parents_.push_back(this);
  linked_ = true;
  for (Drain* drain : node_->drains_) drain->hold(*this);
}

void Child::unlink() {
  if (!std::exchange(linked_, false)) return;
  std::erase(node_->parents_, this);
}

void Child::reset() {
  if (!device_) return;
  unlink();
  (void)leave_drains();
  if (owner_) std::erase(owner_->children_, this);
  owner_ = nullptr;
  device_ = nullptr;
  node_.reset();
}

/// Gives up all drains, for the time of a change that they must know of.
std::vector<Drain*> Child::leave_drains() {
  std::vector<Drain*> drains = std::exchange(drains_, {});
  for (Drain* drain : drains) drain->forget(*this);
  return drains;
}

void Child::belong_to(Device& owner, Role role) {
  BYRE_ASSERT(!owner_ && !gate_ && device_);
  const std::vector<Drain*> drains = leave_drains();
  owner_ = &owner;
  role_ = role;
  owner.children_.push_back(this);
  for (Drain* drain : drains) drain->hold(*this);
}

void Child::set_gate(Gate* gate) {
  BYRE_ASSERT(!owner_);
  const std::vector<Drain*> drains = leave_drains();
  gate_ = gate;
  for (Drain* drain : drains) drain->hold(*this);
}

/// Does no other edge keep the device open?  One of a device that nothing leads to does not: such a
/// device lies over what somebody else closes (a Forwarder on the stack).
static bool is_last(const Child& edge) {
  return std::ranges::none_of(edge.node().parents(), [&](const Child* other) {
    return other != &edge && (!other->owner() || other->owner()->node());
  });
}

Task<void> Child::close() {
  if (!linked_) co_return;
  if (is_last(*this)) co_await device_->close();
  unlink();
}

void Child::abandon() {
  if (!linked_) return;
  if (is_last(*this)) device_->abandon();
  unlink();
}

// --- Permissions ---------------------------------------------------------------------------------

/// The graph as it would be after some moves.
struct GraphChange {
  std::span<const Move> moves;

  Node& target(const Child& edge) const {
    for (const Move& move : moves) {
      if (&move.edge == &edge) return move.to;
    }
    return edge.node();
  }
  std::vector<const Child*> parents(const Node& node) const {
    std::vector<const Child*> found;
    for (const Child* edge : node.parents()) {
      if (&target(*edge) == &node) found.push_back(edge);
    }
    for (const Move& move : moves) {
      if (&move.to == &node && &move.edge.node() != &node) found.push_back(&move.edge);
    }
    return found;
  }
  static const Node* above(const Child& edge) {
    return edge.owner() ? edge.owner()->node() : nullptr;
  }
  /// Does anybody read or write it, be it through others?  Names do not, nor does an image that is
  /// being opened over it.
  bool is_used(const Node& node) const {
    return std::ranges::any_of(parents(node), [&](const Child* edge) {
      const bool passes_on = edge->role() == Role::filtered || edge->role() == Role::backing;
      const Node* const user = above(*edge);
      if (edge->role() == Role::name || (edge->role() == Role::backing && !user)) return false;
      return !passes_on || !user || is_used(*user);
    });
  }
  Permissions effective(const Child& edge) const {
    const Node* const above = GraphChange::above(edge);
    // Who shows it is shown to nobody, and counts on nothing until somebody reads it.
    if (edge.role() == Role::backing && (!above || !is_used(*above))) return {};
    if (edge.role() != Role::filtered) return edge.permissions();
    Permissions all = edge.permissions();
    if (!above) return all;
    for (const Child* parent : parents(*above)) {
      const Permissions one = effective(*parent);
      all.uses = all.uses | one.uses;
      all.shares = all.shares & one.shares;
    }
    return all;
  }
  static std::string user(const Child& edge) {
    if (!edge.owner()) return "an export, a job or a command";
    const Node* const owner = above(edge);
    return cat("node '", owner ? owner->name() : edge.owner()->name(), "'");
  }
  Result<void> check(const Node& node) const {
    const std::vector<const Child*> edges = parents(node);
    for (const Child* user : edges) {
      const Permissions wants = effective(*user);
      for (const Child* other : edges) {
        if (user == other) continue;
        const Access refused = wants.uses.without(effective(*other).shares);
        if (!refused.any()) continue;
        return Error(Errc::busy,
                     cat("Permission conflict on node '", node.name(), "': permissions ",
                         describe(refused), " are both required by ", GraphChange::user(*user),
                         " (uses node '", node.name(), "' as '", name_of(user->role()),
                         "' child) and unshared by ", GraphChange::user(*other), " (uses node '",
                         node.name(), "' as '", name_of(other->role()), "' child)."));
      }
    }
    return {};
  }
  /// What `node`, the filters' nodes below it and those that show through it allow.
  Result<void> check_from(const Node& node) const {
    if (Result<void> sound = check(node); !sound) return sound;
    for (const Child* edge : node.device().children()) {
      if (edge->role() != Role::filtered && edge->role() != Role::backing) continue;
      if (Result<void> sound = check_from(target(*edge)); !sound) return sound;
    }
    return {};
  }
  /// Is `node` among the nodes above `edge`?
  bool is_above(const Node& node, const Child& edge, std::set<const Child*>& seen) const {
    if (!seen.insert(&edge).second || !edge.owner() || !edge.owner()->node()) return false;
    const Node& owner = *edge.owner()->node();
    if (&owner == &node) return true;
    return std::ranges::any_of(parents(owner),
                               [&](const Child* up) { return is_above(node, *up, seen); });
  }

  static void repoint(const Drain& drain, const Move& move) {
    Child& edge = move.edge;
    BYRE_ASSERT(drain.holds(edge) && edge.linked_);
    const std::shared_ptr<Node> old = edge.node_;  // To the end of this step.
    edge.unlink();
    edge.node_ = move.to.shared_from_this();
    edge.device_ = &move.to.device();
    edge.link();
  }
};

Permissions Child::effective() const { return GraphChange{}.effective(*this); }

Result<void> Child::set_permissions(Permissions permissions) {
  const Permissions before = std::exchange(permissions_, permissions);
  Result<void> allowed = GraphChange{}.check_from(*node_);
  if (!allowed) permissions_ = before;
  return allowed;
}

Result<void> check_moves(std::span<const Move> moves) {
  const GraphChange change{moves};
  for (const Move& move : moves) {
    std::set<const Child*> seen;
    if (change.is_above(move.to, move.edge, seen)) {
      return invalid("Making '", move.to.name(), "' a ", name_of(move.edge.role()),
                     " child of node '", move.edge.owner()->node()->name(),
                     "' would create a cycle");
    }
  }
  for (const Move& move : moves) {
    if (Result<void> sound = change.check_from(move.to); !sound) return sound;
    if (Result<void> sound = change.check_from(move.edge.node()); !sound) return sound;
  }
  return {};
}

void repoint(const Drain& drain, std::span<const Move> moves) {
  for (const Move& move : moves) GraphChange::repoint(drain, move);
}

// --- Filters -------------------------------------------------------------------------------------

namespace {
/// All edges to `from` but `keep`, names and those of the device `except` are to lead to `to`.
std::vector<Move> moves_of_parents(Node& from, Node& to, const Child* keep, const Device* except) {
  std::vector<Move> moves;
  for (Child* edge : from.parents()) {
    const bool stays = edge == keep || edge->role() == Role::name;
    if (!stays && (!except || edge->owner() != except)) moves.push_back({*edge, to});
  }
  return moves;
}
}  // namespace

Task<void> insert_above(Node& below, Child& filter) {
  Drain drain(below);
  co_await drain.begin();
  const std::vector<Move> moves = moves_of_parents(below, filter.node(), nullptr, filter.get());
  co_await check_moves(moves);
  repoint(drain, moves);
}

Task<void> remove_filter(Child& filter) {
  const auto down = std::ranges::find(filter->children(), Role::filtered, &Child::role);
  BYRE_ASSERT(down != filter->children().end());
  Node& below = (*down)->node();
  Drain drain(filter.node());
  co_await drain.begin();
  const std::vector<Move> moves = moves_of_parents(filter.node(), below, &filter, nullptr);
  co_await check_moves(moves);
  repoint(drain, moves);
}

}  // namespace byre
