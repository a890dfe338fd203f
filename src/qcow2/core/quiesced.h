// SPDX-License-Identifier: Apache-2.0
/// Quiesced: the right to change what the disk is found by.
///
/// Whoever has it holds all guest clusters exclusively: no request that changes the map runs, none
/// will begin, and what those before staged can be committed to the last.  Reads go on: they hold
/// pins, and go by tables that stay until the pins are gone (docs/engine.md, H3).
///     Quiesced quiesced(engine);
///     co_await quiesced.begin();      // ends when `quiesced` dies
/// Locks are taken in one order everywhere: shape, disk size, clusters (L5).  Whoever shows a
/// ShapeChange, which holds the first, asks for the clusters alone.
/// Invariant: while it is held, nobody else changes the map.
/// Cost: a mutex and two range locks at most; it waits for the changes that run, and later changes
/// wait for its end.
/// Not here: locks on parts of the disk (guards.h), the mutex and the disk's size alone
/// (shape_change.h).
#pragma once

#include <optional>

#include "qcow2/core/shape_change.h"

namespace byre {

class Quiesced {
 public:
  /// Shape, disk size and clusters: no write, resize or change of bitmaps runs.
  explicit Quiesced(Engine& engine)
      : engine_(engine),
        shape_(std::in_place, engine),
        size_(std::in_place, *shape_),
        clusters_(engine.clusters, {0}, {UINT64_MAX}) {}
  /// The clusters, for whoever changes the shape.
  explicit Quiesced(const ShapeChange& change)
      : engine_(change.engine()), clusters_(engine_.clusters, {0}, {UINT64_MAX}) {
    BYRE_ASSERT(change.held());
  }
  Quiesced(const Quiesced&) = delete;

  Task<void> begin() {
    if (shape_) {
      co_await shape_->begin();
      co_await *size_;
    }
    co_await clusters_;
  }
  bool held() const { return clusters_.held(); }
  /// All of them.
  const ExclusiveRange& clusters() const { return clusters_; }
  /// What is staged becomes durable, refcounts included, even where they are lazy.
  Task<void> commit() { co_await engine_.committer->flush_all(); }
  /// Likewise, and nothing is left in limbo: disk and memory agree.
  Task<void> settle() {
    co_await engine_.committer->flush_all();
    co_await engine_.allocator->drain_limbo();
    co_await engine_.committer->flush_all();
  }

 private:
  Engine& engine_;
  std::optional<ShapeChange> shape_;
  std::optional<SizeChange> size_;
  ExclusiveRange clusters_;
};

}  // namespace byre
