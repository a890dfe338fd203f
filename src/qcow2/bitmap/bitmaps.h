// SPDX-License-Identifier: Apache-2.0
/// Bitmaps: the persistent dirty bitmaps of a writable image, kept true (docs/engine.md, B).
///
/// Invariant: what the disk says of an enabled bitmap is at every moment a superset of what was
/// written, and in_use stays clear: after a power loss or a kill the bitmap is loadable, by QEMU
/// too (C8).
///   * The bits in memory are exact.  They are set under the request's range lock, before its I/O.
///   * A part is what stands for 256 MiB of the disk.  Before the first write to a clean granule of
///     a part since it was loaded, all bits of the part are set on the disk, durably ("marked");
///     requests that come together share the sync.  From then on its bits are set in memory alone.
///     A table entry without a cluster gets one first, with its refcount; when there is no space it
///     becomes "all ones", which needs none.
///   * close() writes the exact bits over the marks, once no request is left.
/// So a steady writer pays a look at its bit, and one small durable write for each 256 MiB that it
/// begins to write to.
///
/// Everything that changes which bitmaps there are, or what they say otherwise, builds a new list
/// beside the old one (prepare()), and switches to it with one write of the header's first sector
/// (edit_for()), the same that changes the disk's size where that is what happens; only then is the
/// old one given up (keep()).
///
/// One class with many methods, because marks, the exact store at the end and the change of the
/// list share what is known of each table entry, and none may see it half changed.
/// Cost: memory for the bits that are mixed; a load reads them.
/// Not here: the operations on bitmaps (ops/bitmap_ops.h), where the extension lies in the header
/// (format/bitmaps_place.h).
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coro/event.h"
#include "qcow2/bitmap/bitmap_slot.h"
#include "qcow2/core/allocator.h"
#include "qcow2/core/commit.h"
#include "qcow2/core/reference_gate.h"

namespace byre {

/// Does a bitmap of a disk of `size` bytes fit what readers take (kBitmapDataSizeMax)?
Result<void> check_bitmap_size(uint64_t size, uint32_t granularity_bits, const Geometry& geometry);

class Bitmaps {
 public:
  Bitmaps(ReadyQueue& ready, Device& file, HeaderState& header, Allocator& allocator,
          Committer& committer, MetadataSet& metadata, ReferenceGate& references);
  Bitmaps(const Bitmaps&) = delete;

  /// Reads them; their clusters are metadata from here on.  Refuses what tracks and is not known; a
  /// bitmap that no longer fits is marked in_use, durably, before anything is written.
  Task<void> load(const std::function<void(const std::string&)>& message);
  const BitmapList& list() const { return list_; }
  bool empty() const { return list_.empty(); }
  /// Does any record what is written?
  bool tracking() const { return !tracking_.empty(); }

  /// [offset, offset + length) of the disk is about to change; behind its end nothing is recorded.
  /// True when that is recorded already; else await set_dirty().  Once writing has been given up
  /// (SyncLatch) nobody knows which list the disk has, so nothing counts as recorded.
  bool try_set_dirty(uint64_t offset, uint64_t length) {
    bool done = !committer_.latched();
    if (tracking_.empty()) return done;
    for (BitmapSlot* slot : tracking_) done &= mark_slot(*slot, offset, length);
    return done;
  }
  Task<void> set_dirty(uint64_t offset, uint64_t length);

  /// Nothing is under way: what the disk says becomes exact.
  Task<void> store_exact();

  /// Clusters that are ours and counted, though no table may lead to them: a mark failed (M4).
  std::vector<HostCluster> candidates() const;

  /// A list of bitmaps that the header does not point to yet.
  struct Change {
    BitmapList list;
    uint64_t directory_size = 0;
    Reservation directory;
    std::vector<Reservation> clusters;
    std::set<HostCluster> given_up;
    std::vector<std::byte> first_cluster;
  };
  /// Writes what is fresh of `list` where nothing points to; committer.flush_all() makes it
  /// durable.  No request that marks may run from here to keep().
  Task<Change> prepare(BitmapList list);
  /// The bitmaps for a disk of `size` bytes; nothing without bitmaps.
  Task<std::optional<Change>> prepare_for_size(uint64_t size);
  /// What makes the header point to it.
  BitmapsEdit edit_for(const Change& change) const;
  /// It does, durably (O6).
  void keep(Change change);

  /// Can all of them follow the disk to another size?
  Result<void> check_size(uint64_t size) const;
  /// The list as it is for a disk of another size: what is added is dirty in those that track.
  Task<BitmapList> list_for_size(uint64_t size);
  /// Likewise, with everything dirty in those that track.
  Task<BitmapList> list_all_dirty(uint64_t size);
  /// A copy of `slot` to be changed and stored anew.
  Task<std::shared_ptr<BitmapSlot>> copy_of(const BitmapSlot& slot);
  /// The exact bits, from memory or from the disk.
  Task<std::unique_ptr<DirtyBits>> bits_of(const BitmapSlot& slot);

 private:
  using Chunks = std::set<std::pair<size_t, uint64_t>>;  ///< Index in tracking_, part.

  bool mark_slot(BitmapSlot& slot, uint64_t offset, uint64_t length);
  void want(size_t which, uint64_t offset, uint64_t length);
  Task<void> write_marks(Chunks parts);
  Task<bool> find_cluster(BitmapSlot& slot, uint64_t index);
  Task<void> write_parts(const BitmapSlot& slot, HostCluster at, uint64_t first, Bytes bytes);
  /// Table entries as they are to be, by index.
  using Links = std::vector<std::pair<uint64_t, BitmapTableEntry>>;
  Task<void> write_table_sectors(const BitmapSlot& slot, const Links& links);
  Task<void> store_slot_exact(BitmapSlot& slot, std::vector<uint64_t>& stored, Links& links);
  Task<void> allocate_and_write(BitmapSlot& slot, Change& change);
  Task<void> move_extension(std::vector<std::byte>& first_cluster);
  Task<void> set_in_use();
  Task<void> claim(HostSpan span, std::string_view what);
  void add_clusters(const BitmapList& list, std::set<HostCluster>& to) const;
  uint64_t parts_per_cluster(const BitmapSlot& slot) const;
  void adopt(BitmapList list);

  Device& file_;
  HeaderState& header_;
  const ImageHeader& head_;
  const Geometry& geometry_;
  Allocator& allocator_;
  Committer& committer_;
  ReferenceGate& references_;
  MetadataSet& metadata_;
  BitmapList list_;
  std::vector<BitmapSlot*> tracking_;
  Chunks wanted_;  ///< To be marked next.
  bool running_ = false;
  Event finished_;  ///< A round of marks has ended.
};

}  // namespace byre
