// SPDX-License-Identifier: Apache-2.0
/// Preallocation: clusters that a disk gets before anybody writes to them.
///
/// metadata  each guest cluster gets a host cluster, or its place in the data file, and an entry:
///           writing there changes no table any more.
///   falloc  and the host clusters have blocks, so that the host's file system cannot run full.
///   full    and zeros were written to them.
/// Standard entries are plain data, so their clusters are zeros: fresh ones are (A4), recycled ones
/// are zeroed before the entry is staged (M3b).  They hide the backing file, and are made only
/// where that shows nothing.  Extended entries have a cluster and no subcluster in it (trap 41),
/// and read from below: nothing need be zeroed. Entries go down with ordinary commits, 4096
/// clusters under one lock, so a power loss leaves a prefix of them, sound.  Without space it ends
/// with Errc::no_space; what was given stays given.
/// Invariant: the disk reads as before.
/// Cost: an L2 entry and a refcount for each cluster.
/// Not here: creating the image (create.h), raw disks.
#pragma once

#include <cstdint>

#include "base/units.h"
#include "block/device.h"

namespace byre {

enum class Preallocation : uint8_t { off, metadata, falloc, full };

/// Gives the range blocks on the host, step by step.
Task<void> allocate_blocks(Device& device, uint64_t offset, uint64_t length);
/// Writes zeros to the range, all of them.
Task<void> write_zeros(Device& device, uint64_t offset, uint64_t length);

class GuestDisk;
class SizeKept;
/// Gives what is unallocated in the range clusters of its own.
Task<void> preallocate_disk(GuestDisk& disk, GuestOffset offset, uint64_t length,
                            Preallocation mode);
/// Likewise, for other changes of the disk; not committed.
Task<void> preallocate_range(GuestDisk& disk, SizeKept size, GuestOffset offset, uint64_t length,
                             Preallocation mode);

}  // namespace byre
