// SPDX-License-Identifier: Apache-2.0
/// A small checker of the bytes of an image, independent of the engine and of the format layer: it
/// decodes everything itself, from the specification.
///
/// It counts every reference (header, refcount table and blocks, L1 and L2 tables of the active
/// disk and of each snapshot, data, each host cluster that a compressed stream touches, snapshot
/// table) and compares with the refcounts (docs/engine.md, C1 and C2). errors: a refcount below its
/// references, two owners of one host cluster, a pointer that is misaligned, beyond the end or into
/// the header, COPIED with a refcount other than 1, reserved bits. With the dirty bit set refcounts
/// and COPIED are not judged. Bitmaps are
/// read as well: a directory, table or entry that another reader would refuse is an error, and so
/// are bits behind the end of the disk. Not here: LUKS, contents of clusters.
/// Damage that was planted, a host cluster with two owners and one reference, is not judged.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/sim_disk.h"

namespace byre {

/// A persistent bitmap as the bytes have it.
struct FoundBitmap {
  std::string name;
  uint32_t granularity_bits = 0;
  bool in_use = false;
  bool automatic = false;
  bool valid = false;  ///< Its table fits the disk.
  uint64_t cluster = 0;
  /// By table entry: 0, 1 (all ones), or 2 with the bytes in `data`.
  std::vector<int> kinds;
  std::vector<std::vector<std::byte>> data;
  bool dirty(uint64_t granule) const;
};

struct ImageVerdict {
  std::vector<std::string> errors;
  uint64_t undercounted = 0;     ///< Host clusters with a refcount below their references.
  uint64_t copied_shared = 0;    ///< Entries with COPIED whose cluster has a refcount above 1.
  uint64_t leaks = 0;            ///< Host clusters with a refcount above their references.
  uint64_t leaks_in_file = 0;    ///< Of those, not behind its end.
  uint64_t copied_mismatch = 0;  ///< COPIED clear although the refcount and the references are 1.
  bool dirty = false;
  uint64_t clusters = 0;  ///< Host clusters with references.
  uint64_t size = 0;      ///< Of the disk.
  std::vector<FoundBitmap> bitmaps;

  bool sound() const { return errors.empty(); }
  std::string text() const;
};

/// `aliased`: the number of the host cluster that has two owners on purpose; 0: none has.
ImageVerdict check_bytes(const SimDisk& disk, uint64_t aliased = 0);

}  // namespace byre
