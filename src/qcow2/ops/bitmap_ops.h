// SPDX-License-Identifier: Apache-2.0
/// Adding, removing, clearing, enabling and merging persistent bitmaps: each builds a new list of
/// them and switches to it (bitmaps.h), while no request that changes the disk runs.  A power loss
/// leaves the old list or the new one.
/// Invariant: the header points to a new list only once that is durable (O6).
/// Cost: writes the directory anew, and the table and the bits of a bitmap that is new or changed.
/// Not here: recording what is written (bitmap/bitmaps.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "coro/task.h"
#include "qcow2/bitmap/bitmap_slot.h"

namespace byre {

class GuestDisk;

struct NewBitmap {
  std::string name;
  uint64_t granularity = 0;  ///< 0: the cluster size, but 4 KiB to 64 KiB.
  bool enabled = true;
  const DirtyBits* dirty = nullptr;  ///< What it begins with; of a disk of this size.
};

// Each change is durable when it ends.  The guest's reads go on, its writes wait.
/// All or none.  They go into the image in one step, so that no directory is written twice.
Task<void> add_bitmaps(GuestDisk& disk, std::vector<NewBitmap> wanted);
Task<void> remove_bitmap(GuestDisk& disk, std::string name);
Task<void> remove_all_bitmaps(GuestDisk& disk);
Task<void> clear_bitmap(GuestDisk& disk, std::string name);
/// Makes it record what is written from here on, or stop.
Task<void> enable_bitmap(GuestDisk& disk, std::string name, bool enabled);
/// What is dirty in `from`, of a disk of this size, is dirty in the bitmap too.
Task<void> merge_into_bitmap(GuestDisk& disk, std::string name, const DirtyBits& from);
/// The bitmap becomes what is dirty in `bits`, of a disk of this size, in one step.
Task<void> replace_bits_of_bitmap(GuestDisk& disk, std::string name, const DirtyBits& bits);
Task<std::unique_ptr<DirtyBits>> read_bitmap(GuestDisk& disk, std::string name);

}  // namespace byre
