// SPDX-License-Identifier: Apache-2.0
/// LetThrough: what devices hold back on their own account (throttle.h) goes on at once, and
/// nothing is held back as long as this lives.
///
///     LetThrough let(*edge);       // and everything below
///     co_await ...                 // waits for requests that run, no longer than they take
/// For whoever waits for the end of requests without changing the graph; a Drain does the same by
/// itself.
/// Invariant: each release has its resume, unless the device is gone.
/// Cost: a walk down the graph, twice.
/// Not here: which requests may still come; their owner sees to that.
#pragma once

#include <memory>
#include <vector>

#include "block/drain.h"

namespace byre {

class LetThrough {
 public:
  LetThrough() = default;
  explicit LetThrough(const Device& top) { add(top); }
  LetThrough(const LetThrough&) = delete;
  ~LetThrough() {
    for (const std::weak_ptr<Node>& released : released_) {
      if (const std::shared_ptr<Node> node = released.lock()) holding(*node)->resume();
    }
  }

  /// The device and all below it.
  void add(const Device& device) {
    Node* const node = device.node();
    if (node && holding(*node)) {
      holding(*node)->release();
      released_.push_back(node->weak_from_this());
    }
    for (const Child* edge : device.children()) add(**edge);
  }

 private:
  static HoldsBack* holding(const Node& node) { return dynamic_cast<HoldsBack*>(&node.device()); }
  std::vector<std::weak_ptr<Node>> released_;
};

}  // namespace byre
