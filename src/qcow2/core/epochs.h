// SPDX-License-Identifier: Apache-2.0
/// Epochs: which I/O may still be using a host cluster (docs/engine.md, H1 to H3).
///
/// Every I/O on host clusters holds a Pin from before it looks its mapping up until it has ended.
/// What is freed while an epoch runs may be used by the I/O of that epoch and of earlier ones; once
/// quiet(epoch) is true, none of it is left.
/// Invariant: an epoch without pins, older than the current one, is forgotten at once.
/// Cost: two additions a request; memory for the epochs that still have I/O, a handful.
/// (The same idea: dm-thin's deferred_set; RCU.)
/// Not here: what waits for an epoch to end (allocator.h).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <utility>

#include "base/assert.h"

namespace byre {

class Epochs {
 public:
  Epochs() = default;
  Epochs(const Epochs&) = delete;
  ~Epochs() = default;

  class [[nodiscard]] Pin {
   public:
    Pin() = default;
    Pin(Pin&& other) noexcept
        : epochs_(std::exchange(other.epochs_, nullptr)), epoch_(other.epoch_) {}
    Pin& operator=(Pin&& other) noexcept {
      release();
      epochs_ = std::exchange(other.epochs_, nullptr);
      epoch_ = other.epoch_;
      return *this;
    }
    ~Pin() { release(); }
    void release() {
      if (epochs_) std::exchange(epochs_, nullptr)->leave(epoch_);
    }

   private:
    friend class Epochs;
    Pin(Epochs& epochs, uint64_t epoch) : epochs_(&epochs), epoch_(epoch) {}
    Epochs* epochs_ = nullptr;
    uint64_t epoch_ = 0;
  };

  Pin pin() {
    ++counts_.back();
    return Pin(*this, current());
  }
  uint64_t current() const { return oldest_ + counts_.size() - 1; }
  /// Has all I/O of `epoch` and of those before it ended?  Never true of the current one.
  bool quiet(uint64_t epoch) const { return epoch < oldest_; }
  /// Begins a new epoch: what was freed so far can become quiet.
  void advance() {
    counts_.push_back(0);
    drop_quiet();
  }
  /// Called when the oldest epoch has become quiet.
  void on_quiet(std::function<void()> callback) { on_quiet_ = std::move(callback); }
  bool idle() const { return counts_.size() == 1 && counts_.back() == 0; }

 private:
  void leave(uint64_t epoch) {
    uint64_t& count = counts_[epoch - oldest_];
    BYRE_ASSERT(count > 0);
    if (--count == 0 && epoch == oldest_) drop_quiet();
  }
  void drop_quiet() {
    bool dropped = false;
    while (counts_.size() > 1 && counts_.front() == 0) {
      counts_.pop_front();
      ++oldest_;
      dropped = true;
    }
    if (dropped && on_quiet_) on_quiet_();
  }

  uint64_t oldest_ = 0;
  std::deque<uint64_t> counts_ = {0};  ///< Pins of oldest_, oldest_ + 1, ..., the current one.
  std::function<void()> on_quiet_;
};

}  // namespace byre
