// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/bitmap_ops.h"

#include <algorithm>
#include <bit>

#include "qcow2/core/counted.h"
#include "qcow2/core/shape_change.h"
#include "qcow2/guest/guest_disk.h"

namespace byre {

namespace {

/// As QEMU has it: the cluster size, within these.
constexpr uint64_t kGranularityDefaultMin = 4 * KiB;
constexpr uint64_t kGranularityDefaultMax = 64 * KiB;

Result<size_t> find_bitmap(const BitmapList& list, const std::string& name) {
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i]->entry.name == name) return i;
  }
  return Error(Errc::not_found, cat("Dirty bitmap '", name, "' not found"), ENOENT);
}

Result<void> must_be_usable(const BitmapSlot& slot) {
  if (slot.state == BitmapState::usable) return {};
  if (slot.state == BitmapState::foreign) return unsupported(slot.reason);
  return Error(Errc::invalid,
               cat("Bitmap '", slot.entry.name, "' is inconsistent and cannot be used (",
                   slot.reason, "); remove it"));
}

Result<void> must_fit(uint64_t source, uint64_t size) {
  if (source == size) return {};
  return invalid("Bitmaps are of different sizes (destination size is ", size, ", source size is ",
                 source, ") and can't be merged");
}

}  // namespace

static Task<std::shared_ptr<BitmapSlot>*> usable_bitmap(GuestDisk& disk, BitmapList& list,
                                                        const std::string& name);
template <class Edit>
static Task<void> change_bitmaps(GuestDisk& disk, const Edit& edit);

/// Takes the locks that hold up whatever changes the disk, lets `edit` make the new list, and
/// switches to it.
template <class Edit>
Task<void> change_bitmaps(GuestDisk& disk, const Edit& edit) {
  const Request request(disk);
  co_await request.begin();
  co_await disk.check_can_write();
  ShapeChange change_of_shape(disk);
  co_await change_of_shape.begin();
  SizeChange no_changes(change_of_shape);
  co_await no_changes;
  co_await disk.check_can_write();
  BitmapList list = disk.bitmaps->list();
  co_await edit(list);
  co_await check_metadata_is_counted(*disk.file, disk.head, disk.snapshots, disk.map->l1(),
                                     *disk.allocator);
  Bitmaps::Change change = co_await disk.bitmaps->prepare(std::move(list));
  co_await disk.committer->flush_all();
  co_await disk.header->change({.bitmaps = disk.bitmaps->edit_for(change)});
  disk.bitmaps->keep(std::move(change));
  disk.schedule_commit();
}

Task<std::shared_ptr<BitmapSlot>*> usable_bitmap(GuestDisk& disk, BitmapList& list,
                                                 const std::string& name) {
  std::shared_ptr<BitmapSlot>& slot = list[co_await find_bitmap(list, name)];
  co_await must_be_usable(*slot);
  slot = co_await disk.bitmaps->copy_of(*slot);
  co_return &slot;
}

/// Is it one that an image can have?  Fills in what it leaves open.
static Result<void> check_new(const GuestDisk& disk, NewBitmap& wanted) {
  if (wanted.name.empty()) return invalid("Bitmap name cannot be empty");
  if (wanted.name.size() > kBitmapNameSizeMax) {
    return invalid("Bitmap name too long: ", wanted.name.size(), " bytes, at most ",
                   kBitmapNameSizeMax);
  }
  if (disk.geometry().version < 3) {
    return unsupported(
        "Cannot store dirty bitmaps in qcow2 v2 files; byre create -o compat=1.1 makes others");
  }
  if (wanted.granularity == 0) {
    wanted.granularity =
        std::clamp(disk.cluster_size(), kGranularityDefaultMin, kGranularityDefaultMax);
  }
  if (!std::has_single_bit(wanted.granularity) ||
      wanted.granularity < uint64_t{1} << kBitmapGranularityBitsMin ||
      wanted.granularity > uint64_t{1} << kBitmapGranularityBitsMax) {
    return invalid("Granularity must be power of 2 and at least 512, at most 2 GiB");
  }
  return {};
}

/// The list with it; the disk does not change its size meanwhile.
static Result<void> append_new(GuestDisk& disk, BitmapList& list, const NewBitmap& wanted) {
  const auto bits = static_cast<uint32_t>(std::countr_zero(wanted.granularity));
  if (find_bitmap(list, wanted.name)) {
    return Error(Errc::invalid, cat("Bitmap already exists: ", wanted.name), EEXIST);
  }
  // Before there are bits in memory.
  if (Result<void> fits = check_bitmap_size(disk.size, bits, disk.geometry()); !fits) return fits;
  if (wanted.dirty) {
    if (Result<void> same = must_fit(wanted.dirty->size(), disk.size); !same) return same;
  }
  auto slot = std::make_shared<BitmapSlot>();
  slot->entry.name = wanted.name;
  slot->entry.automatic = wanted.enabled;
  slot->entry.granularity_bits = static_cast<uint8_t>(bits);
  slot->bits =
      std::make_unique<DirtyBits>(disk.size, bits, bitmap_part_bytes(bits, disk.geometry()));
  if (wanted.dirty) slot->bits->merge(*wanted.dirty);
  slot->fresh = true;
  list.push_back(std::move(slot));
  return {};
}

Task<void> add_bitmaps(GuestDisk& disk, std::vector<NewBitmap> wanted) {
  for (NewBitmap& bitmap : wanted) co_await check_new(disk, bitmap);
  const auto edit = [&](BitmapList& list) -> Task<void> {
    for (const NewBitmap& bitmap : wanted) co_await append_new(disk, list, bitmap);
  };
  co_await change_bitmaps(disk, edit);
}

Task<void> remove_bitmap(GuestDisk& disk, std::string name) {
  const auto edit = [&](BitmapList& list) -> Task<void> {
    const size_t index = co_await find_bitmap(list, name);
    if (list[index]->state == BitmapState::foreign) {
      co_await fail(unsupported(list[index]->reason, ": byre does not remove it"));
    }
    list.erase(list.begin() + static_cast<std::ptrdiff_t>(index));
  };
  co_await change_bitmaps(disk, edit);
}

Task<void> remove_all_bitmaps(GuestDisk& disk) {
  if (disk.bitmaps->empty()) co_return;
  const auto edit = [&](BitmapList& list) -> Task<void> {
    for (const auto& slot : list) {
      if (slot->state == BitmapState::foreign) {
        co_await fail(unsupported(slot->reason, ": byre does not remove it"));
      }
    }
    list.clear();
  };
  co_await change_bitmaps(disk, edit);
}

Task<void> clear_bitmap(GuestDisk& disk, std::string name) {
  const auto edit = [&](BitmapList& list) -> Task<void> {
    std::shared_ptr<BitmapSlot>* slot = co_await usable_bitmap(disk, list, name);
    (*slot)->bits->fill(false);
  };
  co_await change_bitmaps(disk, edit);
}

Task<void> enable_bitmap(GuestDisk& disk, std::string name, bool enabled) {
  const auto edit = [&](BitmapList& list) -> Task<void> {
    std::shared_ptr<BitmapSlot>* slot = co_await usable_bitmap(disk, list, name);
    (*slot)->entry.automatic = enabled;
  };
  co_await change_bitmaps(disk, edit);
}

Task<void> merge_into_bitmap(GuestDisk& disk, std::string name, const DirtyBits& from) {
  const auto edit = [&](BitmapList& list) -> Task<void> {
    std::shared_ptr<BitmapSlot>* slot = co_await usable_bitmap(disk, list, name);
    co_await must_fit(from.size(), disk.size);
    (*slot)->bits->merge(from);
  };
  co_await change_bitmaps(disk, edit);
}

Task<void> replace_bits_of_bitmap(GuestDisk& disk, std::string name, const DirtyBits& bits) {
  const auto edit = [&](BitmapList& list) -> Task<void> {
    std::shared_ptr<BitmapSlot>* slot = co_await usable_bitmap(disk, list, name);
    co_await must_fit(bits.size(), disk.size);
    (*slot)->bits->fill(false);
    (*slot)->bits->merge(bits);
  };
  co_await change_bitmaps(disk, edit);
}

Task<std::unique_ptr<DirtyBits>> read_bitmap(GuestDisk& disk, std::string name) {
  const Request request(disk);
  co_await request.begin();
  const Epochs::Pin pin = disk.epochs.pin();  // It may be removed meanwhile (H3).
  const BitmapList& list = disk.bitmaps ? disk.bitmaps->list() : disk.bitmap_list;
  const std::shared_ptr<BitmapSlot> slot = list[co_await find_bitmap(list, name)];
  co_await must_be_usable(*slot);
  if (disk.bitmaps) co_return co_await disk.bitmaps->bits_of(*slot);
  co_return co_await load_bitmap_bits(*disk.file, disk.head.geometry, *slot, disk.head.header.size);
}

}  // namespace byre
