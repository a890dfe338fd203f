// SPDX-License-Identifier: Apache-2.0
/// What a request holds while it uses guest and host clusters, as types that functions ask for.
///
/// SharedRange, ExclusiveRange   guest clusters that nobody else changes the mapping of (L1).  Who
///                               changes a mapping shows an ExclusiveRange that covers the cluster.
/// HostAccess                    host clusters that are not given to anybody else during an I/O on
///                               them (H1): a pin since before the lookup that gave them, a range
///                               lock held since then, or a reservation.  Who does I/O on host
///                               clusters shows one.
/// Guards live in the caller's frame and do not move: no heap, no coroutine.
/// Invariant: a HostAccess is made from a pin, a range or a reservation, and from nothing else.
/// Cost: that of a RangeLock; a HostAccess is empty.
/// Not here: rights to the whole image (quiesced.h), the locks' order (docs/engine.md, L5).
#pragma once

#include "base/units.h"
#include "coro/range_lock.h"
#include "qcow2/core/epochs.h"

namespace byre {

class Reservation;

/// The guest clusters [first, end); `co_await range` takes them.
class SharedRange : public RangeLock::Request {
 public:
  SharedRange(RangeLock& clusters, GuestCluster first, GuestCluster end)
      : Request(clusters, first.value, end.value, RangeLock::Mode::shared) {}
};

class ExclusiveRange : public RangeLock::Request {
 public:
  ExclusiveRange(RangeLock& clusters, GuestCluster first, GuestCluster end)
      : Request(clusters, first.value, end.value, RangeLock::Mode::exclusive) {}

  GuestCluster first_cluster() const { return {first()}; }
  /// Nobody else changes `cluster` now.
  bool covers(GuestCluster cluster) const {
    return held() && mode() == RangeLock::Mode::exclusive && first() <= cluster.value &&
           cluster.value < end();
  }
};

class HostAccess {
 public:
  // By a pin, a lock or a reservation, and in no other way.
  HostAccess(const Epochs::Pin&) {}     // NOLINT(google-explicit-constructor)
  HostAccess(const SharedRange&) {}     // NOLINT(google-explicit-constructor)
  HostAccess(const ExclusiveRange&) {}  // NOLINT(google-explicit-constructor)
  HostAccess(const Reservation&) {}     // NOLINT(google-explicit-constructor)
};

}  // namespace byre
