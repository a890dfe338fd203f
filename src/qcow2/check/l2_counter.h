// SPDX-License-Identifier: Apache-2.0
/// L2Counter: counts what the entries of an L2 table refer to, and says what is wrong with them.
///
/// Invariant: count() runs on one thread at a time, so counts need no lock.
/// Cost: nearly all entries are data in a cluster that nothing has claimed, and have a way of their
/// own.
/// Not here: COPIED flags (copied_flags.h), whether streams inflate (compressed_check.h).
#pragma once

#include "qcow2/check/scan_context.h"

namespace byre {

/// The bytes that an L2 entry for compressed data claims.
struct CompressedRange {
  uint64_t at = 0;
  uint64_t length = 0;
};
CompressedRange compressed_range(uint64_t descriptor, const Geometry& geometry);

class L2Counter {
 public:
  explicit L2Counter(ScanContext& scan) : scan_(scan), result_(scan.result()), plain_(result_) {}
  /// On one thread at a time.
  void count(const L2Use& use, Bytes table);

 private:
  /// How the data of the entries before lie, to tell what is fragmented.
  struct Run {
    uint64_t next = 0;
  };
  /// What nearly all entries are.
  struct Plain {
    explicit Plain(const ScanResult& result);
    bool possible;
    uint32_t cluster_bits;
    uint64_t size;
    uint64_t never;  ///< Bits that are not set.
    uint64_t last;   ///< Where a cluster may begin at most.
  };

  const Geometry& geometry() const { return scan_.geometry(); }
  bool count_plain(const L2Use& use, uint64_t guest, uint64_t descriptor, Run& run);
  void count_entry(const FoundEntry& found, Run& run);
  void check_subclusters(const FoundEntry& found, bool has_host);
  void count_compressed(const FoundEntry& found);
  void count_host(const FoundEntry& found, HostOffset at, Run& run);

  ScanContext& scan_;
  ScanResult& result_;
  const Plain plain_;
};

}  // namespace byre
