// SPDX-License-Identifier: Apache-2.0
/// ReferenceGate: no metadata change before all references are known (docs/engine.md, V).
///
/// An image that is opened for writing may have refcounts that another program left wrong.  Until
/// every table was scanned, nothing is allocated, staged, released, punched or cut off: whoever is
/// about to do so waits here before its first lock.  So the scan walks tables that do not change,
/// and takes no lock itself.
///
/// Invariant: once it is open it stays open; once it refuses it refuses until the image is opened
/// again.
/// Cost: a branch once it is open.
/// Not here: the scan (check/reference_scan.h), what it leads to (ops/heal.h).
#pragma once

#include "base/error.h"
#include "coro/event.h"
#include "coro/task.h"

namespace byre {

class ReferenceGate {
 public:
  explicit ReferenceGate(ReadyQueue& ready) : changed_(ready) {}

  bool is_open() const { return state_ == State::open; }
  /// Has everybody who will wait here got an answer?
  bool decided() const { return state_ != State::closed; }
  bool refused() const { return state_ == State::refused; }
  /// A scan has begun; before the first request.
  void close() { state_ = State::closed; }
  void open() { decide(State::open, {}); }
  /// Metadata cannot be changed; `why` is everybody's error from here on.
  void refuse(Error why) { decide(State::refused, std::move(why)); }

  /// Waits for the scan; fails when metadata cannot be changed.
  Task<void> wait() {
    while (state_ == State::closed) co_await changed_.wait();
    if (state_ == State::refused) co_await fail(why_.copy());
  }

 private:
  enum class State : uint8_t { open, closed, refused };

  void decide(State state, Error why) {
    BYRE_ASSERT(state_ != State::refused);
    state_ = state;
    why_ = std::move(why);
    changed_.notify();
  }

  State state_ = State::open;
  Error why_;
  Event changed_;
};

}  // namespace byre
