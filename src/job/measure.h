// SPDX-License-Identifier: Apache-2.0
/// Measure: how large is the file that a conversion will make?
///
/// There are two answers:
///  * bound_of(): a sum, as qemu-img makes it: header, all L1 and L2 tables that the disk could
///    need, the refcounts of a disk that is full, and the clusters of the target in which the
///    source's map has data.  No conversion by byre makes more (tests/interop/measure_test.py).
///  * exact_size(): the file that byre makes.  From the map alone it is the same sum with the L2
///    tables and refcounts that are needed; where the layout depends on more (backing and data
///    files, a refcount table that has to grow), and where data are to be read because they may be
///    zeros, it runs the conversion itself, into a file that keeps metadata and forgets data.
/// Cost: the map of the source.  A conversion that is run takes microseconds for each cluster and
/// keeps the target's metadata in memory, so without reading it is for disks of kSimulatedMax
/// clusters at most.
/// Not here: opening the source (open.h), the options' words (cli/measure.cc).
#pragma once

#include <cstdint>
#include <optional>

#include "base/progress.h"
#include "job/open.h"
#include "qcow2/ops/create.h"

namespace byre {

struct MeasureTarget {
  DiskFormat format = DiskFormat::raw;
  /// `size` is that of the disk; of the rest a raw target takes nothing.
  CreateOptions image;
};

struct FileSizes {
  uint64_t required = 0;
  uint64_t fully_allocated = 0;  ///< When every cluster of the disk has data.
  /// With persistent bitmaps copied, so much more; none: there is no room for bitmaps in the target
  /// or none in the source.
  std::optional<uint64_t> bitmaps;
};

/// All metadata of an image whose disk is full.  Errc::invalid for a disk that is too large.
Result<uint64_t> metadata_size(const CreateOptions& image);

/// The file of a disk that is full.
Result<uint64_t> full_size(const MeasureTarget& target);

/// What of a target the map of a disk needs.
struct MapCounts {
  uint64_t clusters = 0;  ///< In which it has data.
  uint64_t tables = 0;    ///< L2 tables over these.
};
Task<MapCounts> count_map(const Disk& source, const CreateOptions& image, Progress& progress);

/// What the bitmaps of `source` take in the target; none where one of the two cannot have any.
std::optional<uint64_t> bitmaps_size(const MeasureTarget& target, const Disk& source);

/// The sum, without bitmaps; `source` is null for a disk that will be empty.
Task<FileSizes> bound_of(const MeasureTarget& target, const Disk* source, Progress& progress);

/// The most clusters of a target that is measured by a conversion without reading.
inline constexpr uint64_t kSimulatedMax = 1 << 20;

struct ExactOptions {
  /// Zeros among the data are looked for, as a conversion does; otherwise all data are taken for
  /// something else.
  bool read_data = false;
  bool compressed = false;  ///< Needs `read_data`.
  bool bitmaps = false;     ///< Those of the source, which is an image.
};
struct ExactSize {
  uint64_t file = 0;
  uint64_t bitmaps = 0;  ///< So much more with the persistent bitmaps of the source copied.
};
/// The file, to the byte; none where only a conversion could tell, and it would take too long.
Task<std::optional<ExactSize>> exact_size(const MeasureTarget& target, const Disk* source,
                                          FileOpener& opener, Reactor& reactor,
                                          ExactOptions options, Progress& progress);

}  // namespace byre
