// SPDX-License-Identifier: Apache-2.0
/// Stuck: a disk of another server that stops to answer.
///
/// From the request on that was asked for, changes and flushes wait: until the disk is given up,
/// and then they fail, or until set_free(), and then they go down.  Reads are answered.
/// Not here: connections (remote/nbd_client.h).
#pragma once

#include "block/filter.h"
#include "block/gives_up.h"
#include "coro/event.h"

namespace byre {

class Stuck final : public Filter, public GivesUp {
 public:
  Stuck(Child below, uint64_t answers)
      : Filter(std::move(below)), answers_(answers), ended_(reactor().ready()) {}

  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    co_await answer();
    co_await below().write(offset, data, options);
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override {
    co_await answer();
    co_await below().zero(offset, length, options);
  }
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override {
    co_await answer();
    co_await below().discard(offset, length, options);
  }
  Task<void> flush(IoTag tag) override {
    co_await answer();
    co_await below().flush(tag);
  }

  void give_up() override {
    given_up_ = true;
    ended_.set();
  }
  void set_free() { ended_.set(); }
  bool given_up() const { return given_up_; }

 private:
  Task<void> answer() {
    if (answers_ == 0) co_await ended_.wait();
    if (answers_ != 0) --answers_;
    if (given_up_) co_await fail(Error(Errc::io, "given up"));
  }

  uint64_t answers_;  ///< So many more.
  Event ended_;
  bool given_up_ = false;
};

}  // namespace byre
