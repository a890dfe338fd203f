// SPDX-License-Identifier: Apache-2.0
/// Locks on ranges of indices, shared or exclusive (docs/engine.md, L1).
///
/// A request asks for its whole range at once and waits until no range that overlaps it and
/// conflicts with it is held *or was asked for earlier*: first come, first served, all or nothing.
/// Nobody waits while holding a part, so there is no deadlock among single requests. downgrade()
/// turns an exclusive hold into a shared one at once; there is no upgrade. Cost: linear in the
/// number of requests held or waiting (tens); no heap: the records lie in the waiters' frames and
/// in the holds.
#pragma once

#include <coroutine>
#include <cstdint>
#include <utility>

#include "base/assert.h"
#include "coro/ready_queue.h"

namespace byre {

class RangeLock {
 public:
  explicit RangeLock(ReadyQueue& ready) : ready_(&ready) {}
  RangeLock(const RangeLock&) = delete;
  ~RangeLock() = default;

  enum class Mode : uint8_t { shared, exclusive };

  /// One request, held or waiting: it lives where the co_await is, and does not move.
  ///     RangeLock::Request lock(locks, first, end, RangeLock::Mode::shared);
  ///     co_await lock;       // unlocks when `lock` dies
  class [[nodiscard]] Request {
   public:
    /// [first, end), not empty.
    Request(RangeLock& locks, uint64_t first, uint64_t end, Mode mode)
        : locks_(&locks), first_(first), end_(end), mode_(mode) {
      BYRE_ASSERT(first < end);
    }
    Request(Request&&) = delete;
    ~Request() { release(); }

    bool await_ready() noexcept {
      BYRE_ASSERT(!linked_);
      held_ = !locks_->blocked(*this, nullptr);
      locks_->append(*this);
      return held_;
    }
    void await_suspend(std::coroutine_handle<> handle) noexcept { handle_ = handle; }
    void await_resume() const noexcept {}
    /// Takes the range if nobody stands in the way; else it has not been asked for.
    bool try_lock() {
      BYRE_ASSERT(!linked_);
      if (locks_->blocked(*this, nullptr)) return false;
      held_ = true;
      locks_->append(*this);
      return true;
    }

    void release() {
      if (!linked_) return;
      locks_->remove(*this);
      held_ = false;
      locks_->wake();
    }
    /// Exclusive to shared, at once; sharers who wait behind may pass.
    void downgrade() {
      BYRE_ASSERT(held_);
      mode_ = Mode::shared;
      locks_->wake();
    }
    bool held() const { return held_; }
    Mode mode() const { return mode_; }
    uint64_t first() const { return first_; }
    uint64_t end() const { return end_; }

   private:
    friend class RangeLock;
    bool conflicts(const Request& other) const {
      return first_ < other.end_ && other.first_ < end_ &&
             (mode_ == Mode::exclusive || other.mode_ == Mode::exclusive);
    }
    RangeLock* locks_;
    uint64_t first_;
    uint64_t end_;
    Mode mode_;
    bool held_ = false;
    bool linked_ = false;
    std::coroutine_handle<> handle_;
    Request* previous_ = nullptr;
    Request* next_ = nullptr;
  };

  bool empty() const { return oldest_ == nullptr; }

 private:
  /// Does an older request (up to `until`, or all) stand in the way?
  bool blocked(const Request& request, const Request* until) const {
    for (const Request* other = oldest_; other != until; other = other->next_) {
      if (other->conflicts(request)) return true;
    }
    return false;
  }
  void append(Request& request) {
    request.linked_ = true;
    request.previous_ = newest_;
    request.next_ = nullptr;
    (newest_ ? newest_->next_ : oldest_) = &request;
    newest_ = &request;
    if (!request.held_) ++waiting_;
  }
  void remove(Request& request) {
    (request.previous_ ? request.previous_->next_ : oldest_) = request.next_;
    (request.next_ ? request.next_->previous_ : newest_) = request.previous_;
    request.linked_ = false;
    if (!request.held_) --waiting_;
  }
  void wake() {
    if (waiting_ == 0) return;
    for (Request* request = oldest_; request; request = request->next_) {
      if (request->held_ || blocked(*request, request)) continue;
      request->held_ = true;
      --waiting_;
      ready_->push(request->handle_);
    }
  }

  ReadyQueue* ready_;
  Request* oldest_ = nullptr;
  Request* newest_ = nullptr;
  uint64_t waiting_ = 0;
};

}  // namespace byre
