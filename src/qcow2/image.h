// SPDX-License-Identifier: Apache-2.0
/// Image: a qcow2 disk, open: a Device, and the operations that an image has beside.
///
/// The face of the engine, without an algorithm: each method is a call of a function over the disk
/// (guest/, ops/); one of a guest's request adds no coroutine to it.  There are more than two dozen
/// methods because a device has a dozen, and commands and jobs find the operations in one place.
/// Invariants, threads and memory: core/engine.h.
/// Cost: that of the function that a method calls.
/// Not here: format (format/), files and locks on them (io/), what may be opened
/// (io/file_opener.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "block/graph.h"
#include "block/reopen.h"
#include "io/file_opener.h"
#include "qcow2/bitmap/bitmap_slot.h"
#include "qcow2/check/report.h"
#include "qcow2/core/image_header.h"
#include "qcow2/image_options.h"
#include "qcow2/ops/amend.h"
#include "qcow2/ops/bitmap_ops.h"
#include "qcow2/ops/preallocate.h"
#include "qcow2/ops/replace_backing.h"
#include "qcow2/ops/snapshot.h"

namespace byre {

class GuestDisk;
struct ImageHealth;

class Image final : public Device, public Reopens {
 public:
  /// Opens the image that `opener` has under `name`, with its backing chain and data file.
  static Task<std::unique_ptr<Image>> open(Reactor& reactor, FileOpener& opener, std::string name,
                                           ImageOptions options);
  /// Opens the image inside `file` (a fault filter over a file, say).  `opener` opens what it
  /// names, unless that is open already: then `backing` and `data_file` are used instead.
  static Task<std::unique_ptr<Image>> open_over(Child file, FileOpener& opener,
                                                ImageOptions options, Child backing = {},
                                                Child data_file = {});
  /// close() has ended, or abandon() was called; asserted.
  ~Image() override;

  uint64_t size() const override;
  bool writable() const override;
  uint32_t preferred_size() const override;
  Capabilities capabilities() const override;
  const std::string& name() const override;
  Reactor& reactor() override;
  BYRE_CORO_WRAPPER Task<void> read(uint64_t offset, MutableBytes data,
                                    ReadOptions options) override;
  BYRE_CORO_WRAPPER Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  BYRE_CORO_WRAPPER Task<void> discard(uint64_t offset, uint64_t length,
                                       DiscardOptions options) override;
  Task<void> flush(IoTag tag = IoTag::flush) override;
  BYRE_CORO_WRAPPER Task<Extent> status(uint64_t offset, uint64_t length) override;
  /// A new size, durable when this ends.  What is added reads as zeros; what is cut off is lost,
  /// and the file ends behind the last cluster in use (ops/shrink.h).
  Task<void> resize(uint64_t size) override;
  /// The same, and what is added gets clusters, or blocks on the host, at once (ops/preallocate.h).
  Task<void> resize(uint64_t size, Preallocation mode);
  /// Gives what is unallocated in the range clusters of its own; it reads as before.
  Task<void> preallocate(uint64_t offset, uint64_t length, Preallocation mode);
  /// Another version, refcount width, name of a backing file, ... (ops/amend.h).  Nobody else uses
  /// the image, and nothing but close() follows.
  Task<void> amend(AmendOptions options);
  /// Another device below, and its name in the header (ops/replace_backing.h).  Guests go on.
  /// `next` leads to the old one afterwards.
  Task<void> replace_backing(Child& next, std::optional<BackingName> name);
  /// The disk has nothing of its own any more, and its backing disk shows through: durable when
  /// this ends (ops/empty.h).  That the guest sees no change is the promise of the caller.
  Task<void> empty();
  // Internal snapshots (ops/snapshot.h); each is durable when it ends.  The guest's reads go on,
  // its writes wait.  `which` is an id or a name, and fits one snapshot only.
  Task<void> create_snapshot(NewSnapshot snapshot);
  /// The disk becomes what it was, its size as well; what it is now is lost.
  Task<void> apply_snapshot(SnapshotKey which);
  Task<void> delete_snapshot(SnapshotKey which);
  Task<void> rename_snapshot(SnapshotKey which, std::string name);
  // Persistent bitmaps (ops/bitmap_ops.h); each change is durable when it ends.  The guest's reads
  // go on, its writes wait.
  const BitmapList& bitmaps() const;
  Task<void> add_bitmap(NewBitmap bitmap);
  Task<void> add_bitmaps(std::vector<NewBitmap> bitmaps);  ///< All or none.
  Task<void> remove_bitmap(std::string name);
  Task<void> remove_all_bitmaps();
  Task<void> clear_bitmap(std::string name);
  /// Makes it record what is written from here on, or stop.
  Task<void> enable_bitmap(std::string name, bool enabled);
  /// What is dirty in `from`, of a disk of this size, is dirty in the bitmap too.
  Task<void> merge_into_bitmap(std::string name, const DirtyBits& from);
  /// It becomes what is dirty in `bits`, of a disk of this size, in one step.
  Task<void> replace_bits_of_bitmap(std::string name, const DirtyBits& bits);
  BYRE_CORO_WRAPPER Task<std::unique_ptr<DirtyBits>> read_bitmap(std::string name);
  // The state of a virtual machine, behind the disk (ops/vm_state.h).
  uint64_t vm_state_offset() const;
  BYRE_CORO_WRAPPER Task<void> read_vm_state(uint64_t offset, MutableBytes data);
  Task<void> write_vm_state(uint64_t offset, Bytes data);
  /// Checks the disk while it is used (ops/online_check.h).  Repair::leaks is the only repair.
  Task<CheckReport> check_online(CheckOptions options);
  /// Drains, commits twice (the second writes the decrements), gives back what the file was grown
  /// ahead: no leak after it.
  Task<void> close() override;
  /// The simulated process died: forget everything without I/O.
  void abandon() override;
  /// Commits until nothing is staged and limbo is empty.
  Task<void> settle() override;
  Gate* background_gate() override;
  // As open() and close() do it; the image is scanned before it is written (docs/engine.md, V).
  Task<void> end_own_work() override;
  Task<void> reopen(bool writable) override;

  const ImageHeader& head() const;
  const Geometry& geometry() const;
  const std::vector<Snapshot>& snapshots() const;
  /// Null when there is none.
  Device* backing();
  Device& file();
  /// Where guest data are: the file itself, or the external data file.
  Device& data_file();
  /// Must the external data file stay valid as a raw image?
  bool has_raw_data() const;
  ImageStats stats() const;
  /// What the scan of all references found (ops/heal.h); known == false without one.
  const ImageHealth& health() const { return *health_; }

 private:
  struct Opening;  // open.cc
  Image(std::unique_ptr<GuestDisk> disk, std::unique_ptr<ImageHealth> health);
  Task<void> wait_for_references();

  std::unique_ptr<GuestDisk> disk_;
  std::unique_ptr<ImageHealth> health_;
};

}  // namespace byre
