// SPDX-License-Identifier: Apache-2.0
/// Writing to the disk: in place where the cluster is ours alone, else to fresh clusters.
///
///   in place    a shared lock on the guest clusters, a pin, the bytes.  Stages nothing.
///   allocating  room to stage; an exclusive lock; lookup; space; the bytes, and around them what
///               each touched unit held; only then the map (docs/engine.md, M3).
/// A write is cut into pieces of at most 2 MiB inside one L2 table, each with locks of its own.
/// Invariant: the map leads to a new cluster only once its bytes have been written (M3).
/// Cost: in place, one I/O for each run of clusters; allocating, also reads of what units that are
/// written in part held.
/// Not here: which cluster is written how (write_plan.h), zeros (zero.h), streams (compress.h).
#pragma once

#include "base/units.h"
#include "block/device.h"
#include "qcow2/guest/arrival_order.h"

namespace byre {

class GuestDisk;
class SizeKept;

Task<void> write_disk(GuestDisk& disk, GuestOffset offset, Bytes data, WriteOptions options);

/// Do bitmaps hear of it?  Not of what leaves the guest's bytes as they are (docs/engine.md, B1).
enum class Recorded : uint8_t { no, yes };
inline Recorded recorded(IoTag tag) {
  return tag == IoTag::copy_on_read ? Recorded::no : Recorded::yes;
}

// For other changes of the disk.
/// True if everything is durable: it all went, with FUA, to clusters whose mapping is.  `turn`,
/// which is first, ends when no cluster is going to be taken any more.
Task<bool> write_checked(GuestDisk& disk, SizeKept size, GuestOffset offset, Bytes data, bool fua,
                         ArrivalOrder::Ticket* turn = nullptr, Recorded recorded = Recorded::yes);

}  // namespace byre
