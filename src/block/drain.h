// SPDX-License-Identifier: Apache-2.0
/// Drain: no request is under way in a part of the graph, until the drain ends.
///
///     Drain drain(node);            // or the edges that are to be led elsewhere
///     co_await drain.begin();
///     ...                           // ends when `drain` dies
///
///   1. The gates of all owners outside from which a request could come are closed: from the node
///      up, along all parents, to where requests enter (entrance.h).
///   2. Requests that were admitted run to their ends, unthrottled.  They pass everywhere: there is
///   no gate on
///      their way.
///   3. The device of the node and those above have work of their own (an image commits, and scans
///      its references): they are asked to settle, and then their gates for it are closed
///      (Device::background_gate()).
/// So what step 2 waits for can still make the progress that it needs: a write may wait for a
/// commit, or for the scan of an image.
///
/// Invariant: from the end of begin() to the end of the drain no request uses one of the edges, and
/// none of these devices does anything by itself.  An edge that comes to lead to a drained node
/// meanwhile is drained with it, from its first request on.
/// Several drains may overlap.  What a device needs in order to settle may be work of its own: so
/// none closes its gate while another waits for it to settle.
/// Whoever begins a drain holds no pass, and does not wait for who does.
/// Cost: a few steps for each edge above; requests wait for the slowest one that runs.
/// Not here: what is done meanwhile (graph.h).
#pragma once

#include <memory>
#include <vector>

#include "block/graph.h"
#include "coro/event.h"

namespace byre {

/// A device that holds requests back on its own account (throttle.h): not while a drain waits for
/// them.  Calls nest.
class HoldsBack {
 public:
  virtual void release() = 0;
  virtual void resume() = 0;

 protected:
  ~HoldsBack() = default;
};

class Drain {
 public:
  /// All edges to `node`.
  explicit Drain(Node& node);
  /// Those edges, one at least, and the nodes of their owners.
  explicit Drain(const std::vector<Child*>& edges);
  Drain(const Drain&) = delete;
  ~Drain();

  Task<void> begin();
  /// Does it keep requests away from this edge?
  bool holds(const Child& edge) const;

 private:
  friend class Child;
  friend class Node;
  friend struct GraphChange;
  /// The gate of what may issue requests: an owner outside, or a device with work of its own.
  struct HeldGate {
    Gate* gate = nullptr;  ///< Null: there is none.
    bool closed = false;
  };
  struct HeldEdge {
    Child* edge;
    HeldGate gate;  ///< Of an owner outside.
  };
  struct HeldNode {
    std::shared_ptr<Node> node;
    HoldsBack* released = nullptr;
    HeldGate gate;  ///< For its device's own work.
    enum class Settled : uint8_t { no, now, yes } settled = Settled::no;
  };
  void hold(Node& node);
  void hold(Child& edge);
  void close(HeldGate& gate);
  void replace(Child& from, Child& to);
  void forget(Child& edge);
  bool is_idle() const;
  bool settles(const Node& node) const;
  Task<void> settle(std::shared_ptr<Node> node);
  Task<void> wait_until_idle();
  Task<void> wait_until_others_have_settled();

  enum class Step : uint8_t { outside, inside, held } step_ = Step::outside;
  std::vector<HeldEdge> edges_;
  std::vector<HeldNode> nodes_;  ///< All of whose edges are held.
  Event changed_;
};

}  // namespace byre
