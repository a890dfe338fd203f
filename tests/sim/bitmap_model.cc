// SPDX-License-Identifier: Apache-2.0
#include "bitmap_model.h"

#include <algorithm>

namespace byre {

/// Granules of [offset, end) that a window touches.
template <class Visit>
void BitmapModel::each_granule(const Bitmap& bitmap, uint64_t offset, uint64_t end,
                               const Visit& visit) const {
  for (const Window& window : windows_) {
    const uint64_t from = std::max(offset, window.offset);
    const uint64_t to = std::min(end, window.offset + window.length);
    if (from >= to) continue;
    const uint64_t last = (to - 1) >> bitmap.granularity_bits;
    for (uint64_t i = from >> bitmap.granularity_bits; i <= last; ++i) visit(i);
  }
}

void BitmapModel::each_may(uint64_t offset, uint64_t end) {
  for (auto& [name, bitmap] : bitmaps_) {
    if (!bitmap.enabled && bitmap.editing == 0) continue;
    each_granule(bitmap, offset, end, [&](uint64_t granule) { bitmap.may.insert(granule); });
  }
}

BitmapModel::Change BitmapModel::begin_change(uint64_t offset, uint64_t length) {
  Change change{.offset = offset, .length = length, .epochs = {}};
  for (const auto& [name, bitmap] : bitmaps_) change.epochs[name] = bitmap.epoch;
  each_may(offset, offset + length);
  return change;
}

void BitmapModel::end_change(const Change& change, bool certain, bool beside) {
  const uint64_t end = change.offset + change.length;
  each_may(change.offset, end);
  if (!certain) return;
  for (auto& [name, bitmap] : bitmaps_) {
    if (!bitmap.enabled || bitmap.editing != 0 || !bitmap.flag_certain) continue;
    const auto known = change.epochs.find(name);
    if (beside && (known == change.epochs.end() || known->second != bitmap.epoch)) continue;
    each_granule(bitmap, change.offset, end,
                 [&](uint64_t granule) { bitmap.must.insert(granule); });
  }
}

/// What is added is recorded, what is cut off forgotten.
void BitmapModel::resized(uint64_t before, uint64_t size, bool settled) {
  each_may(before, size);
  for (auto& [name, bitmap] : bitmaps_) {
    if (size < before) {
      const uint64_t first =
          (size + (uint64_t{1} << bitmap.granularity_bits) - 1) >> bitmap.granularity_bits;
      bitmap.must.erase(bitmap.must.lower_bound(first), bitmap.must.end());
    } else if (settled && bitmap.enabled && bitmap.editing == 0 && bitmap.flag_certain) {
      each_granule(bitmap, before, size, [&](uint64_t granule) { bitmap.must.insert(granule); });
    }
  }
}

void BitmapModel::begin_add(const std::string& name, uint32_t granularity_bits) {
  bitmaps_[name] = {.granularity_bits = granularity_bits, .editing = 1, .must = {}, .may = {}};
}

void BitmapModel::end_add(const std::string& name, bool done, Token next) {
  Bitmap& bitmap = bitmaps_.at(name);
  bitmap.editing = 0;
  ++bitmap.epoch;
  bitmap.certain = done;
  bitmap.since = next;
}

void BitmapModel::end_remove(const std::string& name, bool done) {
  if (done) bitmaps_.erase(name);
}

void BitmapModel::begin_edit(const std::string& name, bool clears) {
  Bitmap& bitmap = bitmaps_.at(name);
  ++bitmap.editing;
  ++bitmap.epoch;
  if (clears) bitmap.must.clear();
}

void BitmapModel::end_edit(const std::string& name, bool done, bool clears, bool enabled,
                           Token next) {
  const auto it = bitmaps_.find(name);
  if (it == bitmaps_.end()) return;  // Removed meanwhile.
  Bitmap& bitmap = it->second;
  --bitmap.editing;
  ++bitmap.epoch;
  if (!done) {
    bitmap.flag_certain = false;  // Until a new process says what it is.
    return;
  }
  bitmap.since = next;
  if (clears) {
    bitmap.must.clear();
  } else {
    bitmap.enabled = enabled;
  }
}

BitmapModel::Ranges BitmapModel::bytes_of(const Bitmap& bitmap,
                                          const std::set<uint64_t>& granules) {
  Ranges ranges;
  for (const uint64_t granule : granules) {
    ranges.emplace_back(granule << bitmap.granularity_bits, (granule + 1)
                                                                << bitmap.granularity_bits);
  }
  return ranges;
}

void BitmapModel::each_may_of(const std::string& name, const Ranges& ranges) {
  const auto it = bitmaps_.find(name);
  if (it == bitmaps_.end()) return;
  for (const auto& [offset, end] : ranges)
    each_granule(it->second, offset, end,
                 [&](uint64_t granule) { it->second.may.insert(granule); });
}

BitmapModel::Merge BitmapModel::begin_merge(const std::string& name, const std::string& from) {
  const Bitmap& source = bitmaps_.at(from);
  Merge merge{.name = name,
              .from = from,
              .epoch = bitmaps_.at(name).epoch,
              .from_epoch = source.epoch,
              .must = {},
              .may = bytes_of(source, source.may)};
  // What another change of it is about to make of it is known to nobody.
  if (source.editing == 0) merge.must = bytes_of(source, source.must);
  each_may_of(name, merge.may);
  return merge;
}

void BitmapModel::read_for_merge(Merge& merge) {
  const auto it = bitmaps_.find(merge.from);
  if (it == bitmaps_.end() || it->second.epoch != merge.from_epoch) merge.must.clear();
  if (it == bitmaps_.end()) return;
  merge.may = bytes_of(it->second, it->second.may);  // It only grows.
  each_may_of(merge.name, merge.may);
}

/// A change of the target that ended meanwhile may have come after it.
void BitmapModel::end_merge(const Merge& merge, bool done) {
  const auto it = bitmaps_.find(merge.name);
  if (it == bitmaps_.end()) return;
  each_may_of(merge.name, merge.may);
  Bitmap& target = it->second;
  if (!done || target.editing != 0 || target.epoch != merge.epoch) return;
  for (const auto& [offset, end] : merge.must)
    each_granule(target, offset, end, [&](uint64_t granule) { target.must.insert(granule); });
}

std::string BitmapModel::choose(uint64_t which) const {
  std::vector<std::string> there;
  for (const auto& [name, bitmap] : bitmaps_) {
    if (bitmap.certain && !bitmap.going) there.push_back(name);
  }
  return there.empty() ? std::string() : there[which % there.size()];
}

Result<void> BitmapModel::check(const std::vector<FoundBitmap>& found, uint64_t disk_size,
                                const std::vector<std::vector<std::byte>>* data, bool exact) const {
  std::set<std::string> names;
  for (const FoundBitmap& have : found) {
    const auto known = bitmaps_.find(have.name);
    if (known == bitmaps_.end())
      return corrupt("bitmap ", quoted(have.name), " should not be there");
    names.insert(have.name);
    const Bitmap& want = known->second;
    if (have.in_use || !have.valid) return corrupt("bitmap ", quoted(have.name), " is lost");
    if (have.granularity_bits != want.granularity_bits)
      return corrupt("bitmap ", quoted(have.name), ": granularity");
    const bool settled = want.editing == 0 && want.flag_certain && want.certain;
    if (settled && have.automatic != want.enabled)
      return corrupt("bitmap ", quoted(have.name), ": enabled or not");
    for (const uint64_t granule : want.must) {
      if (granule << want.granularity_bits >= disk_size) break;
      if (!have.dirty(granule)) {
        return corrupt("bitmap ", quoted(have.name), ": granule ", granule, " is clean (at ",
                       hex(granule << want.granularity_bits), ")");
      }
    }
    for (size_t w = 0; data && settled && want.enabled && w < windows_.size(); ++w) {
      for (uint64_t at = 0; at < windows_[w].length; at += kSectorSize) {
        const uint64_t offset = windows_[w].offset + at;
        if (offset >= disk_size) break;
        const Result<Token> token =
            recognise(Bytes((*data)[w]).subspan(at, kSectorSize), offset / kSectorSize);
        if (!token || *token < want.since || *token == 0) continue;
        if (have.dirty(offset >> want.granularity_bits)) continue;
        return corrupt("bitmap ", quoted(have.name), ": the disk has write ", *token, " at ",
                       hex(offset), ", which is clean");
      }
    }
    if (!exact || !settled) continue;
    for (const Window& window : windows_) {
      const uint64_t end = std::min(window.offset + window.length, disk_size);
      for (uint64_t i = window.offset >> want.granularity_bits;
           window.offset < end && i <= (end - 1) >> want.granularity_bits; ++i) {
        if (have.dirty(i) && !want.may.contains(i))
          return corrupt("bitmap ", quoted(have.name), ": granule ", i,
                         " is dirty, but was not written");
      }
    }
  }
  for (const auto& [name, bitmap] : bitmaps_) {
    if (bitmap.certain && !bitmap.going && !names.contains(name))
      return corrupt("bitmap ", quoted(name), " is gone");
  }
  return {};
}

void BitmapModel::settle(const std::vector<FoundBitmap>& found, uint64_t disk_size, Token next) {
  std::map<std::string, Bitmap> settled;
  for (const FoundBitmap& have : found) {
    const auto known = bitmaps_.find(have.name);
    if (known == bitmaps_.end()) continue;
    Bitmap bitmap = known->second;
    bitmap.enabled = have.automatic;
    bitmap.certain = bitmap.flag_certain = true;
    bitmap.going = false;
    bitmap.editing = 0;
    bitmap.since = next;
    bitmap.may.clear();
    // A resize that was cut off took effect.
    const uint64_t end = div_ceil(disk_size, uint64_t{1} << bitmap.granularity_bits);
    bitmap.must.erase(bitmap.must.lower_bound(end), bitmap.must.end());
    each_granule(bitmap, 0, UINT64_MAX, [&](uint64_t granule) {
      if (have.dirty(granule)) bitmap.may.insert(granule);
    });
    settled[have.name] = std::move(bitmap);
  }
  bitmaps_ = std::move(settled);
}

}  // namespace byre
