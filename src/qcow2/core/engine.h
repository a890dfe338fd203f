// SPDX-License-Identifier: Apache-2.0
/// Engine: what an open image consists of, and the steps that every change of it is made of.
///
/// What reads, writes and operations are (guest/, ops/) are functions over this, and over the
/// little that they keep themselves (guest/guest_disk.h).  A guest request goes like this
/// (docs/engine.md has the rules by name):
///   read     admitted, pins the epoch, looks its clusters up, reads them, unpins.  Takes no lock.
///   write    in place under a shared range lock; else exclusive: reserve, fill, publish.
///   zero     whole units are published as zeros under an exclusive lock; the edges are written.
///   flush    commits what is staged, and syncs.
///
/// map         guest cluster -> what it is: committed tables, and over them what is staged
/// allocator   host clusters: free, reserved, referenced, in limbo
/// stages      what requests have changed since the last commit, by generation
/// epochs      which I/O may still be using a host cluster
/// store       the one door of guest bytes
/// committer   makes a generation durable
/// header      the header's sector, and its one writer
/// clusters    who may change which guest clusters now
/// disk_size   shared: requests that depend on where the disk ends; exclusive: its change
/// shape       held by the one change of size, tables, snapshots or bitmaps that runs
///
/// Invariant: a host cluster is reused only when the removal of its pointer is durable and all I/O
/// that resolved to it has ended; nothing is pointed to before its contents and refcount are
/// durable.  Locks are taken in the order shape, disk_size, clusters (L5).
/// Threads: belongs to one reactor.
/// Cost: a read does no metadata I/O while the L2 slices that it needs are in memory.
/// Memory: options.table_cache_size, divided among the images of a backing chain; the L1 and
/// refcount tables (32 and 8 MiB at most), one byte for each host cluster of the 2 GiB regions (at
/// 64 KiB clusters) that were written to, staged entries up to options.staged_max.
/// Not here: opening (open.cc), what requests do (guest/), operations on the whole image (ops/).
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "block/point_in_time.h"
#include "coro/event.h"
#include "coro/gate.h"
#include "coro/scope.h"
#include "coro/semaphore.h"
#include "qcow2/core/allocator.h"
#include "qcow2/core/commit.h"
#include "qcow2/core/data_store.h"
#include "qcow2/core/epochs.h"
#include "qcow2/core/guards.h"
#include "qcow2/core/header_state.h"
#include "qcow2/core/image_header.h"
#include "qcow2/core/map.h"
#include "qcow2/core/reference_gate.h"
#include "qcow2/core/stages.h"
#include "qcow2/core/sync_latch.h"
#include "qcow2/image_options.h"

namespace byre {

/// What an image does with what is below it: it counts on its staying as it is.
inline constexpr Permissions kShowsThrough{.uses = Access::reading(), .shares = Access::reading()};

class Engine {
 public:
  Engine(Child below, ImageHeader head, ImageOptions options);
  Engine(const Engine&) = delete;
  /// close() has ended, or abandon() was called; asserted.
  ~Engine();

  const std::string& name() const { return file->name(); }
  const Geometry& geometry() const { return head.geometry; }
  uint64_t cluster_size() const { return head.geometry.cluster_size(); }
  /// Must the external data file stay valid as a raw image?
  bool has_raw_data() const {
    return data && !backing && (head.header.autoclear & kRawDataFile) != 0;
  }
  /// Of a write to this place of the guest's address space: VM state lies behind the disk.
  IoTag write_mark(GuestOffset at) const {
    return at.value < size ? IoTag::write_guest : IoTag::vm_state_write;
  }

  /// The error for a request that passes the end of the disk.
  Error out_of_range(std::string_view what, uint64_t offset, uint64_t length) const;
  /// Fails when the image is open read-only, or nothing is written any more (M4).
  Result<void> check_can_write() const;
  /// Waits until all references are known (V), and bounds what is staged: whoever comes when it is
  /// full commits first, and gets that commit's error.  Before any lock.
  Task<void> throttle_staging();
  /// What throttle_staging() waits for.
  bool can_stage_now() const {
    return references.is_open() &&
           stages.open.entries.size() < std::max<uint64_t>(options.staged_max, 1);
  }
  /// Makes it possible to give up what `old` refers to.  A damaged image may map guest data to
  /// metadata; that is never given up for a guest (M5).
  Task<void> load_refcounts_of(const Mapping& old);
  /// Sees to an L2 table of our own for the range, which lies inside one, with a second try once
  /// freed space has been made usable.
  Task<void> prepare_table(const ExclusiveRange& range);
  /// After a real ENOSPC: what has been freed is made usable.  The caller holds no pin.
  Task<void> reclaim_space();
  /// The next lookup of a cluster of the range sees `mapping`; host clusters that it no longer
  /// refers to go to limbo (H2).
  void publish(const ExclusiveRange& range, GuestCluster cluster, const Mapping& mapping,
               const Mapping& old);
  /// Something was staged: a commit follows within options.commit_delay (M6).
  void schedule_commit();
  /// Runs beside the requests, with a pass of `background`; end_requests() waits for it.
  void spawn(Task<void> task);
  /// The same for what takes long, and takes a pass for each of its parts.
  void spawn_long(Task<void> task);
  /// Commits until nothing is staged and limbo is empty.
  Task<void> settle();
  /// The same, and what runs beside requests, or sleeps, has ended: before it is reopened.
  Task<void> end_own_work();
  /// The device that is above: requests reach the disk through it alone.
  void belong_to(Device& image);
  /// Errc::busy when others do with its file, data file or backing device what it cannot allow.
  Result<void> claim_devices();

  // The end, in this order.
  /// No request is admitted any more; those that run, and what runs beside them, end.
  Task<void> end_requests();
  /// Commits until nothing is left over, the decrements of the last commit included, clears the
  /// dirty bit, and gives back what the file was grown ahead: no leak after it (L4).
  Task<void> commit_the_rest();
  /// Closes what is below; gives the first error.
  Task<void> close_below();
  bool closed() const { return closed_; }
  /// Makes durable what a process that died may have left in the caches of files that this one does
  /// not write, once: guests may have read it (docs/engine.md, C3).
  Task<void> flush_what_is_read(IoTag tag);
  /// The simulated process died: forget everything without I/O.
  void abandon();

  /// Work that is done beside requests: commits, punches, windows of a scan or a check.
  Gate background;
  Child file_edge;          ///< To `file`.
  PointInTimeFilter* file;  ///< Over the image's file.
  Reactor& reactor;
  Child data;     ///< The external data file, or none.
  Child backing;  ///< Or none.
  ImageHeader head;
  ImageOptions options;
  std::vector<Snapshot> snapshots;
  uint64_t size = 0;     ///< Of the disk, in bytes.
  uint64_t shrinks = 0;  ///< How often the disk became smaller, or did not after all.
  uint64_t length_at_open = 0;

  Stages stages;
  Epochs epochs;
  MetadataSet metadata;
  DataStore store;
  RangeLock clusters;
  Mutex shape;
  Mutex check_mutex;  ///< Held by the one check that runs.
  RangeLock disk_size;
  std::unique_ptr<Map> map;
  std::unique_ptr<Allocator> allocator;  ///< Null when read-only, like the next three.
  ReferenceGate references;              ///< Changes of metadata wait here for the scan (V).
  std::unique_ptr<SyncLatch> latch;
  std::unique_ptr<HeaderState> header;
  std::unique_ptr<Committer> committer;
  ImageStats stats;
  bool closing = false;
  uint64_t running = 0;  ///< Requests.
  /// A guest cluster no longer uses its place in the data file.
  std::function<void(GuestCluster)> on_removed;

 private:
  friend class Request;
  Task<void> background_commit();
  Task<void> in_background(Task<void> task);
  Task<void> in_parts(Task<void> task);

  Scope background_;
  Event idle_;  ///< The last request has ended.
  bool closed_ = false;
  bool flushed_what_is_read_ = false;
  bool commit_scheduled_ = false;
  Op timer_;
};

/// A request that was admitted: it counts while it runs, so that close() can wait for all of them;
/// those that come after are refused.
///     const Request request(engine);
///     co_await request.begin();
class Request {
 public:
  explicit Request(Engine& engine) : engine_(engine) { ++engine_.running; }
  Request(const Request&) = delete;
  ~Request() {
    if (--engine_.running == 0 && engine_.closing) engine_.idle_.notify();
  }
  /// Fails when the image is closing.
  Result<void> begin() const;

 private:
  Engine& engine_;
};

}  // namespace byre
