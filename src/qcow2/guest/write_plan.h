// SPDX-License-Identifier: Apache-2.0
/// The plan of a write under an exclusive lock: which clusters are written how, what must be
/// composed around the caller's bytes, and what each cluster is afterwards.
///
/// Pure functions of the old mappings: no I/O, no engine.  The writer (write.cc) is a loop over
/// them:
///     for (; !rest.old.empty(); rest = rest.after(segment.count)) {
///       segment = first_segment(rest);      // how its first clusters are written
///       fill = plan_fill(...);              // at most three writes to the host
///       ... perform them, and only then publish mapping_after() of each cluster (M3) ...
///     }
/// Invariants, which write_plan_test.cc walks a small space for: each byte of the request is
/// written once; whoever reads by the new mappings finds the caller's bytes, and around them what
/// was there before (M3b); a host cluster that is not ours alone is never written to.
/// Cost: arithmetic; no heap.  Not here: reserving clusters, who holds which lock (write.cc),
/// streams (compress.h), zeros (zero.h).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "base/bytes.h"
#include "format/extended_l2.h"
#include "format/l2.h"
#include "format/types.h"

namespace byre {

/// Which file guest bytes lie in.
enum class DataFile : uint8_t {
  image,
  external,      ///< Each cluster at its own offset of an external data file.
  external_raw,  ///< Likewise, and that file reads as the disk even where there is no entry.
};

/// A part of a write inside one L2 table, and what its clusters were before.
struct WritePiece {
  const Geometry* geometry;
  DataFile file = DataFile::image;
  uint64_t backing_end = 0;  ///< From this offset of the disk on nothing shows through.
  GuestOffset at;
  Bytes data;                    ///< The caller's bytes.
  std::span<const Mapping> old;  ///< Of each cluster that they touch.

  GuestOffset end() const { return at + data.size(); }
  GuestCluster first() const { return geometry->cluster_of(at); }
  GuestOffset start_of(uint64_t index) const { return geometry->start_of(first() + index); }
  /// The piece without what lies behind its first `count` clusters, or without those.
  WritePiece before(uint64_t count) const;
  WritePiece after(uint64_t count) const;
};

enum class WriteMethod : uint8_t {
  in_place,           ///< The units are ours alone and data already.
  fill_preallocated,  ///< The cluster is ours alone, but not all of the units are data.
  external,           ///< To the clusters' own places in an external data file.
  fresh,              ///< To host clusters that are to be reserved.
};

struct WriteSegment {
  WriteMethod method;
  uint64_t count;  ///< Clusters; one if in place or preallocated.
};

/// How the first clusters of a piece are written.
WriteSegment first_segment(const WritePiece& piece);
/// May everything be overwritten where it is?
bool all_in_place(const WritePiece& piece);
/// May bytes [within, within + length) of a cluster be overwritten where they are?
inline bool writable_in_place(const Mapping& mapping, uint64_t within, uint64_t length,
                              const Geometry& geometry) {
  if (!mapping.copied || !mapping.host) return false;
  const uint32_t units = units_touched(within, length, geometry);
  return (mapping.allocated & units) == units;
}

/// The host clusters of a segment, in a row.
struct HostRun {
  HostCluster first;
  bool first_zero = false;  ///< Fresh, and reads as zeros until it is written to (A4).
  bool last_zero = false;
};
/// Where a segment lies that is not fresh.
HostRun own_place(const WritePiece& segment, WriteMethod method);

/// One write to the host.
struct HostWrite {
  GuestOffset at;
  uint64_t length = 0;
  HostOffset to;
  /// Around the caller's bytes stands what this cluster of the segment held; else there are only
  /// the caller's bytes.
  std::optional<uint64_t> around;
};

struct FillPlan {
  std::array<HostWrite, 3> writes;
  size_t count = 0;
  const HostWrite* begin() const { return writes.data(); }
  const HostWrite* end() const { return writes.data() + count; }
};

/// What is to be written, in ascending order, for a piece that is one segment.
FillPlan plan_fill(const WritePiece& segment, WriteMethod method, const HostRun& host);
/// What its cluster `index` is once that is down.
Mapping mapping_after(const WritePiece& segment, WriteMethod method, const HostRun& host,
                      uint64_t index);

}  // namespace byre
