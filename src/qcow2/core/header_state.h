// SPDX-License-Identifier: Apache-2.0
/// HeaderState: the header of an image that is open for writing, and the one writer of its sector.
///
/// Invariant: unless the latch is set, head() is what the disk says, durably.  A change edits its
/// fields in a copy of the sector, writes and syncs that, and only then changes head(); changes
/// come one after another, each whole, so that none puts back or carries along what belongs to
/// another.
/// When the write fails, nothing has happened: what failed may still land, so it is synced out of
/// the way first, then the sector is written as it was, and synced.  When that fails, or a sync
/// does, nobody knows what the disk says, and all writing ends (docs/engine.md, M4).
/// An edit that changes nothing costs nothing; any other one write and one sync.
/// Not here: which clusters a change gives up or puts to use, and in which order (the callers).
#pragma once

#include "coro/semaphore.h"
#include "format/header_edit.h"
#include "qcow2/core/image_header.h"
#include "qcow2/core/sync_latch.h"

namespace byre {

class Quiesced;

class HeaderState {
 public:
  HeaderState(ReadyQueue& ready, Device& file, SyncLatch& latch, ImageHeader& head)
      : file_(file), latch_(latch), head_(head), mutex_(ready) {}
  HeaderState(const HeaderState&) = delete;

  /// What the disk says.  The width of refcounts in `geometry` is that at the opening, even after
  /// an edit of it: an open image goes on in memory by the old one.
  const ImageHeader& head() const { return head_; }

  /// Changes fields, durably; a disk does not become smaller so.  Fails with the write's error when
  /// nothing has changed, and with the latch set when nobody knows.
  BYRE_CORO_WRAPPER Task<void> change(HeaderEdit edit);
  /// Likewise what the disk and its snapshots are found by, once nobody goes by the old tables.
  BYRE_CORO_WRAPPER Task<void> change(const Quiesced& quiesced, RootEdit edit);

  /// Something could not be put right: from now on the dirty bit is not cleared, so that the next
  /// open rebuilds the refcounts.
  void keep_dirty() { keep_dirty_ = true; }
  /// Durably?
  bool dirty() const { return head_.header.has(kDirty); }

  /// Writes to the first cluster past its first sector, where what the sector says leads to nothing
  /// or does not care; durable.  Takes its turn with the changes.
  Task<void> write_past_sector(HostOffset at, Bytes bytes);

 private:
  Task<void> apply(RootEdit edit);
  static void keep_dirty(RootEdit& edit);
  Task<void> put_back(Error why);

  Device& file_;
  SyncLatch& latch_;
  ImageHeader& head_;
  Mutex mutex_;
  bool keep_dirty_ = false;
};

}  // namespace byre
