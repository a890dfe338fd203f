// SPDX-License-Identifier: Apache-2.0
/// Zeroing and discarding: whole units become zeros in the map, edges become zeros in the data.
/// Invariant: bytes of the disk outside the range keep their contents.
/// Cost: one entry for each whole cluster, at most 4096 under one lock; an edge is written only
/// where it does not read as zeros already.
/// Not here: zeros of an external data file that must stay raw (external_store.h).
#pragma once

#include "base/units.h"
#include "block/device.h"

namespace byre {

class GuestDisk;
class SizeKept;

Task<void> zero_disk(GuestDisk& disk, GuestOffset offset, uint64_t length, ZeroOptions options);
Task<void> discard_disk(GuestDisk& disk, GuestOffset offset, uint64_t length,
                        DiscardOptions options);

// For other changes of the disk.
/// Splits into the edges, which are data, and whole units, which are entries (D1).
Task<void> zero_checked(GuestDisk& disk, SizeKept size, GuestOffset offset, uint64_t length,
                        ZeroOptions options);
/// Zeros whole units from `offset` on, inside one L2 table, and returns how many bytes those were
/// (D4).  `offset` and `length` are multiples of the unit.
Task<uint64_t> zero_units(GuestDisk& disk, SizeKept size, GuestOffset offset, uint64_t length,
                          ZeroOptions options);

}  // namespace byre
