// SPDX-License-Identifier: Apache-2.0
/// BitmapSlot: one persistent bitmap of an image, as far as it is in memory; and reading them.
///
/// Invariant: only a usable bitmap tracks.
/// Cost: the directory is one read, a table one more, the bits one for each cluster of them.
/// Not here: keeping the bits true while the disk is written (bitmaps.h), the format
/// (format/bitmap.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "block/device.h"
#include "format/bitmap.h"
#include "qcow2/bitmap/dirty_bits.h"
#include "qcow2/core/image_header.h"

namespace byre {

enum class BitmapState : uint8_t {
  usable,
  inconsistent,  ///< Was not saved, or does not fit the disk: kept until it is removed.
  foreign,       ///< Holds what byre does not know: neither used nor changed.
};

struct BitmapSlot {
  Bitmap entry;
  BitmapState state = BitmapState::usable;
  std::string reason;  ///< Why it is not usable.
  /// Empty where it cannot be believed.
  std::vector<BitmapTableEntry> table;
  /// In memory while it tracks, or is about to be stored.
  std::unique_ptr<DirtyBits> bits;
  /// By part: all its bits are set on the disk, whatever they are here.
  std::vector<bool> marked;
  /// Clusters for table entries whose pointer may be on the disk or not, by index.
  std::unordered_map<uint64_t, HostCluster> candidates;
  bool fresh = false;  ///< Not in the image yet: table and bits are to be written.

  bool tracks() const { return state == BitmapState::usable && entry.automatic; }
};
using BitmapList = std::vector<std::shared_ptr<BitmapSlot>>;

/// Bytes of bitmap data for 256 MiB of disk, a sector at least and a cluster at most: what is
/// marked at once.
uint64_t bitmap_part_bytes(uint32_t granularity_bits, const Geometry& geometry);

/// The directory with every table; empty when the image's bitmaps are not consistent (autoclear
/// bit).
Task<BitmapList> load_bitmap_list(Device& file, const ImageHeader& head);
/// The bits of a usable bitmap of a disk of `size` bytes, from the disk.
Task<std::unique_ptr<DirtyBits>> load_bitmap_bits(Device& file, const Geometry& geometry,
                                                  const BitmapSlot& slot, uint64_t size);

}  // namespace byre
