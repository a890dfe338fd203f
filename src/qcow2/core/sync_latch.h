// SPDX-License-Identifier: Apache-2.0
/// SyncLatch: syncs the image's file and its data file, and stops all writing for good when that
/// fails.
///
/// After a failed sync nobody knows what of the earlier writes is durable, and Linux may tell the
/// next sync that all is well.  So the first failure latches: whoever is about to write asks
/// error() and fails with it until the image is opened again; reads go on (docs/engine.md, M4).
/// Invariant: once error() is set, it stays as it is.
/// Cost: nothing but the sync.
/// Not here: which order syncs stand for (committer, header state).
#pragma once

#include <string_view>

#include "block/device.h"

namespace byre {

class SyncLatch {
 public:
  /// `data` is the external data file, or null.  Both outlive this.
  SyncLatch(Device& file, Device* data) : file_(file), data_(data) {}
  SyncLatch(const SyncLatch&) = delete;

  /// The error of the sync that failed, if one has.
  const Error& error() const { return error_; }
  explicit operator bool() const { return bool(error_); }
  /// Nobody knows any more what the disk says, because of `error`; `what` begins the sentence.
  void latch(const Error& error, std::string_view what = "a sync failed");
  Task<void> sync(IoTag tag);
  /// Nothing without a data file.
  Task<void> sync_data(IoTag tag);

 private:
  Device& file_;
  Device* data_;
  Error error_;
};

}  // namespace byre
