// SPDX-License-Identifier: Apache-2.0
/// Reading the disk.
///
/// A read holds one pin from before its first lookup until its last I/O has ended, and takes no
/// lock (docs/engine.md, H1).  Clusters that follow each other on the host are one I/O.
/// Invariant: no host cluster that a read has looked up is given to anybody else before its I/O has
/// ended.
/// Cost: for plain data one I/O for each run of clusters on the host, and a table load where a
/// slice is not in memory.
/// Not here: what its ranges are (status.h), the VM state (vm_state.h), the cache of decompressed
/// clusters (decompressed_cache.h).
#pragma once

#include "block/device.h"
#include "format/l2.h"
#include "qcow2/core/guards.h"

namespace byre {

class GuestDisk;

Task<void> read_disk(GuestDisk& disk, GuestOffset offset, MutableBytes data, IoTag tag);

// For those who write.
/// What a read is for.
struct ReadFor {
  ReadFor(IoTag kind) : tag(kind) {}  // NOLINT: a tag alone says it nearly always.
  ReadFor(IoTag kind, bool last) : tag(kind), last_use(last) {}
  IoTag tag;
  bool last_use = false;  ///< Of a compressed stream, which then waits for no other reader.
};
inline const ReadFor kCopyUp{IoTag::copy_up_read, true};
/// Guest bytes wherever they are, also behind the disk.
Task<void> read_pinned(GuestDisk& disk, GuestOffset offset, MutableBytes data, IoTag tag);
/// The bytes of one cluster, or a part of it, as `mapping` says.
Task<void> read_mapped(GuestDisk& disk, HostAccess access, const Mapping& mapping,
                       GuestOffset offset, MutableBytes data, ReadFor read);
/// Do these units, read from anywhere but a host cluster, give zeros?
bool reads_zero(const GuestDisk& disk, const Mapping& mapping, uint32_t units,
                GuestOffset cluster_start);

}  // namespace byre
