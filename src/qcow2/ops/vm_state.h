// SPDX-License-Identifier: Apache-2.0
/// The VM state: bytes that lie behind the disk, at the first L1 entry that the disk does not need.
///
/// A snapshot takes them along, since it shares the whole L1 table; applying one brings them back.
/// Nothing below an image has any, so what was never written reads as zeros. A write makes the L1
/// table longer where it must.  Growing or shrinking the disk gives the state up (resize.h).
/// Invariant: the state begins at a multiple of what one L1 entry covers, so no L2 table holds both
/// disk and state.
/// Cost: that of a read or a write of the disk; a longer L1 table is written anew.
/// Not here: which snapshot has how much of it (snapshot.h).
#pragma once

#include "block/device.h"

namespace byre {

class GuestDisk;

/// Where it begins in the guest's address space, in bytes.
uint64_t vm_state_offset(const GuestDisk& disk);
Task<void> read_vm_state(GuestDisk& disk, uint64_t offset, MutableBytes data);
Task<void> write_vm_state(GuestDisk& disk, uint64_t offset, Bytes data);

}  // namespace byre
