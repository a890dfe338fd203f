// SPDX-License-Identifier: Apache-2.0
/// MetadataScan: one walk over all of an image's metadata: what refers to what, and what the
/// refcounts say.
///
///   1. The references are counted: from the header, the active L1 table, each snapshot's
///      (l1_scan.h, snapshot_scan.h), the snapshot table, the encryption header, the bitmaps
///      (bitmap_scan.h), the refcount table.  Each L2 table is read once, in the order of the file,
///      with a weight: how many L1 entries point to it (l2_counter.h).
///   2. The refcount blocks are read and compared (refcount_compare.h).
///   3. Only if that found one out of order, the L2 tables are read again for their COPIED flags
///      (copied_flags.h).
///
/// An image may be hostile: a table that begins behind the end of the file is a finding and is not
/// read; nothing is followed twice; an owner that meets another is reported and not followed into
/// large tables, so the time follows what is really there.
/// Invariant: nothing in this folder writes to the image.
/// Cost: one read of each table and refcount block, and a second read of the L2 tables for step 3.
/// Memory: scan_result.h.
/// Not here: repairs (repair/check.h), a check of an image in use (ops/online_check.h).
#pragma once

#include <utility>
#include <vector>

#include "qcow2/check/scan_context.h"

namespace byre {

/// Scans, and checks further what `options` asks for: streams, bitmaps, snapshots, whom findings
/// touch.  Fails only when there is no way into the image at all, or when it was stopped.
Task<ScanResult> scan_metadata(Device& file, const CheckOptions& options);

/// The scan in two parts, for a check of an image that is in use (ops/online_check.h).
class MetadataScan {
 public:
  MetadataScan(Device& file, const CheckOptions& options) : context_(file, options) {}

  /// Reads what everything hangs on: header, L1 tables, snapshot table, bitmap tables; after it
  /// all that is counted is metadata.  Refcount structures are not among it yet.
  Task<void> begin();
  /// Between the parts: the clusters that are counted, ascending.
  std::vector<HostCluster> counted() const;
  /// Counts one that nothing refers to so far.
  void count_if_new(HostCluster cluster);
  Task<void> end();

  /// After the end: for further checks (compressed_check.h, bitmap_check.h, snapshot_check.h,
  /// owners.h).
  ScanContext& context() { return context_; }
  ScanResult take() { return std::move(context_.result()); }

 private:
  ScanContext context_;
};

}  // namespace byre
