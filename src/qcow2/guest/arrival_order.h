// SPDX-License-Identifier: Apache-2.0
/// ArrivalOrder: requests that run side by side do one of their steps in the order in which they
/// came.
///
///     ArrivalOrder::Ticket ticket(order);       // in the first step of the request
///     ... what may run beside others ...
///     if (!ticket.is_first()) co_await ticket.wait();
///     ... the step that is done in order ...
///     ticket.end();                             // or the ticket dies, however the request ends
/// Whoever waits holds nothing that an earlier request may want, unless it asked for that in the
/// step in which it took the ticket.
/// Invariant: where it is wanted, at most one ticket is first; it was taken before all others that
/// live.
/// Cost: where it is not wanted, a comparison.
/// Not here: which clusters a request gets (core/allocator.h).
#pragma once

#include <cstdint>
#include <set>

#include "coro/event.h"
#include "coro/task.h"

namespace byre {

class ArrivalOrder {
 public:
  explicit ArrivalOrder(ReadyQueue& ready, bool wanted = true) : wanted_(wanted), ended_(ready) {}
  ArrivalOrder(const ArrivalOrder&) = delete;

  bool wanted() const { return wanted_; }

  class [[nodiscard]] Ticket {
   public:
    explicit Ticket(ArrivalOrder& order) : order_(order) {
      if (!order.wanted_) return;
      number_ = ++order.last_;
      order.open_.insert(number_);
    }
    Ticket(const Ticket&) = delete;
    ~Ticket() { end(); }

    bool is_first() const { return number_ == 0 || *order_.open_.begin() == number_; }
    Task<void> wait() {
      while (!is_first()) co_await order_.ended_.wait();
    }
    void end() {
      if (number_ == 0) return;
      order_.open_.erase(number_);
      number_ = 0;
      if (!order_.open_.empty()) order_.ended_.notify();
    }

   private:
    ArrivalOrder& order_;
    uint64_t number_ = 0;  ///< 0: none, or it has ended.
  };

 private:
  const bool wanted_;
  uint64_t last_ = 0;
  std::set<uint64_t> open_;
  Event ended_;
};

}  // namespace byre
