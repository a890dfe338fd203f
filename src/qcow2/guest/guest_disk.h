// SPDX-License-Identifier: Apache-2.0
/// GuestDisk: an open image as reads, writes and operations see it: the engine, and what they keep
/// themselves.
///
/// packer    where compressed streams go
/// decompressed  the compressed clusters that were read last; 4 MiB for a whole backing chain
/// bitmaps   the persistent bitmaps, told of each change before it is issued
/// removed   places in the external data file that are to be punched
/// Invariant: `packer` and `bitmaps` are null when the image is open read-only; `bitmap_list` has
/// the bitmaps then.
/// Cost: the memory of these parts: the decompressed clusters, and the bits of bitmaps that record.
/// Not here: any algorithm.
#pragma once

#include <deque>
#include <memory>

#include "qcow2/bitmap/bitmaps.h"
#include "qcow2/core/engine.h"
#include "qcow2/guest/compressed_packer.h"
#include "qcow2/guest/decompressed_cache.h"
#include "qcow2/guest/write_plan.h"

namespace byre {

class GuestDisk final : public Engine,
                        private CompressedPacker::Writer,
                        private DecompressedCache::Source {
 public:
  GuestDisk(Child below, ImageHeader read, ImageOptions wanted)
      : Engine(std::move(below), std::move(read), std::move(wanted)),
        decompressed(reactor.ready(), head.geometry),
        allocation_order(reactor.ready(), options.allocate_in_order) {}

  DataFile data_file() const {
    if (!data) return DataFile::image;
    return has_raw_data() ? DataFile::external_raw : DataFile::external;
  }
  /// From this offset of the disk on nothing shows through from below.
  uint64_t backing_end() const { return backing ? backing->size() : 0; }

  CompressedPacker::Writer& stream_writer() { return *this; }
  DecompressedCache::Source& stream_source() { return *this; }

  DecompressedCache decompressed;
  ArrivalOrder allocation_order;  ///< Of writes that take clusters, where the options want one.
  std::unique_ptr<CompressedPacker> packer;  ///< Null when read-only, like the next.
  std::unique_ptr<Bitmaps> bitmaps;
  BitmapList bitmap_list;  ///< When read-only.

  /// Guest clusters that no longer use their place in the data file (external_store.h).
  struct Removed {
    GuestCluster first;
    uint64_t count;
    uint64_t generation;  ///< Whose commit makes that durable.
  };
  std::deque<Removed> removed;
  bool punching_removed = false;

 private:
  Task<void> write_packed(HostOffset at, Bytes bytes) override;  // compress.cc
  // read.cc
  Task<void> decompress(HostAccess access, Mapping stream, MutableBytes cluster) override;
};

}  // namespace byre
