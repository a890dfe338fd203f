// SPDX-License-Identifier: Apache-2.0
/// Adding, removing, clearing, enabling and merging persistent bitmaps: each builds a new list of
/// them and switches to it (bitmaps.h), while no request that changes the disk runs.  A power cut
/// leaves the old list or the new one.
#include <algorithm>
#include <bit>

#include "qcow2/counted.h"
#include "qcow2/image.h"
#include "qcow2/working.h"

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

/// Takes the locks that hold up whatever changes the disk, lets `edit` make the new list, and
/// switches to it.
template <class Edit>
Task<void> Image::change_bitmaps(const Edit& edit) {
  const Working working(*this);
  co_await working.begin();
  co_await check_can_write();
  const Mutex::Hold hold = co_await resize_mutex_.lock();
  RangeLock::Request no_changes(size_lock_, 0, 1, RangeLock::Mode::exclusive);
  co_await no_changes;
  co_await check_can_write();
  BitmapList list = bitmaps_->list();
  co_await edit(list);
  co_await check_metadata_is_counted(*file_, head_, snapshots_, map_->l1(), *allocator_);
  Bitmaps::Change change = co_await bitmaps_->prepare(std::move(list));
  co_await committer_->flush_all();
  co_await header_state_->change({.bitmaps = bitmaps_->edit_for(change)});
  bitmaps_->keep(std::move(change));
  staged();
}

Task<std::shared_ptr<BitmapSlot>*> Image::usable_bitmap(BitmapList& list, const std::string& name) {
  std::shared_ptr<BitmapSlot>& slot = list[co_await find_bitmap(list, name)];
  co_await must_be_usable(*slot);
  slot = co_await bitmaps_->copy_of(*slot);
  co_return &slot;
}

Task<void> Image::add_bitmap(NewBitmap wanted) {
  const Geometry& g = head_.geometry;
  if (wanted.name.empty()) co_await fail(invalid("Bitmap name cannot be empty"));
  if (wanted.name.size() > kBitmapNameSizeMax) {
    co_await fail(invalid("Bitmap name too long: ", wanted.name.size(), " bytes, at most ",
                          kBitmapNameSizeMax));
  }
  if (g.version < 3) {
    co_await fail(unsupported(
        "Cannot store dirty bitmaps in qcow2 v2 files; byre create -o compat=1.1 makes others"));
  }
  if (wanted.granularity == 0) {
    wanted.granularity = std::clamp(cluster_size(), kGranularityDefaultMin, kGranularityDefaultMax);
  }
  if (!std::has_single_bit(wanted.granularity) ||
      wanted.granularity < uint64_t{1} << kBitmapGranularityBitsMin ||
      wanted.granularity > uint64_t{1} << kBitmapGranularityBitsMax) {
    co_await fail(invalid("Granularity must be power of 2 and at least 512, at most 2 GiB"));
  }
  const auto bits = static_cast<uint32_t>(std::countr_zero(wanted.granularity));
  const auto edit = [&](BitmapList& list) -> Task<void> {
    if (find_bitmap(list, wanted.name)) {
      co_await fail(Error(Errc::invalid, cat("Bitmap already exists: ", wanted.name), EEXIST));
    }
    co_await check_bitmap_size(size_, bits, geometry());  // Before there are bits in memory.
    if (wanted.dirty) co_await must_fit(wanted.dirty->size(), size_);
    auto slot = std::make_shared<BitmapSlot>();
    slot->entry.name = wanted.name;
    slot->entry.automatic = wanted.enabled;
    slot->entry.granularity_bits = static_cast<uint8_t>(bits);
    slot->bits = std::make_unique<DirtyBits>(size_, bits, bitmap_part_bytes(bits, g));
    if (wanted.dirty) slot->bits->merge(*wanted.dirty);
    slot->fresh = true;
    list.push_back(std::move(slot));
  };
  co_await change_bitmaps(edit);
}

Task<void> Image::remove_bitmap(std::string name) {
  const auto edit = [&](BitmapList& list) -> Task<void> {
    const size_t index = co_await find_bitmap(list, name);
    if (list[index]->state == BitmapState::foreign) {
      co_await fail(unsupported(list[index]->reason, ": byre does not remove it"));
    }
    list.erase(list.begin() + static_cast<std::ptrdiff_t>(index));
  };
  co_await change_bitmaps(edit);
}

Task<void> Image::remove_all_bitmaps() {
  if (bitmaps_->empty()) co_return;
  const auto edit = [&](BitmapList& list) -> Task<void> {
    for (const auto& slot : list) {
      if (slot->state == BitmapState::foreign) {
        co_await fail(unsupported(slot->reason, ": byre does not remove it"));
      }
    }
    list.clear();
  };
  co_await change_bitmaps(edit);
}

Task<void> Image::clear_bitmap(std::string name) {
  const auto edit = [&](BitmapList& list) -> Task<void> {
    std::shared_ptr<BitmapSlot>* slot = co_await usable_bitmap(list, name);
    (*slot)->bits->fill(false);
  };
  co_await change_bitmaps(edit);
}

Task<void> Image::enable_bitmap(std::string name, bool enabled) {
  const auto edit = [&](BitmapList& list) -> Task<void> {
    std::shared_ptr<BitmapSlot>* slot = co_await usable_bitmap(list, name);
    (*slot)->entry.automatic = enabled;
  };
  co_await change_bitmaps(edit);
}

Task<void> Image::merge_into_bitmap(std::string name, const DirtyBits& from) {
  const auto edit = [&](BitmapList& list) -> Task<void> {
    std::shared_ptr<BitmapSlot>* slot = co_await usable_bitmap(list, name);
    co_await must_fit(from.size(), size_);
    (*slot)->bits->merge(from);
  };
  co_await change_bitmaps(edit);
}

Task<std::unique_ptr<DirtyBits>> Image::read_bitmap(std::string name) {
  const BitmapList& list = bitmaps();
  const std::shared_ptr<BitmapSlot> slot = list[co_await find_bitmap(list, name)];
  co_await must_be_usable(*slot);
  if (bitmaps_) co_return co_await bitmaps_->bits_of(*slot);
  co_return co_await load_bitmap_bits(*file_, head_.geometry, *slot, head_.header.size);
}

/// For a disk of `size` bytes; nothing without bitmaps.  Nothing that marks runs.
Task<std::optional<Bitmaps::Change>> Image::resized_bitmaps(uint64_t size) {
  if (bitmaps_->empty()) co_return std::optional<Bitmaps::Change>();
  co_return std::optional<Bitmaps::Change>(
      co_await bitmaps_->prepare(co_await bitmaps_->list_for_size(size)));
}

}  // namespace byre
