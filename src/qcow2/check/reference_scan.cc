// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/reference_scan.h"

#include <algorithm>
#include <utility>

#include "base/checked.h"
#include "format/bitmap.h"
#include "format/l1.h"
#include "format/refcount.h"
#include "qcow2/check/table_reader.h"

namespace byre {

ReferenceScan::ReferenceScan(Device& file, const ImageHeader& head, ReferenceScanOptions options)
    : file_(file), head_(head), g_(head.geometry), options_(std::move(options)) {
  damage_.file_size = file_size_ = file.size();
  clusters_end_ = g_.clusters_for(file_size_);
}

void ReferenceScan::beyond_healing(std::string sentence) {
  damage_.beyond_healing.push_back(std::move(sentence));
}

void ReferenceScan::lost(ImageDamage::Lost lost, bool active) {
  if (!active) {
    ++damage_.lost_in_snapshots;
    return;
  }
  if (damage_.lost.size() >= options_.lost_max) {
    if (!std::exchange(damage_.too_many_lost, true))
      beyond_healing(cat("more than ", options_.lost_max, " parts of the disk lead nowhere"));
    return;
  }
  damage_.lost.push_back(lost);
}

/// Never somebody else's, though the file may grow over the place.
void ReferenceScan::leads_behind_end(HostOffset at, uint64_t length, uint64_t references) {
  const std::optional<uint64_t> end = checked_add(at.value, std::max<uint64_t>(length, 1));
  if (!end) return;
  const HostCluster first = g_.cluster_of(at);
  const uint64_t count = g_.cluster_of(HostOffset{*end - 1}) - first + 1;
  if (damage_.behind_end.size() < options_.lost_max) {
    damage_.behind_end.push_back({.clusters = {first, count}, .references = references});
  } else if (!std::exchange(damage_.too_many_lost, true)) {
    beyond_healing(
        cat("more than ", options_.lost_max, " entries lead behind the end of the file"));
  }
}

bool ReferenceScan::out_of_memory() {
  if (counts_.bytes() <= options_.memory_max) return false;
  if (!is_beyond_healing()) {
    beyond_healing(cat("its references lie so far apart that counting them takes more than ",
                       options_.memory_max / MiB, " MiB"));
  }
  return true;
}

bool ReferenceScan::is_l2_table(HostCluster cluster) const {
  return std::ranges::binary_search(tables_, cluster, {}, &Table::at);
}

/// An L2 table that an entry leads to is copied before it is changed, like any shared cluster;
/// everything else is changed where it is.
void ReferenceScan::in_metadata(GuestCluster guest, HostOffset at, uint64_t length, bool active) {
  lost({.first = guest, .why = ImageDamage::Lost::Why::in_metadata, .host = at}, active);
  const HostCluster last = g_.cluster_of(at + (length - 1));
  for (HostCluster cluster = g_.cluster_of(at); cluster <= last; ++cluster) {
    if (counts_.at(cluster).metadata && !is_l2_table(cluster) && !is_beyond_healing()) {
      beyond_healing(cat("guest offset ", g_.start_of(guest), " leads to host offset ", at,
                         ", where metadata lie that change in place"));
    }
  }
}

// ---- 1.

/// Every cluster that [at, at + length) touches holds metadata, and nothing else may.
void ReferenceScan::add_metadata(HostOffset at, uint64_t length, std::string_view what) {
  if (length == 0) return;
  const std::optional<uint64_t> end = checked_add(at.value, length);
  if (!end || g_.clusters_for(*end) > g_.clusters_for(file_size_)) {
    return beyond_healing(cat(what, " at ", at, " is not all in the file"));
  }
  bool overlaps = false;
  const HostCluster last = g_.cluster_of(HostOffset{*end - 1});
  for (HostCluster cluster = g_.cluster_of(at); cluster <= last; ++cluster) {
    overlaps |= counts_.add(cluster, {.references = 1, .metadata = true});
  }
  if (overlaps) beyond_healing(cat(what, " at ", at, " overlaps other metadata"));
}

/// What lies behind the end of the file is zeros.  Empty, and the image beyond healing, when it
/// cannot be read.
Task<std::vector<std::byte>> ReferenceScan::read(HostOffset at, uint64_t length,
                                                 std::string_view what) {
  std::vector<std::byte> bytes(length);
  const uint64_t there = at.value < file_size_ ? std::min(file_size_ - at.value, length) : 0;
  if (there == 0) co_return bytes;
  const Result<void> done =
      co_await file_.read(at.value, MutableBytes(bytes).first(there), IoTag::none).result();
  if (!done) {
    beyond_healing(cat(what, " at ", at, ": ", done.error().message()));
    bytes.clear();
  }
  co_return bytes;
}

Task<void> ReferenceScan::read_roots() {
  const Header& header = head_.header;
  add_metadata({0}, g_.cluster_size(), "the header");
  co_await read_l1(header.l1_offset, header.l1_entries, nullptr);
  co_await read_snapshots();
  if (const std::optional<CryptoHeader>& crypto = head_.extensions.crypto_header) {
    add_metadata(crypto->offset, crypto->length, "the encryption header");
  }
  co_await read_bitmaps();
  co_await read_refcount_table();
  merge_tables();
}

uint64_t ReferenceScan::table_bytes() const {
  const auto blocks = std::count_if(refcount_table_.begin(), refcount_table_.end(),
                                    [](uint64_t entry) { return entry != 0; });
  return (tables_.size() + static_cast<uint64_t>(blocks)) * g_.cluster_size();
}

Task<void> ReferenceScan::read_l1(HostOffset at, uint64_t entries, const std::string* snapshot) {
  const std::string what =
      snapshot ? cat("the L1 table of snapshot ", quoted(*snapshot)) : "the L1 table";
  add_metadata(at, entries * 8, what);
  if (is_beyond_healing()) co_return;  // Nothing will change; hostile tables cost time.
  const std::vector<std::byte> bytes = co_await read(at, entries * 8, what);
  for (uint64_t i = 0; i < bytes.size() / 8; ++i) {
    const uint64_t raw = load_l1_entry(bytes, i);
    if (!snapshot) active_l1_.push_back(raw);
    if (raw != 0) add_l1_entry(raw, i, snapshot == nullptr);
  }
}

void ReferenceScan::add_l1_entry(uint64_t raw, uint64_t index, bool active) {
  const HostOffset at{raw & kOffsetMask};
  if (at.value == 0 && decode_l1(raw, g_)) return;
  const auto leads_nowhere = [&](ImageDamage::Lost::Why why) {
    lost({.first = g_.first_of_l1(index),
          .count = g_.l2_entries(),
          .whole_table = true,
          .why = why,
          .host = at},
         active);
  };
  if (!g_.aligned(at)) {
    leads_nowhere(ImageDamage::Lost::Why::unreadable_entry);
    // One bit may be wrong: what lies there is kept.
    for (uint64_t i = 0; i < 2; ++i) {
      if (const HostCluster near = g_.cluster_of(at) + i; near.value < clusters_end_)
        counts_.add(near, {.references = 1});
    }
    return;
  }
  if (!within(at.value, g_.cluster_size(), file_size_)) {
    leads_nowhere(ImageDamage::Lost::Why::behind_end);
    if (at.value >= file_size_) leads_behind_end(at, g_.cluster_size(), 1);
  } else if (!decode_l1(raw, g_)) {
    leads_nowhere(ImageDamage::Lost::Why::unreadable_entry);
  }
  if (at.value == 0 || at.value >= file_size_) return;
  // What it may lead to is kept, whether anybody can read it or not.
  tables_.push_back({.at = g_.cluster_of(at),
                     .weight = 1,
                     .active = active,
                     .l1_index = static_cast<uint32_t>(index),
                     .copied = active && (raw & kCopied) != 0});
  // Snapshots share most of their tables: the list stays as short as the tables are many.
  if (tables_.size() >= std::max<size_t>(1 << 16, 2 * tables_merged_)) merge_tables();
}

void ReferenceScan::merge_tables() {
  std::sort(tables_.begin(), tables_.end(), [](const Table& a, const Table& b) {
    return a.at != b.at           ? a.at < b.at
           : a.active != b.active ? a.active > b.active
                                  : a.l1_index < b.l1_index;
  });
  size_t count = 0;
  for (const Table& table : tables_) {
    if (count == 0 || tables_[count - 1].at != table.at) {
      tables_[count++] = table;
      continue;
    }
    Table& same = tables_[count - 1];
    const bool twins = same.active != 0 && table.active != 0 && same.l1_index != table.l1_index;
    if (twins && shared_.size() < options_.lost_max) {
      same.shared = true;
      shared_.emplace(same.l1_index, table.l1_index);
    }
    same.weight += table.weight;
    same.active += table.active;
    same.copied |= table.copied;
    same.shared |= table.shared;
  }
  tables_.resize(count);
  tables_merged_ = count;
}

Task<void> ReferenceScan::read_snapshots() {
  if (head_.header.snapshot_count == 0) co_return;
  const Result<std::vector<Snapshot>> snapshots = co_await load_snapshots(file_, head_).result();
  if (!snapshots) {
    beyond_healing(snapshots.error().message());
    co_return;
  }
  const Result<std::vector<std::byte>> table = serialize_snapshots(*snapshots);
  if (!table) {
    beyond_healing(table.error().message());
    co_return;
  }
  add_metadata(head_.header.snapshots_offset, table->size(), "the snapshot table");
  for (const Snapshot& snapshot : *snapshots) {
    if (is_beyond_healing()) co_return;
    if (const Result<void> sound = check_l1_table(snapshot, g_); !sound) {
      beyond_healing(cat("snapshot ", quoted(snapshot.name), ": ", sound.error().message()));
      co_return;
    }
    co_await read_l1(snapshot.l1_offset, snapshot.l1_entries, &snapshot.name);
  }
}

/// They count while their bit says that they are consistent.  A directory that nobody can parse is
/// not followed: such an image is not opened for writing (bitmap/bitmaps.h).
Task<void> ReferenceScan::read_bitmaps() {
  const std::optional<BitmapsExtension>& extension = head_.extensions.bitmaps;
  if (!extension || (head_.header.autoclear & kBitmaps) == 0) co_return;
  if (is_beyond_healing()) co_return;
  const HostOffset at = extension->directory_offset;
  add_metadata(at, extension->directory_size, "the bitmap directory");
  if (is_beyond_healing()) co_return;
  const std::vector<std::byte> bytes =
      co_await read(at, extension->directory_size, "the bitmap directory");
  const Result<std::vector<Bitmap>> bitmaps = parse_bitmap_directory(bytes, extension->count, g_);
  if (!bitmaps) co_return;
  for (const Bitmap& bitmap : *bitmaps) {
    const std::string what = cat("the table of bitmap ", quoted(bitmap.name));
    const uint64_t size = uint64_t{bitmap.table_entries} * 8;
    add_metadata(bitmap.table_offset, size, what);
    if (is_beyond_healing()) co_return;
    const std::vector<std::byte> table = co_await read(bitmap.table_offset, size, what);
    for (uint64_t i = 0; i < table.size() / 8; ++i) {
      const Result<BitmapTableEntry> entry =
          decode_bitmap_table_entry(load_be<uint64_t>(table, i * 8), g_);
      if (!entry || !entry->data) continue;
      add_metadata(g_.start_of(*entry->data), g_.cluster_size(),
                   cat("data of bitmap ", quoted(bitmap.name)));
      if (is_beyond_healing()) co_return;
    }
  }
}

Task<void> ReferenceScan::read_refcount_table() {
  const HostOffset at = head_.header.refcount_table_offset;
  const uint64_t size = uint64_t{head_.header.refcount_table_clusters} << g_.cluster_bits;
  if (const Result<void> sound = check_refcount_table(head_.header); !sound) {
    beyond_healing(sound.error().message());
    co_return;
  }
  add_metadata(at, size, "the refcount table");
  if (is_beyond_healing()) co_return;
  const std::vector<std::byte> table = co_await read(at, size, "the refcount table");
  for (uint64_t i = 0; i < table.size() / 8; ++i) {
    const uint64_t raw = load_refcount_table_entry(table, i);
    refcount_table_.push_back(raw);
    if (raw == 0) continue;
    const Result<std::optional<HostCluster>> block = decode_refcount_table_entry(raw, g_);
    if (!block) {
      beyond_healing(cat("refcount table entry ", i, ": ", block.error().message()));
    } else if (!within(raw, g_.cluster_size(), file_size_)) {
      beyond_healing(
          cat("refcount block ", i, " at ", hex(raw), " lies behind the end of the file"));
    } else {
      add_metadata({raw}, g_.cluster_size(), cat("refcount block ", i));
    }
    if (is_beyond_healing()) co_return;
  }
}

// ---- 2.

Task<ImageDamage> ReferenceScan::finish() {
  // Tables are dense, whoever wrote them: two bytes for each entry that there can be.
  options_.memory_max = std::min(options_.memory_max, 64 * MiB + table_bytes() / 4);
  if (!is_beyond_healing()) {
    count_tables();
    co_await walk_tables();
  }
  // Reading goes on all the same, and nothing will be allocated: no more needs to be known.
  if (!is_beyond_healing()) co_await compare();
  if (!suspects_.empty()) co_await locate();
  describe_suspects();
  add_twins();
  damage_.table_bytes = table_bytes();
  damage_.memory_bytes = counts_.bytes() + tables_.size() * sizeof(Table);
  std::ranges::sort(damage_.lost, {}, &ImageDamage::Lost::first);
  co_return std::move(damage_);
}

void ReferenceScan::count_tables() {
  for (const Table& table : tables_) {
    if (out_of_memory()) return;
    const bool overlaps = counts_.add(
        table.at, {.references = table.weight, .copied = table.copied, .metadata = true});
    if (overlaps) {
      beyond_healing(cat("the L2 table at ", g_.start_of(table.at), " overlaps other metadata"));
      return;
    }
  }
}

Task<void> ReferenceScan::walk_tables() {
  std::vector<HostCluster> clusters;
  clusters.reserve(tables_.size());
  for (const Table& table : tables_) clusters.push_back(table.at);
  co_await each_cluster(std::move(clusters), "the L2 table", [this](size_t i, Bytes bytes) {
    keep_table(tables_[i], bytes);
    count_entries(tables_[i], bytes);
  });
}

void ReferenceScan::keep_table(const Table& table, Bytes bytes) {
  if (table.active == 0 || (read_tables_.size() + 1) * bytes.size() > options_.read_tables_max)
    return;
  read_tables_.push_back({.at = table.at, .bytes = {bytes.begin(), bytes.end()}});
}

void ReferenceScan::count_entries(const Table& table, Bytes bytes) {
  if (is_beyond_healing() || out_of_memory()) return;
  const uint64_t entries = g_.l2_entries();
  const bool plain_possible = !g_.extended_l2 && !g_.data_file;
  const uint64_t never = ~(kCopied | kOffsetMask) | (g_.cluster_size() - 1);
  const bool active = table.active != 0;
  for (uint64_t i = 0; i < entries; ++i) {
    if (plain_possible) {
      const auto raw = load_be<uint64_t>(bytes, i * 8);
      if (raw == 0) continue;
      const uint64_t at = raw & kOffsetMask;
      if ((raw & never) == 0 && at != 0 && at < file_size_) [[likely]] {
        const bool hit =
            counts_.add({at >> g_.cluster_bits},
                        {.references = table.weight, .copied = active && (raw & kCopied) != 0});
        if (!hit) continue;
        in_metadata(g_.first_of_l1(table.l1_index) + i, {at}, g_.cluster_size(), active);
        continue;
      }
    }
    const L2Entry entry = load_l2(bytes, i, g_);
    if (entry != L2Entry{}) count_entry(table, i, entry);
  }
}

void ReferenceScan::count_entry(const Table& table, uint64_t index, L2Entry entry) {
  const bool active = table.active != 0;
  const GuestCluster guest = g_.first_of_l1(table.l1_index) + index;
  const Result<Mapping> mapping = decode_l2(entry, g_);
  const HostOffset at{entry.descriptor & kOffsetMask};
  if (!mapping || (g_.data_file && !at_own_offset(*mapping, guest))) {
    lost({.first = guest, .why = ImageDamage::Lost::Why::unreadable_entry, .host = at}, active);
    const bool compressed = (entry.descriptor & kCompressed) != 0;
    if (!compressed && !g_.data_file && at.value != 0 && at.value < file_size_)
      count_range(table, index, at, g_.cluster_size(), false);
    return;
  }
  if (mapping->compressed) {
    return count_range(table, index, mapping->compressed_at, mapping->compressed_size, false);
  }
  if (!mapping->host || g_.data_file) return;
  count_range(table, index, at, g_.cluster_size(), active && (entry.descriptor & kCopied) != 0);
}

void ReferenceScan::count_range(const Table& table, uint64_t index, HostOffset at, uint64_t length,
                                bool copied) {
  const GuestCluster guest = g_.first_of_l1(table.l1_index) + index;
  const bool active = table.active != 0;
  const std::optional<uint64_t> end = checked_add(at.value, length);
  // Of the last cluster a part may be there, which reads as zeros behind it.
  if (!end || (*end > file_size_ && *end - file_size_ >= g_.cluster_size())) {
    if (copied && table.weight > 1) note_copied(table, index);
    leads_behind_end(at, length, table.weight);
    lost({.first = guest, .why = ImageDamage::Lost::Why::behind_end, .host = at}, active);
    return;
  }
  bool in_metadata_too = false;
  const HostCluster last = g_.cluster_of(HostOffset{*end - 1});
  clusters_end_ = std::max(clusters_end_, last.value + 1);
  for (HostCluster cluster = g_.cluster_of(at); cluster <= last; ++cluster) {
    in_metadata_too |= counts_.add(cluster, {.references = table.weight, .copied = copied});
  }
  if (in_metadata_too) in_metadata(guest, at, length, active);
}

void ReferenceScan::note_copied(const Table& table, uint64_t index) {
  const HostOffset at = g_.start_of(table.at) + index * g_.l2_entry_size();
  // Of a table that is not all there no entry is used.
  if (!within(g_.start_of(table.at).value, g_.cluster_size(), file_size_)) return;
  if (damage_.copied.size() >= options_.undercounted_max) {
    if (!is_beyond_healing())
      beyond_healing(cat("more than ", options_.undercounted_max, " entries have COPIED wrongly"));
    return;
  }
  damage_.copied.push_back({.l1_index = table.l1_index, .l2_index = index, .at = at});
}

Task<void> ReferenceScan::compare() {
  const std::vector<uint64_t> regions = counts_.regions();
  const uint64_t per_block = g_.refcount_block_entries();
  // Entries of the refcount table that have a block, or whose clusters are referenced.
  std::set<uint64_t> bare;
  for (const uint64_t region : regions) {
    const uint64_t first = region * CompactCounts::kRegion / per_block;
    const uint64_t last =
        (region * CompactCounts::kRegion + CompactCounts::kRegion - 1) / per_block;
    for (uint64_t i = first; i <= last; ++i) {
      if (i >= refcount_table_.size() || refcount_table_[i] == 0) bare.insert(i);
    }
  }
  for (const uint64_t index : bare) compare_block(index, {});
  std::vector<std::pair<HostCluster, uint64_t>> blocks;
  for (uint64_t i = 0; i < refcount_table_.size(); ++i) {
    if (refcount_table_[i] != 0)
      blocks.emplace_back(g_.cluster_of(HostOffset{refcount_table_[i]}), i);
  }
  std::sort(blocks.begin(), blocks.end());
  std::vector<HostCluster> clusters;
  for (const auto& [cluster, index] : blocks) clusters.push_back(cluster);
  co_await each_cluster(std::move(clusters), "the refcount block",
                        [&](size_t i, Bytes bytes) { compare_block(blocks[i].second, bytes); });
  std::ranges::sort(damage_.undercounted, {}, &ImageDamage::Undercounted::cluster);
  std::ranges::sort(damage_.leaks, {}, &HostSpan::first);
}

/// `block` is empty when there is none: all its counts are zero.
void ReferenceScan::compare_block(uint64_t index, Bytes block) {
  const uint64_t first = g_.first_of_refcount_table(index).value;
  const uint64_t end = std::min(first + g_.refcount_block_entries(), clusters_end_);
  const uint32_t order = g_.refcount_order;
  for (uint64_t at = first; at < end;) {
    const uint64_t stop = std::min(end, (at / CompactCounts::kRegion + 1) * CompactCounts::kRegion);
    if (!counts_.has_region(HostCluster{at})) {
      // Only what has a refcount is of interest.
      if (!block.empty())
        at = first + find_nonzero_refcount(block, at - first, stop - first, order);
      if (block.empty() || at >= stop) {
        at = stop;
        continue;
      }
    }
    compare_cluster({at}, block.empty() ? 0 : get_refcount(block, at - first, order));
    ++at;
  }
}

void ReferenceScan::compare_cluster(HostCluster cluster, uint64_t refcount) {
  const CompactCounts::Cell cell = counts_.at(cluster);
  const uint64_t references = cell.references;
  if (references == refcount && (references <= 1 || !cell.copied)) return;
  if (references == 0) {
    ++damage_.leaked_clusters;
    if (!damage_.leaks.empty() && damage_.leaks.back().end() == cluster) {
      ++damage_.leaks.back().count;
    } else if (damage_.leaks.size() < options_.undercounted_max) {
      damage_.leaks.push_back({cluster, 1});
    }
    return;
  }
  if (references > refcount) {
    if (damage_.undercounted.size() >= options_.undercounted_max) {
      if (!is_beyond_healing())
        beyond_healing(cat("more than ", options_.undercounted_max, " refcounts are too small"));
      return;
    }
    damage_.undercounted.push_back({.cluster = cluster,
                                    .references = references,
                                    .refcount = refcount,
                                    .metadata = cell.metadata});
  }
  // COPIED is right where there is one reference; a refcount that says more is a leak.  But a table
  // that is to be changed in place must have a refcount of one (Map::prepare()).
  const bool shared = references > 1 || (cell.metadata && refcount > 1);
  if (!shared || (!cell.copied && references <= refcount)) return;
  if (suspects_.size() < options_.undercounted_max) {
    suspects_[cluster];
  } else if (!is_beyond_healing()) {
    beyond_healing(cat("more than ", options_.undercounted_max, " clusters have two owners"));
  }
}

// ---- 3.

Task<void> ReferenceScan::locate() {
  for (uint64_t i = 0; i < active_l1_.size(); ++i) {
    const HostOffset at{active_l1_[i] & kOffsetMask};
    if ((active_l1_[i] & kCopied) == 0 || !suspects_.contains(g_.cluster_of(at))) continue;
    damage_.copied.push_back({.l1_index = i, .in_l1 = true, .at = head_.header.l1_offset + i * 8});
  }
  std::vector<HostCluster> clusters;
  for (const Table& table : tables_) clusters.push_back(table.at);
  co_await each_cluster(std::move(clusters), "the L2 table",
                        [this](size_t i, Bytes bytes) { locate_entries(tables_[i], bytes); });
}

void ReferenceScan::locate_entries(const Table& table, Bytes bytes) {
  for (uint64_t i = 0; i < g_.l2_entries(); ++i) {
    const L2Entry entry = load_l2(bytes, i, g_);
    if (entry == L2Entry{}) continue;
    const Result<Mapping> mapping = decode_l2(entry, g_);
    if (!mapping) continue;
    const HostSpan span = hosts(*mapping, g_);
    for (uint64_t n = 0; n < span.count; ++n) {
      const auto found = suspects_.find(span.first + n);
      if (found == suspects_.end()) continue;
      const GuestCluster guest = g_.first_of_l1(table.l1_index) + i;
      Suspect& suspect = found->second;
      (mapping->compressed ? suspect.compressed : suspect.data) = true;
      suspect.active |= table.active != 0;
      const bool known =
          std::find(suspect.guests.begin(), suspect.guests.end(), guest) != suspect.guests.end();
      if (!known && suspect.guests.size() < kGuestsMax) suspect.guests.push_back(guest);
      const bool copied =
          table.active != 0 && !mapping->compressed && (entry.descriptor & kCopied) != 0;
      if (copied) note_copied(table, i);
    }
  }
}

/// What is lost in a table that several L1 entries lead to is lost for each.
void ReferenceScan::add_twins() {
  const size_t count = damage_.lost.size();
  for (size_t i = 0; i < count && !shared_.empty(); ++i) {
    const ImageDamage::Lost one = damage_.lost[i];
    if (one.whole_table) continue;
    const auto index = static_cast<uint32_t>(g_.l1_index(one.first));
    for (auto at = shared_.lower_bound({index, 0});
         at != shared_.end() && at->first == index && !is_beyond_healing(); ++at) {
      ImageDamage::Lost twin = one;
      twin.first = g_.first_of_l1(at->second) + g_.l2_index(one.first);
      lost(twin, true);
    }
  }
}

void ReferenceScan::in_doubt(GuestCluster first, uint64_t clusters, bool active) {
  ++damage_.in_doubt_count;
  if (damage_.in_doubt.size() < options_.in_doubt_max) {
    damage_.in_doubt.push_back(
        {.offset = g_.start_of(first), .length = clusters << g_.cluster_bits, .active = active});
  }
}

void ReferenceScan::describe_suspects() {
  std::set<Cause> causes;
  for (const auto& [one, other] : shared_) {
    causes.insert(Cause::failed_l1_update);
    in_doubt(g_.first_of_l1(one), g_.l2_entries(), true);
    in_doubt(g_.first_of_l1(other), g_.l2_entries(), true);
  }
  for (const auto& [cluster, suspect] : suspects_) {
    const bool packed_over = suspect.data && suspect.compressed;
    if (!packed_over && (suspect.compressed || suspect.guests.size() < 2)) continue;
    causes.insert(packed_over ? Cause::stale_packing : Cause::reuse_race);
    for (const GuestCluster guest : suspect.guests) in_doubt(guest, 1, suspect.active);
  }
  for (const ImageDamage::Undercounted& one : damage_.undercounted) {
    const uint64_t index = g_.refcount_table_index(one.cluster);
    const bool is_block =
        index < refcount_table_.size() && refcount_table_[index] == g_.start_of(one.cluster).value;
    if (is_block && g_.refcount_block_index(one.cluster) == 1)
      causes.insert(Cause::vmd_refcount_block);
  }
  for (const ImageDamage::Lost& one : damage_.lost) {
    if (one.why == ImageDamage::Lost::Why::behind_end) causes.insert(Cause::truncated_file);
  }
  damage_.causes.assign(causes.begin(), causes.end());
  std::ranges::sort(damage_.in_doubt, {}, &ImageDamage::InDoubt::offset);
}

// ---- Reading.

namespace {
/// What lies between two windows: nobody is disturbed who needs the disk to stand still, and, where
/// guests have it, too, half of the disk's time is theirs.
class BetweenWindows final : public TableReader::Throttle {
 public:
  BetweenWindows(Reactor& reactor, Gate* gate, bool paced)
      : reactor_(reactor), gate_(gate), paced_(paced), last_(reactor.now()) {}
  Task<void> before_window() override {
    pass_.release();
    if (paced_) {
      const int64_t took = reactor_.now().ns - last_.ns;
      if (took > 0) co_await reactor_.sleep(took);
    }
    if (gate_) pass_ = co_await gate_->enter();
    last_ = reactor_.now();
  }

 private:
  Reactor& reactor_;
  Gate* gate_;
  bool paced_;
  Instant last_;
  Gate::Pass pass_;
};
}  // namespace

Task<void> ReferenceScan::each_cluster(std::vector<HostCluster> clusters, std::string_view what,
                                       const std::function<void(size_t, Bytes)>& visit) {
  TableReader reader(file_, g_, file_size_);
  BetweenWindows between(file_.reactor(), options_.gate, options_.paced);
  TableReader::Pace pace{.go_on = [this] { return progress_.check("scan of the references"); },
                         .progress =
                             [this, before = progress_.done()](uint64_t done) {
                               progress_.set(before + done * g_.cluster_size(), table_bytes());
                             }};
  if (options_.paced || options_.gate) pace.throttle = &between;
  if (options_.paced) pace.reads_max = 1;
  const auto failed = [&](uint64_t i, const Error& error) {
    if (damage_.beyond_healing.size() < kSentencesMax)
      beyond_healing(cat(what, " at ", g_.start_of(clusters[i]), ": ", error.message()));
  };
  co_await reader.each(
      {.count = clusters.size(), .cluster = [&](uint64_t i) { return clusters[i]; }},
      [&](uint64_t i, MutableBytes bytes) { visit(i, bytes); }, failed, pace);
}

}  // namespace byre
