// SPDX-License-Identifier: Apache-2.0
/// CompressedPacker: where compressed streams go: one behind the other, to the byte, across host
/// clusters.
///
/// The cursor points behind the last stream.  The next one begins there if the host cluster has
/// room for it, or if the cluster behind it comes free for the rest; otherwise in a fresh cluster.
/// Every host cluster that a stream touches gets one reference for it, taken when the stream is
/// placed, before anything is written (P3); a refcount at its maximum ends the cluster (A5).
///
/// A run is what lies without a gap: streams that were placed and wait to be written are one
/// buffer, and whoever comes first while no write of the run is under way writes all of it, to the
/// end of a sector.  So many streams are one I/O, and a sector that two streams share is composed
/// here, in memory, and never in flight twice (L6, P2): the last, incomplete sector of a write
/// stays behind and begins the next one. When a write fails, those in it get the error, and what
/// waits behind it is placed anew: nothing follows bytes that may still land.
///
/// Invariant (P1): the cursor's cluster has a reference that is not in limbo.  The allocator ends
/// the cursor in the same step in which the last of those goes away (Allocator::packing()), so no
/// stream is ever put into a cluster that is or will become free.  A stream that is waiting to be
/// written has its references: dropped unwritten, it ends its run, so that its bytes are never
/// written to clusters that are no longer its own.
/// Streams are placed in the order in which their requests took a ticket of order(), however long
/// compressing them took. Cost: memory for what waits; a write for each group.  Not here:
/// compressing, locks on guest clusters, staging (compress.cc).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "coro/event.h"
#include "coro/semaphore.h"
#include "format/l2.h"
#include "qcow2/core/allocator.h"
#include "qcow2/guest/arrival_order.h"

namespace byre {

class CompressedPacker {
  struct Run;

 public:
  /// Puts bytes into the image's file, and holds a pin while it does (H1).
  class Writer {
   public:
    virtual Task<void> write_packed(HostOffset at, Bytes bytes) = 0;

   protected:
    ~Writer() = default;
  };
  CompressedPacker(ReadyQueue& ready, const Geometry& geometry, Allocator& allocator,
                   Writer& writer);
  CompressedPacker(const CompressedPacker&) = delete;
  ~CompressedPacker();

  /// A stream with a place and the references for it.
  class [[nodiscard]] Placed {
   public:
    Placed() = default;
    Placed(Placed&& other) noexcept = default;
    Placed& operator=(Placed&& other) noexcept;
    ~Placed();

    Mapping mapping() const { return compressed_mapping(at_, size_); }
    /// It is pointed to from here on.
    void keep();

   private:
    friend class CompressedPacker;
    HostOffset at_;
    uint64_t size_ = 0;
    std::shared_ptr<Run> run_;
    Reservation shared_;  ///< The cluster that it begins in, with streams before it.
    Reservation fresh_;   ///< The cluster that it goes on or begins in.
  };

  /// Requests place their streams in the order in which they came.
  ArrivalOrder& order() { return order_; }

  /// Finds a place for a stream shorter than a cluster, and takes a copy.  Errc::no_space as from
  /// Allocator::reserve(); Errc::unsupported when no entry can point so far into the file.
  Task<Placed> place(Bytes stream);
  /// Waits until it is written.  False: its run ended before it was issued; place it again.
  Task<bool> write(const Placed& placed);

 private:
  bool has_cursor() const { return run_ && allocator_.packing() == cluster_; }
  Placed append(HostOffset at, Bytes stream);
  Task<void> lead(Run& run);

  ReadyQueue& ready_;
  const Geometry& geometry_;
  Allocator& allocator_;
  Writer& writer_;
  Mutex mutex_;  ///< Held while a place is found: that may wait for space.

  // The cursor.
  std::shared_ptr<Run> run_;  ///< Null: there is none.
  HostCluster cluster_{};
  uint64_t used_ = 0;  ///< Bytes of the cluster, 1 to all of them.

  ArrivalOrder order_;
};

}  // namespace byre
