// SPDX-License-Identifier: Apache-2.0
/// Entrance: where the requests of an export, a job or a command enter the graph.
///
///     const Entrance::Pass pass = co_await entrance.enter();
///     co_await pass->read(offset, data);            // the device that is there now
///
/// A pass lasts for one request: its device stays what it is until the pass ends, and whoever
/// changes the graph waits for that (drain.h).  So a pass is not held while its owner waits for
/// anything but the request: a client that does not read its answers must not stop a change.
/// Invariant: the gate lies at the edge of the graph, never inside: a request that was admitted is
/// admitted everywhere, or a write that has to copy from below could wait for its own drain.
/// Cost: that of a Gate.
/// Not here: what may be asked of the device (device.h).
#pragma once

#include <memory>
#include <utility>

#include "block/graph.h"
#include "coro/gate.h"

namespace byre {

class Entrance {
 public:
  explicit Entrance(Child child) : gate_(child->reactor().ready()), child_(std::move(child)) {
    child_.set_gate(&gate_);
  }
  Entrance(const Entrance&) = delete;
  ~Entrance() = default;

  class [[nodiscard]] Pass {
   public:
    Pass(Pass&&) noexcept = default;
    Device& operator*() const { return device_; }
    Device* operator->() const { return &device_; }
    /// The request has ended; what follows is no longer the graph's business.
    void release() { pass_.release(); }

   private:
    friend class Entrance;
    Pass(Gate::Pass pass, Device& device) : pass_(std::move(pass)), device_(device) {}
    Gate::Pass pass_;
    Device& device_;
  };
  class [[nodiscard]] Waiter : public Gate::Waiter {
   public:
    explicit Waiter(Entrance& entrance) : Gate::Waiter(entrance.gate_), entrance_(entrance) {}
    Pass await_resume() const noexcept { return {Gate::Waiter::await_resume(), *entrance_.child_}; }

   private:
    Entrance& entrance_;
  };
  Waiter enter() { return Waiter(*this); }

  /// Another edge to the same device, of a new owner outside.
  static std::shared_ptr<Entrance> to(Device& device) {
    return std::make_shared<Entrance>(Child::to(device));
  }

  /// The edge, for changes of the graph and the end; requests take a pass.
  Child& edge() { return child_; }
  /// For what it is: its size, name and alignment.
  const Device& device() const { return *child_; }

 private:
  Gate gate_;
  Child child_;
};

}  // namespace byre
