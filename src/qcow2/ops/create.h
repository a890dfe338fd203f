// SPDX-License-Identifier: Apache-2.0
/// Creating an image: every choice is checked before the first byte is written.
///
/// The new image lies at the start of the file: header, refcount table, refcount blocks, L1 table;
/// its refcounts cover themselves (docs/engine.md, A1).  A preallocated one goes on with its L2
/// tables and, in the order of the disk, its data clusters; one whose data file must stay valid as
/// a raw image has the L2 tables (trap 127).  The header is written last.  Nothing is synced here:
/// the caller syncs the file, then its folder.
/// Invariant: each cluster of the image's file that the header or a table leads to is counted in
/// the refcounts.
/// Cost: preallocated, an L2 entry for each cluster is written.
/// Not here: blocks for an external data file (job/create.h), finding the backing file's size (the
/// caller).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "block/device.h"
#include "format/types.h"
#include "qcow2/ops/preallocate.h"

namespace byre {

struct CreateOptions {
  uint64_t size = 0;  ///< Of the disk, in bytes.
  uint32_t version = 3;
  uint64_t cluster_size = 64 * KiB;
  uint32_t refcount_bits = 16;
  bool extended_l2 = false;
  bool lazy_refcounts = false;
  Compression compression = Compression::deflate;
  std::string backing_file;    ///< Empty: none.
  std::string backing_format;  ///< Required with a backing file.
  std::string data_file;       ///< Empty: guest data lie in the image itself.
  bool data_file_raw = false;
  Preallocation preallocation = Preallocation::off;

  /// Does each cluster of the disk get an entry?
  bool wants_tables() const { return preallocation != Preallocation::off || data_file_raw; }
};

/// Are these options possible together?  Errc::invalid or unsupported, with what to change.
Result<Geometry> check_create(const CreateOptions& options);
/// Writes an empty image over `file`, whose old contents the caller has truncated away.
Task<void> create_image(Device& file, const CreateOptions& options);

}  // namespace byre
