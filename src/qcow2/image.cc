// SPDX-License-Identifier: Apache-2.0
#include "qcow2/image.h"

#include "qcow2/guest/guest_disk.h"
#include "qcow2/guest/read.h"
#include "qcow2/guest/status.h"
#include "qcow2/guest/write.h"
#include "qcow2/guest/zero.h"
#include "qcow2/ops/empty.h"
#include "qcow2/ops/heal.h"
#include "qcow2/ops/online_check.h"
#include "qcow2/ops/resize.h"
#include "qcow2/ops/vm_state.h"

namespace byre {

Image::Image(std::unique_ptr<GuestDisk> disk, std::unique_ptr<ImageHealth> health)
    : disk_(std::move(disk)), health_(std::move(health)) {
  disk_->belong_to(*this);
}
Image::~Image() = default;

uint64_t Image::size() const { return disk_->size; }
bool Image::writable() const { return disk_->options.writable; }
uint32_t Image::preferred_size() const { return static_cast<uint32_t>(disk_->cluster_size()); }
Capabilities Image::capabilities() const {
  return {.compresses = !disk_->geometry().data_file,
          .snapshots = true,
          .zeroes_fast = true,
          .fua = true,
          .discard_granularity = disk_->cluster_size()};
}
const std::string& Image::name() const { return disk_->name(); }
Reactor& Image::reactor() { return disk_->reactor; }
const BitmapList& Image::bitmaps() const {
  return disk_->bitmaps ? disk_->bitmaps->list() : disk_->bitmap_list;
}
const ImageHeader& Image::head() const { return disk_->head; }
const Geometry& Image::geometry() const { return disk_->geometry(); }
const std::vector<Snapshot>& Image::snapshots() const { return disk_->snapshots; }
Device* Image::backing() { return disk_->backing.get(); }
Device& Image::file() { return *disk_->file; }
Device& Image::data_file() { return disk_->store.device(); }
bool Image::has_raw_data() const { return disk_->has_raw_data(); }

ImageStats Image::stats() const {
  ImageStats stats = disk_->stats;
  stats.table_loads = disk_->map->cache().loads();
  if (disk_->committer) {
    stats.commits = disk_->committer->commits();
    stats.commit_failures = disk_->committer->failures();
    stats.clusters_allocated = disk_->allocator->clusters_allocated();
    stats.clusters_freed = disk_->allocator->clusters_freed();
    stats.clusters_peak = disk_->allocator->clusters_peak();
  }
  return stats;
}

/// What changes metadata waits until all references are known, before its first lock (V).
Task<void> Image::wait_for_references() {
  if (disk_->references.is_open()) co_return;
  const Request request(*disk_);
  co_await request.begin();
  co_await disk_->references.wait();
}

// --- Requests and operations --------------------------------------------------------------------

BYRE_CORO_WRAPPER Task<void> Image::read(uint64_t offset, MutableBytes data, ReadOptions options) {
  return byre::read_disk(*disk_, GuestOffset{offset}, data, options.tag);
}
BYRE_CORO_WRAPPER Task<void> Image::write(uint64_t offset, Bytes data, WriteOptions options) {
  return byre::write_disk(*disk_, GuestOffset{offset}, data, options);
}
BYRE_CORO_WRAPPER Task<void> Image::zero(uint64_t offset, uint64_t length, ZeroOptions options) {
  return byre::zero_disk(*disk_, GuestOffset{offset}, length, options);
}
BYRE_CORO_WRAPPER Task<void> Image::discard(uint64_t offset, uint64_t length,
                                            DiscardOptions options) {
  return byre::discard_disk(*disk_, GuestOffset{offset}, length, options);
}
BYRE_CORO_WRAPPER Task<Extent> Image::status(uint64_t offset, uint64_t length) {
  return byre::status_of_disk(*disk_, GuestOffset{offset}, length);
}
Task<void> Image::resize(uint64_t size) {
  co_await wait_for_references();
  co_await byre::resize_disk(*disk_, size, Preallocation::off);
}
Task<void> Image::resize(uint64_t size, Preallocation mode) {
  co_await wait_for_references();
  co_await byre::resize_disk(*disk_, size, mode);
}
Task<void> Image::preallocate(uint64_t offset, uint64_t length, Preallocation mode) {
  co_await wait_for_references();
  co_await byre::preallocate_disk(*disk_, GuestOffset{offset}, length, mode);
}
Task<void> Image::amend(AmendOptions options) {
  co_await wait_for_references();
  co_await byre::amend_image(*disk_, std::move(options));
}
BYRE_CORO_WRAPPER Task<void> Image::replace_backing(Child& next, std::optional<BackingName> name) {
  return byre::replace_backing(*disk_, *this, next, std::move(name));
}
Task<void> Image::empty() {
  co_await wait_for_references();
  co_await byre::empty_disk(*disk_);
}
Task<void> Image::create_snapshot(NewSnapshot snapshot) {
  co_await wait_for_references();
  co_await byre::create_snapshot(*disk_, std::move(snapshot));
}
Task<void> Image::apply_snapshot(SnapshotKey which) {
  co_await wait_for_references();
  co_await byre::apply_snapshot(*disk_, std::move(which));
}
Task<void> Image::delete_snapshot(SnapshotKey which) {
  co_await wait_for_references();
  co_await byre::delete_snapshot(*disk_, std::move(which));
}
Task<void> Image::rename_snapshot(SnapshotKey which, std::string name) {
  co_await wait_for_references();
  co_await byre::rename_snapshot(*disk_, std::move(which), std::move(name));
}
Task<void> Image::add_bitmap(NewBitmap bitmap) {
  co_await wait_for_references();
  std::vector<NewBitmap> bitmaps;
  bitmaps.push_back(std::move(bitmap));
  co_await byre::add_bitmaps(*disk_, std::move(bitmaps));
}

Task<void> Image::add_bitmaps(std::vector<NewBitmap> bitmaps) {
  co_await wait_for_references();
  co_await byre::add_bitmaps(*disk_, std::move(bitmaps));
}
Task<void> Image::remove_bitmap(std::string name) {
  co_await wait_for_references();
  co_await byre::remove_bitmap(*disk_, std::move(name));
}
Task<void> Image::remove_all_bitmaps() {
  co_await wait_for_references();
  co_await byre::remove_all_bitmaps(*disk_);
}
Task<void> Image::clear_bitmap(std::string name) {
  co_await wait_for_references();
  co_await byre::clear_bitmap(*disk_, std::move(name));
}
Task<void> Image::enable_bitmap(std::string name, bool enabled) {
  co_await wait_for_references();
  co_await byre::enable_bitmap(*disk_, std::move(name), enabled);
}
Task<void> Image::merge_into_bitmap(std::string name, const DirtyBits& from) {
  co_await wait_for_references();
  co_await byre::merge_into_bitmap(*disk_, std::move(name), from);
}
Task<void> Image::replace_bits_of_bitmap(std::string name, const DirtyBits& bits) {
  co_await wait_for_references();
  co_await byre::replace_bits_of_bitmap(*disk_, std::move(name), bits);
}
BYRE_CORO_WRAPPER Task<std::unique_ptr<DirtyBits>> Image::read_bitmap(std::string name) {
  return byre::read_bitmap(*disk_, std::move(name));
}
BYRE_CORO_WRAPPER Task<void> Image::read_vm_state(uint64_t offset, MutableBytes data) {
  return byre::read_vm_state(*disk_, offset, data);
}
Task<void> Image::write_vm_state(uint64_t offset, Bytes data) {
  co_await wait_for_references();
  co_await byre::write_vm_state(*disk_, offset, data);
}
Task<CheckReport> Image::check_online(CheckOptions options) {
  co_await wait_for_references();
  co_return co_await byre::check_online(*disk_, std::move(options));
}
uint64_t Image::vm_state_offset() const { return byre::vm_state_offset(*disk_); }

Task<void> Image::flush(IoTag tag) {
  const Request request(*disk_);
  co_await request.begin();
  if (disk_->options.writable) {
    co_await disk_->check_can_write();
    co_await disk_->committer->flush(tag).doing("flush ", quoted(name()));
  }
  co_await disk_->flush_what_is_read(tag);
}

// --- The end ------------------------------------------------------------------------------------

Task<void> Image::close() {
  if (disk_->closed()) co_return;
  co_await disk_->end_requests();
  Result<void> drained;
  if (disk_->committer) {
    drained = co_await disk_->committer->flush_all().result();
    // After a change of the format nothing but the tables of old is known.
    if (drained && disk_->options.writable && !disk_->references.refused()) {
      drained = co_await disk_->bitmaps->store_exact().result();
    }
    if (drained) drained = co_await disk_->commit_the_rest().result();
  }
  Result<void> closed = co_await disk_->close_below().result();
  if (drained) drained = std::move(closed);
  co_await std::move(drained).doing("close ", quoted(name()));
}

void Image::abandon() { disk_->abandon(); }

// --- The graph ----------------------------------------------------------------------------------

BYRE_CORO_WRAPPER Task<void> Image::settle() { return disk_->settle(); }
Gate* Image::background_gate() { return &disk_->background; }

}  // namespace byre
