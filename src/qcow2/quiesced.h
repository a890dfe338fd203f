// SPDX-License-Identifier: Apache-2.0
/// Quiesced: the right to change what the disk is found by.
///
/// Whoever has it holds all guest clusters exclusively: no request that changes the map runs, none
/// will begin, and what those before staged can be committed to the last.  Reads go on: they hold
/// pins, and go by tables that stay until the pins are gone (docs/engine.md, H3).
///     Quiesced quiesced(locks, committer, allocator);
///     co_await quiesced.begin();      // ends when `quiesced` dies
/// Locks are taken in one order everywhere: the mutex of shape changes, the disk's size, then this
/// (L5).
#pragma once

#include "coro/range_lock.h"
#include "qcow2/commit.h"

namespace byre {

class Quiesced {
 public:
  Quiesced(RangeLock& clusters, Committer& committer, Allocator& allocator)
      : committer_(committer),
        allocator_(allocator),
        lock_(clusters, 0, UINT64_MAX, RangeLock::Mode::exclusive) {}
  Quiesced(const Quiesced&) = delete;

  /// Waits for all clusters.
  Task<void> begin() { co_await lock_; }
  bool held() const { return lock_.held(); }
  /// What is staged becomes durable, refcounts included, even where they are lazy.
  Task<void> commit() { co_await committer_.flush_all(); }
  /// Likewise, and nothing is left in limbo: disk and memory say the whole truth.
  Task<void> settle() {
    co_await committer_.flush_all();
    co_await allocator_.drain_limbo();
    co_await committer_.flush_all();
  }

 private:
  Committer& committer_;
  Allocator& allocator_;
  RangeLock::Request lock_;
};

}  // namespace byre
