// SPDX-License-Identifier: Apache-2.0
/// Image: a qcow2 disk, open.  The whole engine on one screen.
///
/// A guest request goes through here like this (docs/engine.md has the rules by name):
///   read     pins the epoch, looks its clusters up, reads them, unpins.  Takes no lock.
///   write    in place under a shared range lock; else exclusive: reserve, fill, stage.
///            Compressed: exclusive; compress, place, write, stage.
///   zero     whole units are staged as zeros under an exclusive lock; the edges are written.
///   discard  whole clusters are staged as zeros; their hosts wait in limbo.
///   flush    commits what is staged, and syncs.
///
/// map_        guest cluster -> what it is: committed tables, and over them what is staged
/// allocator_  host clusters: free, reserved, referenced, in limbo
/// stages_     what requests have changed since the last commit, by generation
/// epochs_     which I/O may still be using a host cluster
/// committer_  makes a generation durable
/// packer_     where compressed streams go
/// data_       the external data file, where guest data are if there is one (data_file.cc)
/// bitmaps_    the persistent bitmaps, told of each change before it is issued
/// locks_      who may change which guest clusters now
///
/// Invariant: a host cluster is reused only when the removal of its pointer is durable and all I/O
/// that resolved to it has ended; nothing is pointed to before its contents and refcount are
/// durable. Threads: belongs to one reactor. Memory: options.table_cache_size and 4 MiB of unpacked
/// clusters, both divided among the images of a backing chain; the L1 and refcount tables (32 and
/// 8 MiB at most), one byte for each host cluster of the
/// 2 GiB regions (at 64 KiB clusters) that were written to, staged entries up to
/// options.staged_max. Not here: format (format/), files and locks on them (io/), what may be
/// opened (io/gate.h).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "block/device.h"
#include "block/frozen.h"
#include "coro/event.h"
#include "coro/range_lock.h"
#include "coro/scope.h"
#include "coro/semaphore.h"
#include "io/gate.h"
#include "qcow2/allocator.h"
#include "qcow2/amend.h"
#include "qcow2/bitmaps.h"
#include "qcow2/commit.h"
#include "qcow2/epochs.h"
#include "qcow2/head.h"
#include "qcow2/map.h"
#include "qcow2/pack.h"
#include "qcow2/preallocate.h"
#include "qcow2/snapshot.h"
#include "qcow2/stages.h"
#include "qcow2/unpacked.h"

namespace byre {

struct CheckOptions;
struct CheckReport;
class Survey;

enum class DiscardPolicy : uint8_t {
  ignore,  ///< Discards change nothing; freed host clusters keep their blocks.
  unmap,   ///< Discarded clusters are freed, and freed clusters become holes.
};

/// How many images may lie one below the other.
inline constexpr uint32_t kChainMax = 1024;

struct ImageOptions {
  bool writable = false;
  bool direct = false;      ///< O_DIRECT for this file and those below it.
  bool lock = true;         ///< QEMU's file locks.
  bool share_lock = false;  ///< Read although another process writes (-U).
  DiscardPolicy discard = DiscardPolicy::unmap;
  bool discard_keeps =
      false;  ///< Discarded clusters read as zeros and keep their place (version 3).
  std::optional<bool> lazy_refcounts;  ///< Instead of what the image says (version 3).
  std::string snapshot;                ///< Open this internal snapshot, by id or name; read-only.
  std::string data_file;               ///< Instead of the data file that the image names.
  bool without_backing = false;        ///< Only this layer: what is not allocated reads as zeros.
  /// Read-only: damage that does not hinder reading is passed over, and what of the L1 table cannot
  /// be read fails where it is needed.
  bool salvage = false;
  uint32_t chain_depth_max = kChainMax;
  /// L2 slices of all images of the chain together; two slices each at least.
  uint64_t table_cache_size = 32 * MiB;
  uint64_t staged_max = 64 * 1024;  ///< Entries staged before writers wait for a commit.
  int64_t commit_delay =
      kSecond;  ///< Staged work is committed after this many ns at the latest (M6).
  uint64_t host_size_max = UINT64_MAX;  ///< The file may not grow beyond this: ENOSPC.
  uint64_t growth_step = 16 * MiB;      ///< The file's length is raised ahead by this much.
  /// Told what the user should know: "image was not closed cleanly; refcounts were rebuilt".
  std::function<void(const std::string&)> message;
};

/// Counters since the image was opened.
struct ImageStats {
  uint64_t commits = 0;
  uint64_t commit_failures = 0;
  uint64_t writes_in_place = 0;  ///< Runs of clusters, not requests.
  uint64_t writes_allocating = 0;
  uint64_t clusters_compressed = 0;  ///< Written as streams.
  uint64_t clusters_unpacked = 0;    ///< Streams read.
  uint64_t clusters_allocated = 0;
  uint64_t clusters_freed = 0;
  uint64_t clusters_peak = 0;  ///< The most in use at once beyond what was when it was opened.
  uint64_t table_loads = 0;
};

struct NewBitmap {
  std::string name;
  uint64_t granularity = 0;  ///< 0: the cluster size, but 4 KiB to 64 KiB.
  bool enabled = true;
  const DirtyBits* dirty = nullptr;  ///< What it begins with; of a disk of this size.
};

class Image final : public Device, private Packer::Writer, private UnpackedCache::Source {
 public:
  /// Opens the image that `gate` has under `name`, with its backing chain and data file.
  static Task<std::unique_ptr<Image>> open(Reactor& reactor, Gate& gate, std::string name,
                                           ImageOptions options);
  /// Opens the image inside `file` (a fault filter over a file, say).  `gate` opens what it names.
  static Task<std::unique_ptr<Image>> open_over(std::unique_ptr<Device> file, Gate& gate,
                                                ImageOptions options);
  /// close() has ended, or abandon() was called; asserted.
  ~Image() override;

  uint64_t size() const override { return size_; }
  bool writable() const override { return options_.writable; }
  uint32_t preferred_size() const override {
    return static_cast<uint32_t>(head_.geometry.cluster_size());
  }
  const std::string& name() const override { return file_->name(); }
  Reactor& reactor() override { return reactor_; }
  Task<void> read(uint64_t offset, MutableBytes data, Mark mark) override;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  Task<void> flush(Mark mark = Mark::flush) override;
  Task<Extent> status(uint64_t offset, uint64_t length) override;
  /// A new size, durable when this ends.  What is added reads as zeros; what is cut off is lost,
  /// and the file ends behind the last cluster in use (shrink.cc).
  Task<void> resize(uint64_t size) override;
  /// The same, and what is added gets clusters, or blocks on the host, at once (preallocate.h).
  Task<void> resize(uint64_t size, Preallocation mode);
  /// Gives what is unallocated in the range clusters of its own; it reads as before.
  Task<void> preallocate(uint64_t offset, uint64_t length, Preallocation mode);
  /// Another version, refcount width, name of a backing file, ... (amend.h).  Nobody else uses the
  /// image, and nothing but close() follows.
  Task<void> amend(AmendOptions options);
  // Internal snapshots (snapshot.h); each is durable when it ends.  The guest's reads go on, its
  // writes wait.  `which` is an id or a name, and fits one snapshot only.
  Task<void> create_snapshot(NewSnapshot snapshot);
  /// The disk becomes what it was, its size as well; what it is now is lost.
  Task<void> apply_snapshot(SnapshotKey which);
  Task<void> delete_snapshot(SnapshotKey which);
  Task<void> rename_snapshot(SnapshotKey which, std::string name);
  // Persistent bitmaps (bitmap_change.cc); each change is durable when it ends.  The guest's reads
  // go on, its writes wait.
  const BitmapList& bitmaps() const { return bitmaps_ ? bitmaps_->list() : bitmap_list_; }
  Task<void> add_bitmap(NewBitmap bitmap);
  Task<void> remove_bitmap(std::string name);
  Task<void> remove_all_bitmaps();
  Task<void> clear_bitmap(std::string name);
  /// Makes it record what is written from here on, or stop.
  Task<void> enable_bitmap(std::string name, bool enabled);
  /// What is dirty in `from`, of a disk of this size, is dirty in the bitmap too.
  Task<void> merge_into_bitmap(std::string name, const DirtyBits& from);
  Task<std::unique_ptr<DirtyBits>> read_bitmap(std::string name);
  // The state of a virtual machine, behind the disk (vm_state.cc).
  uint64_t vm_state_offset() const;
  Task<void> read_vm_state(uint64_t offset, MutableBytes data);
  Task<void> write_vm_state(uint64_t offset, Bytes data);
  /// Checks the disk while it is used (online_check.h).  Repair::leaks is the only repair.
  Task<CheckReport> check_online(CheckOptions options);
  /// Drains, commits twice (the second writes the decrements), gives back what the file was grown
  /// ahead: no leak after it.
  Task<void> close() override;
  /// The simulated process died: forget everything without I/O.
  void abandon() override;

  const Head& head() const { return head_; }
  const Geometry& geometry() const { return head_.geometry; }
  const std::vector<Snapshot>& snapshots() const { return snapshots_; }
  /// Null when there is none.
  Device* backing() { return backing_.get(); }
  Device& file() { return *file_; }
  /// Where guest data are: the file itself, or the external data file.
  Device& data_file() { return data_ ? *data_ : *file_; }
  /// Must the external data file stay valid as a raw image?
  bool has_raw_data() const {
    return data_ && !backing_ && (head_.header.autoclear & kRawDataFile) != 0;
  }
  ImageStats stats() const;

 private:
  class Working;  // Counts a request while it runs, so that close() can wait.
  class SnapshotChange;
  class Amendment;

  Image(std::unique_ptr<Device> file, Head head, ImageOptions options);

  // open.cc
  /// A file of the chain that is being opened, and those above it.
  struct Layer;
  Task<void> load(Gate& gate, const Layer& self);
  Task<void> load_tables(Gate& gate);
  static Task<std::unique_ptr<Image>> open_layer(std::unique_ptr<Device> file, Gate& gate,
                                                 ImageOptions options, Layer self);
  /// Divides the memory for caches among this image and those below it.
  void share_caches();
  Result<void> check_writable() const;
  Task<void> open_backing(Gate& gate, const Layer& self);
  Task<void> check_own_refcounts();
  Task<void> begin_writing();

  // read.cc
  Task<void> read_pinned(uint64_t offset, MutableBytes data, Mark mark);
  Task<void> read_mapped(const Mapping& mapping, uint64_t offset, MutableBytes data, Mark mark);
  Task<void> read_host(uint64_t at, MutableBytes data, Mark mark);
  Task<void> read_compressed(Mapping mapping, uint64_t within, MutableBytes data, Mark mark);
  Task<void> unpack(Mapping stream, MutableBytes cluster) override;
  Task<void> read_below(uint64_t offset, MutableBytes data, Mark mark);

  // write.cc
  Task<bool> write_checked(uint64_t offset, Bytes data, bool fua);
  Task<uint64_t> write_in_place(uint64_t offset, Bytes data, bool fua, bool& durable);
  Task<void> write_allocating(uint64_t offset, Bytes data);
  Task<uint64_t> write_fresh(uint64_t offset, Bytes data, std::span<const Mapping> old);
  Task<void> write_reserved(uint64_t offset, Bytes data, std::span<const Mapping> old,
                            const Reservation& fresh, std::span<Mapping> mappings);
  Task<void> fill_around(const Mapping& old, uint64_t at, MutableBytes edge, uint64_t offset,
                         Bytes data);
  Task<void> write_kept(uint64_t offset, Bytes data, const Mapping& old);
  Task<void> write_host(uint64_t at, Bytes data, bool fua, Mark mark);
  Mark write_mark(uint64_t offset) const {
    return offset < size_ ? Mark::write_guest : Mark::vm_state_write;
  }
  bool writable_in_place(const Mapping& mapping, uint64_t within, uint64_t length) const;
  bool reads_zero(const Mapping& mapping, uint32_t units, uint64_t cluster_start) const;
  void publish(GuestCluster cluster, const Mapping& mapping, const Mapping& old);
  Task<void> reclaim_space();
  Task<void> prepare_table(uint64_t l1_index);
  Task<void> load_old(const Mapping& old);

  // data_file.cc
  Task<void> open_data_file(Gate& gate);
  Task<void> write_own(uint64_t offset, Bytes data, std::span<const Mapping> old);
  Task<void> zero_raw_data(uint64_t offset, uint64_t length, ZeroOptions options);
  void note_removed(GuestCluster cluster);
  void punch_what_is_durable();
  Task<void> punch_removed();
  Task<void> punch_unowned(GuestCluster first, uint64_t count);
  Task<void> grow_data_file(uint64_t size);
  Task<void> cut_data_file();

  // compress.cc
  using Stream = std::optional<std::vector<std::byte>>;  ///< None: it would not be smaller.
  Task<void> write_compressed(uint64_t offset, Bytes data, int level);
  Task<std::vector<Stream>> write_streams(uint64_t offset, Bytes data, int level);
  Task<std::vector<Stream>> compress_clusters(Bytes data, int level);
  Task<void> compress_some(Bytes data, int level, std::span<Stream> streams);
  Task<Packer::Placed> place_stream(Bytes stream, bool& reclaimed);
  Task<void> write_packed(uint64_t at, Bytes bytes) override;

  // zero.cc
  Task<void> zero_checked(uint64_t offset, uint64_t length, ZeroOptions options);
  Task<void> zero_edge(uint64_t offset, uint64_t length, ZeroOptions options);
  Task<uint64_t> zero_units(uint64_t offset, uint64_t length, ZeroOptions options);
  std::optional<Mapping> zeroed_mapping(const Mapping& old, uint32_t units, uint64_t start,
                                        const ZeroOptions& options) const;
  bool can_stage_zero() const { return geometry().version >= 3 || !backing_; }

  // online_check.cc
  struct OnlineCheck;
  Task<void> begin_online_check(OnlineCheck& check);
  Task<void> free_leaks(Survey& survey);

  // vm_state.cc
  Result<uint64_t> vm_state_range(uint64_t offset, uint64_t length) const;

  // bitmap_change.cc
  template <class Edit>
  Task<void> change_bitmaps(const Edit& edit);
  Task<std::shared_ptr<BitmapSlot>*> usable_bitmap(BitmapList& list, const std::string& name);
  Task<std::optional<Bitmaps::Change>> resized_bitmaps(uint64_t size);

  // resize.cc
  Result<void> check_resize(uint64_t size) const;
  Task<void> grow(uint64_t size, Preallocation mode);
  Task<void> switch_size(uint64_t size);
  Task<void> complete_snapshots();
  Task<void> undo_preallocation(uint64_t start, uint64_t end);
  Task<void> grow_l1(uint64_t entries);

  // preallocate.cc
  Task<void> preallocate_range(uint64_t offset, uint64_t length, Preallocation mode);
  Task<void> preallocate_run(GuestCluster first, uint64_t count, Preallocation mode);
  Task<uint64_t> preallocate_fresh(GuestCluster first, std::span<const Mapping> old,
                                   Preallocation mode);
  Task<void> preallocate_own(GuestCluster first, std::span<const Mapping> old, Preallocation mode);

  // shrink.cc
  struct CutOff;
  Task<void> shrink(uint64_t size);
  Task<void> forget_behind_end();
  Task<void> zero_tail(uint64_t size);
  Task<bool> ends_in_data(uint64_t size);
  Task<void> cut_last_cluster(uint64_t size, MutableBytes table, uint64_t index, CutOff& off);
  Task<void> cut_tables(uint64_t size, CutOff& off);
  Task<void> cut_last_table(uint64_t size, CutOff& off);
  Task<void> free_cut_off(CutOff off);
  Task<void> empty_limbo();
  Task<void> truncate_file();

  Result<void> check_can_write() const;
  Task<void> room_to_stage();
  /// Something was staged: a commit follows within options_.commit_delay.
  void staged();
  Task<void> linger();
  Task<void> in_background(Task<void> task);
  uint64_t cluster_size() const { return head_.geometry.cluster_size(); }

  std::unique_ptr<Freezer> file_;
  Reactor& reactor_;
  std::unique_ptr<Device> data_;
  std::unique_ptr<Device> backing_;
  Head head_;
  ImageOptions options_;
  std::vector<Snapshot> snapshots_;
  uint64_t size_ = 0;
  uint64_t shrinks_ = 0;  ///< How often the disk became smaller, or did not after all.
  uint64_t length_at_open_ = 0;

  Stages stages_;
  Epochs epochs_;
  MetadataSet metadata_;
  RangeLock locks_;
  Mutex resize_mutex_;
  Mutex check_mutex_;  ///< Held by the one check that runs.
  RangeLock
      size_lock_;  ///< Shared: requests that depend on where the disk ends; exclusive: its change.
  UnpackedCache unpacked_;
  std::unique_ptr<Map> map_;
  std::unique_ptr<Allocator> allocator_;  ///< Null when read-only, like those that follow.
  std::unique_ptr<SyncLatch> sync_latch_;
  std::unique_ptr<HeaderState> header_state_;
  std::unique_ptr<Committer> committer_;
  std::unique_ptr<Packer> packer_;
  std::unique_ptr<Bitmaps> bitmaps_;
  BitmapList bitmap_list_;  ///< When read-only.
  Scope background_;
  Event idle_;  ///< The last request has ended.
  uint64_t working_ = 0;
  bool closing_ = false;
  bool closed_ = false;
  bool lingering_ = false;
  Op timer_;
  ImageStats stats_;

  /// Guest clusters that no longer use their place in the data file (data_file.cc).
  struct Removed {
    GuestCluster first;
    uint64_t count;
    uint64_t generation;  ///< Whose commit makes that durable.
  };
  std::deque<Removed> removed_;
  bool punching_removed_ = false;
};

}  // namespace byre
