// SPDX-License-Identifier: Apache-2.0
/// A small checker of the bytes of an image, independent of the engine and of the format floor: it
/// decodes everything itself, from the specification.
///
/// It counts every reference (header, refcount table and blocks, L1 and L2 tables of the active
/// disk and of each snapshot, data, each host cluster that a compressed stream touches, snapshot
/// table) and compares with the refcounts (docs/engine.md, C1 and C2). errors: a refcount below its
/// references, two owners of one host cluster, a pointer that is misaligned, beyond the end or into
/// the header, COPIED with a refcount other than 1, reserved bits. With the dirty bit set refcounts
/// and COPIED are not judged. Not here: bitmaps, LUKS, contents of clusters.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/sim_disk.h"

namespace byre {

struct ImageVerdict {
  std::vector<std::string> errors;
  uint64_t leaks = 0;          ///< Host clusters with a refcount above their references.
  uint64_t leaks_in_file = 0;  ///< Of those, not behind its end.
  uint64_t copied_drift = 0;   ///< COPIED clear although the refcount and the references are 1.
  bool dirty = false;
  uint64_t clusters = 0;  ///< Host clusters with references.

  bool sound() const { return errors.empty(); }
  std::string text() const;
};

ImageVerdict check_bytes(const SimDisk& disk);

}  // namespace byre
