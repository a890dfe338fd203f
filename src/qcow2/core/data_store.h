// SPDX-License-Identifier: Apache-2.0
/// DataStore: the one door of guest bytes, wherever they lie: in the image's file, or in the
/// external data file.
///
/// Bytes behind the end of the file read as zeros (traps 49 and 71).
/// Who calls shows a HostAccess: a pin since before the lookup that gave the place, a range lock,
/// or a reservation (guards.h).
/// Invariant: what goes through here never touches metadata, whatever the tables say
/// (docs/engine.md, M5): a damaged image maps guest data to a table, and that is an error, never a
/// write.
/// Cost: a lookup in the set of metadata clusters for each change.
/// Not here: which place, the order of writes, syncs (sync_latch.h), metadata.
#pragma once

#include "block/device.h"
#include "format/types.h"
#include "qcow2/core/guards.h"
#include "qcow2/core/metadata_set.h"

namespace byre {

class DataStore {
 public:
  DataStore(Device& file, const Geometry& geometry, const MetadataSet& metadata)
      : file_(file), geometry_(geometry), metadata_(metadata) {}
  DataStore(const DataStore&) = delete;

  /// Guest bytes lie in `data` from here on; it outlives this.
  void use_external(Device& data) { external_ = &data; }
  /// The file that they lie in.
  Device& device() const { return external_ ? *external_ : file_; }

  Task<void> read(HostAccess access, HostOffset at, MutableBytes bytes, IoTag tag);
  Task<void> write(HostAccess access, HostOffset at, Bytes bytes, bool fua, IoTag tag);
  /// Of zeros, all of them.
  Task<void> write_zeros(HostAccess access, HostOffset at, uint64_t length, IoTag tag);
  Task<void> zero(HostAccess access, HostOffset at, uint64_t length, ZeroOptions options);
  /// Gives the range blocks on the host.
  Task<void> allocate(HostAccess access, HostOffset at, uint64_t length);
  /// The range may become a hole; of an external data file, whose places nobody else gets.
  Task<void> discard(HostAccess access, HostOffset at, uint64_t length);

 private:
  Result<void> check(HostOffset at, uint64_t length) const;

  Device& file_;
  const Geometry& geometry_;
  const MetadataSet& metadata_;
  Device* external_ = nullptr;
};

}  // namespace byre
