// SPDX-License-Identifier: Apache-2.0
/// ShapeChange: the right to be the one change of size, tables, snapshots or bitmaps that runs; and
/// the locks on the disk's size, which come after it (docs/engine.md, L5).
///
///     ShapeChange change(engine);
///     co_await change.begin();
///     SizeChange size(change);      // nobody who depends on where the disk ends runs
///     co_await size;
/// A SizeChange, and the clusters of the whole disk (quiesced.h), are had by showing a ShapeChange,
/// so the order cannot be another.  Guest requests hold the size as it is with a KeepSize.
/// All of them end when they die.
/// Invariant: at most one ShapeChange of an engine is held at a time.
/// Cost: a mutex, a range lock.
/// Not here: the clusters of the whole disk (quiesced.h), locks on guest clusters (guards.h).
#pragma once

#include "qcow2/core/engine.h"

namespace byre {

class ShapeChange {
 public:
  explicit ShapeChange(Engine& engine) : engine_(engine) {}
  ShapeChange(const ShapeChange&) = delete;

  Task<void> begin() { hold_ = co_await engine_.shape.lock(); }
  Engine& engine() const { return engine_; }
  bool held() const { return static_cast<bool>(hold_); }

 private:
  Engine& engine_;
  Mutex::Hold hold_;
};

class SizeChange : public RangeLock::Request {
 public:
  explicit SizeChange(const ShapeChange& change)
      : Request(change.engine().disk_size, 0, 1, RangeLock::Mode::exclusive) {}
};

/// The disk's size stays as it is.
class KeepSize : public RangeLock::Request {
 public:
  explicit KeepSize(Engine& engine) : Request(engine.disk_size, 0, 1, RangeLock::Mode::shared) {}
};

/// Shown to what depends on where the disk ends: that stays, or the caller alone may change it.
class SizeKept {
 public:
  SizeKept(const KeepSize&) {}     // NOLINT(google-explicit-constructor)
  SizeKept(const ShapeChange&) {}  // NOLINT(google-explicit-constructor)
};

}  // namespace byre
