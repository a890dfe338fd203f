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

Drain::HeldNode* Drain::next_to_settle() {
  const auto found = std::ranges::find(nodes_, false, &HeldNode::settled);
  return found == nodes_.end() ? nullptr : &*found;
}

Task<void> Drain::wait_until_idle() {
  while (!is_idle()) co_await changed_.wait();
}

Task<void> Drain::begin() {
  co_await wait_until_idle();
  // Nodes come at each wait.
  while (HeldNode* held = next_to_settle()) {
    held->settled = true;
    Gate* gate = held->gate.gate;
    if (gate && gate->is_closed()) continue;  // Another drain has seen to it, and nothing runs.
    Gate::Pass pass;
    if (gate) pass = co_await gate->enter();
    // What could not be committed stays staged, and is tried again: no reason not to go on.
    (void)co_await held->node->device().settle().result();
  }
  step_ = Step::inside;
  for (HeldNode& held : nodes_) close(held.gate);
  co_await wait_until_idle();
  step_ = Step::held;
}

}  // namespace byre
