// SPDX-License-Identifier: Apache-2.0
#include "qcow2/bitmap/bitmaps.h"

#include <algorithm>
#include <map>

#include "base/checked.h"
#include "format/bitmaps_place.h"

namespace byre {

namespace {

/// Consecutive indices as runs: first and count.
std::vector<std::pair<uint64_t, uint64_t>> runs_of(const std::vector<uint64_t>& indices) {
  std::vector<std::pair<uint64_t, uint64_t>> runs;
  for (const uint64_t index : indices) {
    if (!runs.empty() && runs.back().first + runs.back().second == index) {
      ++runs.back().second;
    } else {
      runs.emplace_back(index, 1);
    }
  }
  return runs;
}

}  // namespace

Result<void> check_bitmap_size(uint64_t size, uint32_t granularity_bits, const Geometry& g) {
  const uint64_t entries = bitmap_table_entries_for(size, granularity_bits, g);
  if (entries == 0) return invalid("a disk of 0 bytes has no room for a bitmap");
  if (entries > kBitmapDataSizeMax / g.cluster_size()) {
    return invalid("a bitmap of this granularity would take ",
                   bitmap_data_size(size, granularity_bits), " bytes, at most ", kBitmapDataSizeMax,
                   "; use a larger one");
  }
  return {};
}

Bitmaps::Bitmaps(ReadyQueue& ready, Device& file, HeaderState& header, Allocator& allocator,
                 Committer& committer, MetadataSet& metadata, ReferenceGate& references)
    : file_(file),
      header_(header),
      head_(header.head()),
      geometry_(head_.geometry),
      allocator_(allocator),
      committer_(committer),
      references_(references),
      metadata_(metadata),
      finished_(ready) {}

uint64_t Bitmaps::parts_per_cluster(const BitmapSlot& slot) const {
  return geometry_.cluster_size() / slot.bits->part_bytes();
}

// --- Loading ------------------------------------------------------------------------------------

/// A cluster that no refcount protects would be handed out; one with two owners would be
/// overwritten.
Task<void> Bitmaps::claim(HostSpan span, std::string_view what) {
  if (span.count == 0) co_return;
  co_await allocator_.load(span).doing(what);
  if (const auto hit = metadata_.find_in(span)) {
    co_await fail(corrupt(what, " at ", geometry_.start_of(*hit),
                          " overlaps other metadata; run check -r all"));
  }
  for (uint64_t i = 0; i < span.count; ++i) metadata_.add_run({span.first + i, 1});
}

Task<void> Bitmaps::load(const std::function<void(const std::string&)>& message) {
  BitmapList list = co_await load_bitmap_list(file_, head_);
  if (list.empty()) co_return;
  co_await claim(hosts(*head_.extensions.bitmaps, geometry_), "bitmap directory");
  bool any_unfit = false;
  for (const auto& slot : list) {
    const Bitmap& entry = slot->entry;
    const bool no_table = slot->table.size() != entry.table_entries;
    if (slot->state == BitmapState::foreign && (entry.automatic || no_table)) {
      co_await fail(unsupported(slot->reason,
                                "; writing would make it untrue: open the image read-only, or "
                                "remove the bitmap with the program that made it"));
    }
    const std::string what = cat("bitmap ", quoted(entry.name));
    co_await claim(hosts(entry, geometry_), cat(what, ": table"));
    for (const BitmapTableEntry& at : slot->table) {
      if (at.data) co_await claim({*at.data, 1}, cat(what, ": data"));
    }
    if (slot->state == BitmapState::inconsistent && !entry.in_use) {
      slot->entry.in_use = any_unfit = true;
      if (message) message(cat(file_.name(), ": ", slot->reason, "; it is not used any more"));
    }
    if (slot->tracks()) {
      slot->bits = co_await load_bitmap_bits(file_, geometry_, *slot, head_.header.size);
      slot->marked.resize(slot->bits->parts());
    }
  }
  adopt(std::move(list));
  if (any_unfit) co_await set_in_use();
}

/// Otherwise it might fit again one day, untrue.
Task<void> Bitmaps::set_in_use() {
  std::vector<Bitmap> entries;
  for (const auto& slot : list_) entries.push_back(slot->entry);
  const std::vector<std::byte> directory = co_await serialize_bitmap_directory(entries);
  const HostOffset at = head_.extensions.bitmaps->directory_offset;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (!entries[i].in_use) continue;
    const uint64_t start = round_down(bitmap_flags_offset(entries, i), kSectorSize);
    const uint64_t length = std::min<uint64_t>(kSectorSize, directory.size() - start);
    co_await file_
        .write(at.value + start, Bytes(directory).subspan(start, length),
               {.tag = IoTag::bitmap_update})
        .doing("bitmap directory");
  }
  co_await committer_.sync(IoTag::commit_sync);
}

void Bitmaps::adopt(BitmapList list) {
  list_ = std::move(list);
  tracking_.clear();
  wanted_.clear();  // What others marked before its turn came; no request is left that waits.
  for (const auto& slot : list_) {
    if (slot->tracks()) tracking_.push_back(slot.get());
  }
}

Task<std::unique_ptr<DirtyBits>> Bitmaps::bits_of(const BitmapSlot& slot) {
  if (!slot.bits) {
    co_return co_await load_bitmap_bits(file_, geometry_, slot, head_.header.size);
  }
  co_return std::make_unique<DirtyBits>(slot.bits->resized(slot.bits->size()));
}

// --- Marking ------------------------------------------------------------------------------------

/// Sets the bits of marked parts; true if all are recorded: on the disk by a mark, or by the bits
/// themselves, which are what the disk says in a part that is not marked.
bool Bitmaps::mark_slot(BitmapSlot& slot, uint64_t offset, uint64_t length) {
  DirtyBits& bits = *slot.bits;
  if (offset >= bits.size() || length == 0) return true;
  length = std::min(length, bits.size() - offset);
  const uint64_t first = bits.granule_of(offset);
  const uint64_t end = bits.granule_of(offset + length - 1) + 1;
  bool done = true;
  for (uint64_t part = bits.part_of(first); part <= bits.part_of(end - 1); ++part) {
    const auto [part_first, part_end] = bits.granules_of(part);
    const uint64_t from = std::max(first, part_first);
    const uint64_t to = std::min(end, part_end);
    if (slot.marked[part]) {
      bits.set(from, to);
    } else if (!bits.all_set(from, to)) {
      done = false;
    }
  }
  return done;
}

void Bitmaps::want(size_t which, uint64_t offset, uint64_t length) {
  const BitmapSlot& slot = *tracking_[which];
  const DirtyBits& bits = *slot.bits;
  if (offset >= bits.size()) return;
  length = std::min(length, bits.size() - offset);
  const uint64_t first = bits.granule_of(offset);
  const uint64_t end = bits.granule_of(offset + length - 1) + 1;
  for (uint64_t part = bits.part_of(first); part <= bits.part_of(end - 1); ++part) {
    const auto [part_first, part_end] = bits.granules_of(part);
    if (!slot.marked[part] && !bits.all_set(std::max(first, part_first), std::min(end, part_end)))
      wanted_.emplace(which, part);
  }
}

Task<void> Bitmaps::set_dirty(uint64_t offset, uint64_t length) {
  while (!try_set_dirty(offset, length)) {
    if (committer_.latched()) co_await fail(committer_.latched().copy());
    co_await references_.wait();  // It may need a cluster; who holds a lock finds it decided (V).
    for (size_t i = 0; i < tracking_.size(); ++i) want(i, offset, length);
    if (running_) {
      co_await finished_.wait();
      continue;
    }
    running_ = true;
    Result<void> done = co_await write_marks(std::exchange(wanted_, {})).result();
    running_ = false;
    finished_.notify();
    co_await std::move(done).doing("mark the bitmaps");
  }
}

/// Sees to a cluster for a table entry that has none; false: there is no space.
Task<bool> Bitmaps::find_cluster(BitmapSlot& slot, uint64_t index) {
  if (slot.candidates.contains(index)) co_return true;
  Result<Reservation> reserved = co_await allocator_.reserve(1, Allocator::Use::metadata).result();
  if (!reserved && reserved.error().code() == Errc::no_space) co_return false;
  Reservation cluster = co_await std::move(reserved);
  // From here on it is ours, whether or not what follows succeeds (M4).
  metadata_.add_run(cluster.span());
  slot.candidates[index] = cluster.first();
  cluster.keep();
  co_return true;
}

std::vector<HostCluster> Bitmaps::candidates() const {
  std::vector<HostCluster> clusters;
  for (const auto& slot : list_) {
    for (const auto& [index, cluster] : slot->candidates) clusters.push_back(cluster);
  }
  return clusters;
}

Task<void> Bitmaps::write_parts(const BitmapSlot& slot, HostCluster at, uint64_t first,
                                Bytes bytes) {
  const HostOffset offset =
      geometry_.start_of(at) + first % parts_per_cluster(slot) * slot.bits->part_bytes();
  co_await file_.write(offset.value, bytes, {.tag = IoTag::bitmap_update})
      .doing("bitmap ", quoted(slot.entry.name), ": data at ", offset);
}

/// The sectors of the table that have these entries.
Task<void> Bitmaps::write_table_sectors(const BitmapSlot& slot, const Links& links) {
  constexpr uint64_t kPerSector = kSectorSize / 8;
  std::map<uint64_t, std::vector<std::byte>> sectors;
  for (const auto& [index, entry] : links) {
    std::vector<std::byte>& bytes = sectors[index / kPerSector];
    if (bytes.empty()) {
      bytes.resize(kSectorSize);
      const uint64_t first = round_down(index, kPerSector);
      for (uint64_t i = first; i < std::min<uint64_t>(first + kPerSector, slot.table.size()); ++i) {
        store_be(MutableBytes(bytes), (i - first) * 8,
                 encode_bitmap_table_entry(slot.table[i], geometry_));
      }
    }
    store_be(MutableBytes(bytes), index % kPerSector * 8,
             encode_bitmap_table_entry(entry, geometry_));
  }
  for (const auto& [sector, bytes] : sectors) {
    const HostOffset at = slot.entry.table_offset + sector * kSectorSize;
    co_await file_.write(at.value, bytes, {.tag = IoTag::bitmap_update})
        .doing("bitmap ", quoted(slot.entry.name), ": table at ", at);
  }
}

/// All bits of `parts` become set on the disk, durably.
Task<void> Bitmaps::write_marks(Chunks parts) {
  struct Entry {
    size_t which;
    uint64_t index;
    std::vector<uint64_t> parts;
  };
  std::vector<Entry> entries;
  // Another round may have marked it meanwhile.
  std::erase_if(parts,
                [&](const auto& each) { return tracking_[each.first]->marked[each.second]; });
  for (const auto& [which, part] : parts) {
    const uint64_t index = part / parts_per_cluster(*tracking_[which]);
    if (entries.empty() || entries.back().which != which || entries.back().index != index)
      entries.push_back({which, index, {}});
    entries.back().parts.push_back(part);
  }
  if (entries.empty()) co_return;
  std::map<size_t, Links> links;
  bool with_clusters = false;
  for (const Entry& entry : entries) {
    BitmapSlot& slot = *tracking_[entry.which];
    DirtyBits ones(slot.bits->size(), slot.bits->granularity_bits(), slot.bits->part_bytes());
    ones.fill(true);  // Without the bits behind the end of the disk.
    const uint64_t part_bytes = slot.bits->part_bytes();
    const auto at = slot.table[entry.index].data;
    if (at) {
      for (const auto& [first, count] : runs_of(entry.parts)) {
        std::vector<std::byte> bytes(count * part_bytes);
        for (uint64_t i = 0; i < count; ++i)
          ones.store(first + i, MutableBytes(bytes).subspan(i * part_bytes, part_bytes));
        co_await write_parts(slot, *at, first, bytes);
      }
      continue;
    }
    if (!co_await find_cluster(slot, entry.index)) {
      links[entry.which].emplace_back(entry.index,
                                      BitmapTableEntry{.data = std::nullopt, .ones = true});
      continue;
    }
    const HostCluster fresh = slot.candidates.at(entry.index);
    std::vector<std::byte> bytes(geometry_.cluster_size());
    for (const uint64_t part : entry.parts) {
      ones.store(part, MutableBytes(bytes).subspan(part % parts_per_cluster(slot) * part_bytes,
                                                   part_bytes));
    }
    co_await write_parts(slot, fresh, entry.index * parts_per_cluster(slot), bytes);
    links[entry.which].emplace_back(entry.index, BitmapTableEntry{.data = fresh, .ones = false});
    with_clusters = true;
  }
  if (with_clusters) co_await committer_.flush_all();  // Contents and refcount, then the pointer.
  for (const auto& [which, list] : links) co_await write_table_sectors(*tracking_[which], list);
  if (!with_clusters || !links.empty()) co_await committer_.sync(IoTag::commit_sync);

  for (const auto& [which, part] : parts) tracking_[which]->marked[part] = true;
  for (const auto& [which, list] : links) {
    BitmapSlot* slot = tracking_[which];
    for (const auto& [index, entry] : list) {
      slot->table[index] = entry;
      if (entry.data) {
        slot->candidates.erase(index);
        continue;
      }
      const uint64_t first = index * parts_per_cluster(*slot);
      const uint64_t end = std::min(first + parts_per_cluster(*slot), slot->bits->parts());
      for (uint64_t part = first; part < end; ++part) slot->marked[part] = true;
    }
  }
}

// --- Storing ------------------------------------------------------------------------------------

Task<void> Bitmaps::store_slot_exact(BitmapSlot& slot, std::vector<uint64_t>& stored,
                                     Links& links) {
  const uint64_t part_bytes = slot.bits->part_bytes();
  const uint64_t per_cluster = parts_per_cluster(slot);
  for (uint64_t index = 0; index < slot.table.size(); ++index) {
    const uint64_t begin = index * per_cluster;
    const uint64_t end = std::min(begin + per_cluster, slot.bits->parts());
    std::vector<uint64_t> marked;
    for (uint64_t part = begin; part < end; ++part) {
      if (slot.marked[part]) marked.push_back(part);
    }
    if (marked.empty()) continue;
    if (!slot.table[index].data) {
      if (slot.bits->fill_of(begin, end) == DirtyBits::Fill::ones) continue;
      // Without space it stays a superset.
      if (!co_await find_cluster(slot, index)) continue;
      std::vector<std::byte> bytes(geometry_.cluster_size());
      for (uint64_t part = begin; part < end; ++part) {
        slot.bits->store(part,
                         MutableBytes(bytes).subspan((part - begin) * part_bytes, part_bytes));
      }
      co_await write_parts(slot, slot.candidates.at(index), begin, bytes);
      links.emplace_back(index, BitmapTableEntry{.data = slot.candidates.at(index), .ones = false});
      stored.insert(stored.end(), marked.begin(), marked.end());
      continue;
    }
    stored.insert(stored.end(), marked.begin(), marked.end());
    for (const auto& [first, count] : runs_of(marked)) {
      std::vector<std::byte> bytes(count * part_bytes);
      for (uint64_t i = 0; i < count; ++i)
        slot.bits->store(first + i, MutableBytes(bytes).subspan(i * part_bytes, part_bytes));
      co_await write_parts(slot, *slot.table[index].data, first, bytes);
    }
  }
}

Task<void> Bitmaps::store_exact() {
  std::vector<std::vector<uint64_t>> stored(tracking_.size());
  bool wrote = false;
  for (size_t i = 0; i < tracking_.size(); ++i) {
    BitmapSlot& slot = *tracking_[i];
    Links links;
    co_await store_slot_exact(slot, stored[i], links);
    wrote |= !stored[i].empty();
    if (links.empty()) continue;
    co_await committer_.flush_all();  // Contents and refcounts, then the pointers.
    co_await write_table_sectors(slot, links);
    for (const auto& [index, entry] : links) {
      slot.table[index] = entry;
      slot.candidates.erase(index);
    }
  }
  if (!wrote) co_return;
  co_await committer_.sync(IoTag::commit_sync);
  for (size_t i = 0; i < tracking_.size(); ++i) {
    for (const uint64_t part : stored[i]) tracking_[i]->marked[part] = false;
  }
}

// --- Changing the list --------------------------------------------------------------------------

Task<std::shared_ptr<BitmapSlot>> Bitmaps::copy_of(const BitmapSlot& slot) {
  auto copy = std::make_shared<BitmapSlot>();
  copy->entry = slot.entry;
  copy->bits = co_await bits_of(slot);
  copy->fresh = true;
  co_return std::move(copy);
}

Result<void> Bitmaps::check_size(uint64_t size) const {
  for (const auto& slot : list_) {
    if (slot->state == BitmapState::inconsistent) continue;
    if (slot->state == BitmapState::foreign)
      return unsupported(slot->reason, ", so it cannot follow the size of the disk");
    Result<void> fits = check_bitmap_size(size, slot->entry.granularity_bits, geometry_);
    if (!fits) return std::move(fits).error().while_doing(cat("bitmap ", quoted(slot->entry.name)));
  }
  return {};
}

Task<BitmapList> Bitmaps::list_for_size(uint64_t size) {
  co_await check_size(size);
  BitmapList list;
  for (const auto& slot : list_) {
    if (slot->state == BitmapState::inconsistent) {
      list.push_back(slot);
      continue;
    }
    std::shared_ptr<BitmapSlot> copy = co_await copy_of(*slot);
    const uint64_t before = copy->bits->size();
    *copy->bits = copy->bits->resized(size);
    if (copy->tracks() && size > before) copy->bits->set_bytes(before, size - before);
    list.push_back(std::move(copy));
  }
  co_return std::move(list);
}

Task<BitmapList> Bitmaps::list_all_dirty(uint64_t size) {
  BitmapList list = co_await list_for_size(size);
  for (const auto& slot : list) {
    if (slot->tracks()) slot->bits->fill(true);
  }
  co_return std::move(list);
}

/// Table and bits of a bitmap that is not in the image yet.
Task<void> Bitmaps::allocate_and_write(BitmapSlot& slot, Change& change) {
  const Geometry& g = geometry_;
  const uint64_t size = slot.bits->size();
  const uint32_t granularity_bits = slot.entry.granularity_bits;
  co_await check_bitmap_size(size, granularity_bits, g);
  const uint64_t entries = bitmap_table_entries_for(size, granularity_bits, g);
  const uint64_t part_bytes = slot.bits->part_bytes();
  const uint64_t per_cluster = parts_per_cluster(slot);
  std::vector<std::byte> bytes(g.cluster_size());
  slot.table.assign(entries, {});
  for (uint64_t index = 0; index < entries; ++index) {
    const uint64_t begin = index * per_cluster;
    const uint64_t end = std::min(begin + per_cluster, slot.bits->parts());
    const DirtyBits::Fill fill = slot.bits->fill_of(begin, end);
    if (fill != DirtyBits::Fill::mixed) {
      slot.table[index].ones = fill == DirtyBits::Fill::ones;
      continue;
    }
    Reservation cluster = co_await allocator_.reserve(1, Allocator::Use::metadata);
    fill_zero(bytes);
    for (uint64_t part = begin; part < end; ++part)
      slot.bits->store(part, MutableBytes(bytes).subspan((part - begin) * part_bytes, part_bytes));
    co_await write_parts(slot, cluster.first(), begin, bytes);
    slot.table[index].data = cluster.first();
    change.clusters.push_back(std::move(cluster));
  }
  Reservation table = co_await allocator_.reserve_run(g.clusters_for(entries * 8));
  std::vector<std::byte> body(table.count() * g.cluster_size());
  for (uint64_t i = 0; i < entries; ++i) {
    store_be(MutableBytes(body), i * 8, encode_bitmap_table_entry(slot.table[i], g));
  }
  slot.entry.table_offset = g.start_of(table.first());
  slot.entry.table_entries = static_cast<uint32_t>(entries);
  co_await file_.write(slot.entry.table_offset.value, body, {.tag = IoTag::bitmap_update})
      .doing("bitmap ", quoted(slot.entry.name), ": table at ", slot.entry.table_offset);
  change.clusters.push_back(std::move(table));
}

void Bitmaps::add_clusters(const BitmapList& list, std::set<HostCluster>& to) const {
  for (const auto& slot : list) {
    const HostSpan table = hosts(slot->entry, geometry_);
    for (uint64_t i = 0; i < table.count; ++i) to.insert(table.first + i);
    for (const BitmapTableEntry& entry : slot->table) {
      if (entry.data) to.insert(*entry.data);
    }
    for (const auto& [index, cluster] : slot->candidates) to.insert(cluster);
  }
}

/// Other tools put the extension where the first sector ends, or behind it: a second copy that says
/// the same goes into the first sector, durably; then the one beyond is taken away.
Task<void> Bitmaps::move_extension(std::vector<std::byte>& first_cluster) {
  const auto far = far_bitmaps_extension(first_cluster, head_.header);
  if (!far) co_return;
  if (*far < kSectorSize) {
    co_await fail(
        Error(Errc::no_space, cat("the bitmaps extension at ", hex(*far),
                                  " lies across the end of the header's first sector; remove the "
                                  "bitmaps with the program that made them")));
  }
  if ((head_.header.autoclear & kBitmaps) != 0) {
    BitmapsEdit same{.extension = head_.extensions.bitmaps, .first_cluster = first_cluster};
    co_await header_.change({.bitmaps = std::move(same)});
    copy(MutableBytes(first_cluster), head_.sector);
  }
  const std::array<std::byte, 8> head = unused_extension_head(first_cluster, head_.header, *far);
  copy(MutableBytes(first_cluster).subspan(*far), head);
  co_await header_.write_past_sector(HostOffset{*far}, head);
}

Task<Bitmaps::Change> Bitmaps::prepare(BitmapList list) {
  const Geometry& g = geometry_;
  Change change{.list = std::move(list),
                .directory = {},
                .clusters = {},
                .given_up = {},
                .first_cluster = std::vector<std::byte>(g.cluster_size())};
  // What the file lacks of its first cluster are zeros.
  co_await file_
      .read(0, MutableBytes(change.first_cluster).first(std::min(g.cluster_size(), file_.size())),
            IoTag::header_read)
      .doing("header");
  copy(MutableBytes(change.first_cluster), head_.sector);
  co_await move_extension(change.first_cluster);

  for (const auto& slot : change.list) {
    if (slot->fresh)
      co_await allocate_and_write(*slot, change).doing("bitmap ", quoted(slot->entry.name));
  }
  std::vector<Bitmap> entries;
  for (const auto& slot : change.list) entries.push_back(slot->entry);
  const std::vector<std::byte> bytes = co_await serialize_bitmap_directory(entries);
  change.directory_size = bytes.size();
  if (!bytes.empty()) {
    change.directory = co_await allocator_.reserve_run(g.clusters_for(bytes.size()));
    const HostOffset at = g.start_of(change.directory.first());
    co_await file_.write(at.value, bytes, {.tag = IoTag::bitmap_update})
        .doing("bitmap directory at ", at);
  }
  add_clusters(list_, change.given_up);
  if (!list_.empty()) {
    const HostSpan directory = hosts(*head_.extensions.bitmaps, g);
    for (uint64_t i = 0; i < directory.count; ++i) change.given_up.insert(directory.first + i);
  }
  std::set<HostCluster> stay;
  add_clusters(change.list, stay);
  std::erase_if(change.given_up, [&](HostCluster cluster) { return stay.contains(cluster); });
  for (const HostCluster cluster : change.given_up) {
    co_await allocator_.load({cluster, 1}).doing("bitmaps");
  }
  std::vector<std::byte> trial = change.first_cluster;
  std::optional<BitmapsExtension> extension;
  if (!change.list.empty()) extension = BitmapsExtension{.count = 1, .directory_offset = {}};
  co_await put_bitmaps_extension(trial, head_.header, extension);
  co_return std::move(change);
}

Task<std::optional<Bitmaps::Change>> Bitmaps::prepare_for_size(uint64_t size) {
  if (empty()) co_return std::optional<Change>();
  co_return std::optional<Change>(co_await prepare(co_await list_for_size(size)));
}

BitmapsEdit Bitmaps::edit_for(const Change& change) const {
  BitmapsEdit edit{.extension = {}, .first_cluster = change.first_cluster};
  if (change.list.empty()) return edit;
  edit.extension =
      BitmapsExtension{.count = static_cast<uint32_t>(change.list.size()),
                       .directory_size = change.directory_size,
                       .directory_offset = geometry_.start_of(change.directory.first())};
  return edit;
}

void Bitmaps::keep(Change change) {
  for (const HostCluster cluster : change.given_up) {
    metadata_.remove_run({cluster, 1});
    allocator_.release({cluster, 1});
  }
  const auto take = [&](Reservation& reservation) {
    for (uint64_t i = 0; i < reservation.count(); ++i)
      metadata_.add_run({reservation.first() + i, 1});
    reservation.keep();
  };
  for (Reservation& reservation : change.clusters) take(reservation);
  if (change.directory) take(change.directory);
  for (const auto& slot : change.list) {
    if (!slot->fresh) continue;
    slot->fresh = false;
    if (!slot->tracks()) {
      slot->bits = nullptr;
      continue;
    }
    slot->marked.assign(slot->bits->parts(), false);
  }
  adopt(std::move(change.list));
}

}  // namespace byre
