// SPDX-License-Identifier: Apache-2.0
#include "block/drain.h"

#include <algorithm>

#include "coro/gate.h"

namespace byre {

Drain::Drain(Node& node) : changed_(node.device().reactor().ready()) { hold(node); }

Drain::Drain(const std::vector<Child*>& edges) : changed_(edges.at(0)->get()->reactor().ready()) {
  for (Child* edge : edges) hold(*edge);
}

Drain::~Drain() {
  for (HeldEdge& held : edges_) {
    std::erase(held.edge->drains_, this);
    if (held.gate.closed) held.gate.gate->open(changed_);
  }
  for (HeldNode& held : nodes_) {
    std::erase(held.node->drains_, this);
    if (held.released) held.released->resume();
    if (held.gate.closed) held.gate.gate->open(changed_);
  }
}

bool Drain::holds(const Child& edge) const {
  return step_ == Step::held && std::ranges::find(edges_, &edge, &HeldEdge::edge) != edges_.end();
}

void Drain::hold(Node& node) {
  if (std::ranges::find(node.drains_, this) != node.drains_.end()) return;
  node.drains_.push_back(this);
  HeldNode held{.node = node.shared_from_this(), .gate = {node.device().background_gate()}};
  held.released = dynamic_cast<HoldsBack*>(&node.device());
  if (held.released) held.released->release();
  if (step_ != Step::outside) close(held.gate);
  nodes_.push_back(std::move(held));
  for (Child* edge : node.parents_) hold(*edge);
}

void Drain::hold(Child& edge) {
  if (std::ranges::find(edge.drains_, this) != edge.drains_.end()) return;
  edge.drains_.push_back(this);
  HeldEdge held{.edge = &edge, .gate = {edge.gate()}};
  close(held.gate);
  edges_.push_back(held);
  // Its owner's requests end where they enter: here, or at the edges above.
  if (edge.owner() && edge.owner()->node()) hold(*edge.owner()->node());
}

void Drain::close(HeldGate& held) {
  if (held.closed || !held.gate) return;
  held.gate->close(changed_);
  held.closed = true;
}

void Drain::replace(Child& from, Child& to) {
  for (HeldEdge& held : edges_) {
    if (held.edge == &from) held.edge = &to;
  }
}

void Drain::forget(Child& edge) {
  const auto held = std::ranges::find(edges_, &edge, &HeldEdge::edge);
  BYRE_ASSERT(held != edges_.end());
  if (held->gate.closed) held->gate.gate->open(changed_);
  edges_.erase(held);
  changed_.notify();
}

bool Drain::is_idle() const {
  const auto busy = [](const auto& held) { return held.gate.closed && !held.gate.gate->is_idle(); };
  return std::ranges::none_of(edges_, busy) && std::ranges::none_of(nodes_, busy);
}

Task<void> Drain::wait_until_idle() {
  while (!is_idle()) co_await changed_.wait();
}

bool Drain::settles(const Node& node) const {
  return std::ranges::any_of(nodes_, [&](const HeldNode& held) {
    return held.node.get() == &node && held.settled == HeldNode::Settled::now;
  });
}

Task<void> Drain::wait_until_others_have_settled() {
  const auto others_settle = [&] {
    return std::ranges::any_of(nodes_, [&](const HeldNode& held) {
      return std::ranges::any_of(held.node->drains_, [&](const Drain* other) {
        return other != this && other->settles(*held.node);
      });
    });
  };
  while (others_settle()) co_await changed_.wait();
}

Task<void> Drain::settle(std::shared_ptr<Node> node) {
  // Another drain that is past this step has seen to it, and nothing has run since.
  const bool done = std::ranges::any_of(node->drains_, [&](const Drain* other) {
    return other != this && other->step_ != Step::outside;
  });
  // What could not be committed stays staged, and is tried again: no reason not to go on.
  if (!done) (void)co_await node->device().settle().result();
  const auto held = std::ranges::find(nodes_, node, &HeldNode::node);
  held->settled = HeldNode::Settled::yes;
  for (Drain* drain : node->drains_) drain->changed_.notify();
}

Task<void> Drain::begin() {
  co_await wait_until_idle();
  // Nodes come at each wait.
  for (;;) {
    const auto next = std::ranges::find(nodes_, HeldNode::Settled::no, &HeldNode::settled);
    if (next == nodes_.end()) {
      co_await wait_until_others_have_settled();
      if (std::ranges::find(nodes_, HeldNode::Settled::no, &HeldNode::settled) == nodes_.end())
        break;
      continue;
    }
    next->settled = HeldNode::Settled::now;
    co_await settle(next->node);
  }
  step_ = Step::inside;
  for (HeldNode& held : nodes_) close(held.gate);
  co_await wait_until_idle();
  step_ = Step::held;
}

}  // namespace byre
