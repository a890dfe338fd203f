// SPDX-License-Identifier: Apache-2.0
/// Compressed writes (docs/engine.md, P): compress -> place -> write -> stage, under an exclusive
/// lock.  A failure before the last step leaves the map as it was, and the references go to limbo.
/// Invariant: the map leads to a stream only once its bytes have been written (M3, P3).
/// Cost: the compression, on worker threads; memory for the streams of one piece of 2 MiB at most.
/// Not here: where streams go (compressed_packer.h), reading them (read.h, decompressed_cache.h).
#pragma once

#include "base/units.h"
#include "block/device.h"
#include "qcow2/guest/arrival_order.h"

namespace byre {

class GuestDisk;
class SizeKept;

/// Whole clusters, but for the last of the disk; Errc::invalid for anything else.  Where the image
/// wants allocations in order, all of `data` is compressed before its turn.
Task<void> write_compressed(GuestDisk& disk, SizeKept size, GuestOffset offset, Bytes data,
                            int level, ArrivalOrder::Ticket& turn);

}  // namespace byre
