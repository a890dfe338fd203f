// SPDX-License-Identifier: Apache-2.0
/// Quiesced: the right to change what the disk is found by.
///
/// Whoever has it holds all guest clusters exclusively: no request that changes the map runs, none
/// will begin, and what those before staged can be committed to the last.  Reads go on: they hold
/// pins, and go by tables that stay until the pins are gone (docs/engine.md, H3).
///     Quiesced quiesced(engine, Quiesced::Of::everything);
///     co_await quiesced.begin();      // ends when `quiesced` dies
/// Locks are taken in one order everywhere: shape, disk size, clusters (L5).  Whoever holds the
/// first ones already asks for the rest.
#pragma once

#include "qcow2/core/engine.h"

namespace byre {

class Quiesced {
 public:
  enum class Of : uint8_t {
    clusters,    ///< The caller holds the mutex of shape already.
    everything,  ///< Shape, disk size and clusters: no write, resize or change of bitmaps runs.
  };
  explicit Quiesced(Engine& engine, Of what = Of::clusters)
      : engine_(engine),
        what_(what),
        size_(engine.disk_size, 0, 1, RangeLock::Mode::exclusive),
        clusters_(engine.clusters, 0, UINT64_MAX, RangeLock::Mode::exclusive) {}
  Quiesced(const Quiesced&) = delete;

  Task<void> begin() {
    if (what_ == Of::everything) {
      shape_ = co_await engine_.shape.lock();
      co_await size_;
    }
    co_await clusters_;
  }
  bool held() const { return clusters_.held(); }
  /// What is staged becomes durable, refcounts included, even where they are lazy.
  Task<void> commit() { co_await engine_.committer->flush_all(); }
  /// Likewise, and nothing is left in limbo: disk and memory say the whole truth.
  Task<void> settle() {
    co_await engine_.committer->flush_all();
    co_await engine_.allocator->drain_limbo();
    co_await engine_.committer->flush_all();
  }

 private:
  Engine& engine_;
  const Of what_;
  Mutex::Hold shape_;
  RangeLock::Request size_;
  RangeLock::Request clusters_;
};

}  // namespace byre
