// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/metadata_scan.h"

#include <algorithm>

#include "base/checked.h"
#include "format/bitmap.h"
#include "format/l1.h"
#include "format/luks.h"
#include "format/refcount.h"

namespace byre {
namespace {

/// L1 and bitmap tables are read in pieces of this size.
constexpr uint64_t kPiece = MiB;
/// A structure that shares its first cluster with another is not followed when it is larger: it
/// could claim the same bytes again and again.
constexpr uint64_t kFollowedMax = MiB;

constexpr double kShareOfCounting = 0.8;

/// Where the header has the autoclear features.
constexpr uint64_t kAutoclearAt = 88;
constexpr uint64_t kHeaderLengthAt = 100;

/// Identities of the structures of Owner::other.
constexpr uint64_t kSnapshotTable = 1;
constexpr uint64_t kEncryptionHeader = 2;
constexpr uint64_t kBitmapDirectory = 3;
constexpr uint64_t kFirstBitmap = 16;

/// What leaves a cluster with these two owners behind.
Cause cause_of_alias(Owner one, Owner other) {
  if (one == Owner::data && other == Owner::data) return Cause::reuse_race;
  const bool packed = one == Owner::compressed || other == Owner::compressed;
  const bool plain = one == Owner::data || other == Owner::data;
  return packed && plain ? Cause::stale_packing : Cause::unknown;
}

}  // namespace

// ---- Findings.

void MetadataScan::store(Severity severity, const Place& place, std::string text) {
  Finding finding{.severity = severity,
                  .kind = place.kind,
                  .structure = std::string(place.structure),
                  .host_offset = place.at,
                  .host_length = place.length,
                  .cause = place.cause,
                  .repair = place.repair,
                  .text = std::move(text),
                  .entry = place.entry};
  if (place.use) finding.l2_table = geometry().start_of(HostCluster{place.use->cluster}).value;
  if (place.guest) {
    Finding::Guest guest{.offset = geometry().start_of(*place.guest).value,
                         .length = place.guest_clusters << geometry().cluster_bits};
    if (place.use) guest.active = place.use->active != 0;
    if (place.l1) {
      guest.active = place.l1->active;
      if (!guest.active) guest.snapshots.push_back(place.l1->snapshot);
    }
    finding.guests.push_back(std::move(guest));
    finding.guests_count = 1;
  }
  report.findings.push_back(std::move(finding));
}

void MetadataScan::unreadable(const Error& error) {
  damaged = true;
  ++report.check_errors;
  note(FindingKind::unreadable, error.message());
}

// ---- The walk.

Task<void> MetadataScan::run() {
  co_await begin();
  co_await end();
}

Task<void> MetadataScan::begin() {
  file_size = file.size();
  head = co_await load_image_header(file, OpenFor::check);
  kept = kept_clusters_of(head.extensions);
  clusters = geometry().clusters_for(file_size);
  report.total_clusters = geometry().clusters_for(head.header.size);
  check_header();
  co_await count_metadata();
}

void MetadataScan::check_header() {
  Header header = head.header;
  if ((header.autoclear & kRawDataFile) != 0 && !header.has(kDataFile)) {
    // Nobody opens it, yet the bit says nothing.
    fault({.kind = FindingKind::stray_flag,
           .structure = "header",
           .at = kAutoclearAt,
           .length = 8,
           .repair = RepairKind::fix_flag},
          "header: the bit for raw external data is set, but there is no external data file");
    repairable_entries = true;
    header.autoclear &= ~kRawDataFile;
  }
  Extensions extensions = head.extensions;
  check_readers(header, extensions);
  if (header.has(kCorrupt)) {
    note(FindingKind::oddity, "the image is marked corrupt, so nobody may write to it");
  }
  for (std::string& oddity : oddities(header, extensions)) {
    note(FindingKind::oddity, oddity);
  }
}

/// What byre reads and others refuse; it is taken out of what is looked at afterwards.
void MetadataScan::check_readers(Header& header, Extensions& extensions) {
  const auto refused = [&](uint64_t at, uint64_t length, RepairKind repair, const auto&... parts) {
    repairable_header |= repair != RepairKind::refuse;
    fault({.kind = FindingKind::header,
           .structure = "header",
           .at = at,
           .length = length,
           .repair = repair},
          "header: ", parts..., "; other readers refuse the image");
  };
  if (header.header_length % 8 != 0) {
    refused(kHeaderLengthAt, 4, RepairKind::complete, "its length is ", header.header_length,
            ", not a multiple of 8");
    header.header_length = static_cast<uint32_t>(round_up(header.header_length, 8));
  }
  if (const auto& format = extensions.backing_format;
      format && format->size() > kBackingFormatSizeMax) {
    const bool meant = head.backing_file.has_value();
    refused(header.header_length, 0, meant ? RepairKind::refuse : RepairKind::drop,
            "the backing format ", quoted(*format), " has ", format->size(), " bytes, at most ",
            kBackingFormatSizeMax, " are allowed",
            meant ? " (amend --force -o backing_fmt=FORMAT names the right one)" : "");
    extensions.backing_format.reset();
  }
  if ((header.autoclear & kBitmaps) != 0 && !extensions.bitmaps) {
    refused(kAutoclearAt, 8, RepairKind::fix_flag, "the bit for bitmaps is set without bitmaps");
    header.autoclear &= ~kBitmaps;
  }
  const auto is_unsound = [](const UnknownExtension& extension) {
    return extension.type == kBitmapsExtension;
  };
  if (std::erase_if(extensions.unknown, is_unsound) != 0) {
    refused(header.header_length, 0, RepairKind::drop,
            "the bitmaps extension is unsound, and its bit says that nobody uses it");
  }
}

Task<void> MetadataScan::end() {
  const VisitL2 count = [this](const L2Use& use, MutableBytes table) { count_l2(use, table); };
  co_await each_l2(count, true);
  // Last, so that a block that belongs to somebody else, too, is known before it is believed.
  co_await count_refcounts();
  if (!refcounts_unknown_) co_await compare();
  if (!behind_end_.empty()) co_await check_behind_end();
  if (copied_mismatch) co_await visit_copied(Copied::report);
  report.image_end_offset = (highest_ + 1) << geometry().cluster_bits;
  progress(1);
}

void MetadataScan::progress(double fraction) const {
  if (options.progress) options.progress(fraction);
}

Result<void> MetadataScan::go_on() const {
  if (!options.stopped || !options.stopped()) return {};
  return Error(Errc::cancelled, "the check was stopped");
}

Task<void> MetadataScan::count_metadata() {
  count_range(0, geometry().cluster_size(), Owner::header, 0, 1, "header");
  co_await count_active_l1();
  co_await count_snapshots();
  if (const std::optional<CryptoHeader>& crypto = head.extensions.crypto_header) {
    count_range(crypto->offset.value, crypto->length, Owner::other, kEncryptionHeader, 1,
                "encryption header");
  }
  co_await count_bitmaps();

  merge_l2_uses();
  count_l2_tables();
}

/// A whole cluster or more; the last cluster of the file may be there in part.
bool MetadataScan::is_behind_end(uint64_t offset, uint64_t length) const {
  const std::optional<uint64_t> end = checked_add(offset, length);
  return !end || (*end > file_size && *end - file_size >= geometry().cluster_size());
}

/// Adds references to every cluster that [offset, offset + length) touches; false, with a finding,
/// when it ends behind the end of the file.
bool MetadataScan::count_range(uint64_t offset, uint64_t length, Owner owner, uint64_t identity,
                               uint64_t weight, std::string_view what, const Met* met) {
  if (length == 0) return true;
  if (is_behind_end(offset, length)) {
    pointed_behind_end = std::min(pointed_behind_end, std::max(offset, file_size));
    Place place = met ? entry_place(*met, FindingKind::behind_end)
                      : Place{.kind = FindingKind::behind_end, .at = offset, .length = length};
    place.structure = what;
    place.cause = Cause::truncated_file;
    lost_entries |= met != nullptr;
    damage(weight, place, what, " at host offset ", hex(offset), ": ", length,
           " bytes are not all there: the file ends before");
    return false;
  }
  const HostCluster first = geometry().cluster_of(HostOffset{offset});
  const HostCluster last = geometry().cluster_of(HostOffset{offset + length - 1});
  clusters = std::max(clusters, last.value + 1);
  bool alone = true;
  for (HostCluster cluster = first; cluster <= last; ++cluster) {
    const std::optional<Owner> other = counts.add(cluster, owner, identity, weight);
    if (other) {
      Place shared = place_of(cluster);
      shared.structure = what;
      if (met) {
        shared.use = met->use;
        shared.guest = met->guest;
        shared.entry = met->entry.descriptor;
      }
      shared.cause = cause_of_alias(*other, owner);
      damage_beyond_qemu(1, shared, "host cluster at ", geometry().start_of(cluster), ": ", what,
                         " at ", hex(offset), " lies in ", name_of(*other));
    }
    if (const auto* cell = counts.find(cluster); cell->aliased) alone = false;
    if (!alone && length > kFollowedMax) return false;
  }
  return true;
}

Task<void> MetadataScan::read_padded(uint64_t offset, MutableBytes data, IoTag tag) {
  co_await byre::read_padded(file, file_size, offset, data, tag);
}

// ---- L1 tables, active and not.

/// Of a table that the file has in part, the entries that are there count.
Task<void> MetadataScan::count_active_l1() {
  const HostOffset at = head.header.l1_offset;
  const uint64_t entries = head.header.l1_entries;
  const uint64_t needed = geometry().l1_entries_for(head.header.size);
  l1_behind_end = entries != 0 && is_behind_end(at.value, entries * 8);
  l1_too_short = entries < needed;
  const Place place{.kind = FindingKind::behind_end,
                    .structure = "L1 table",
                    .at = at.value,
                    .length = entries * 8,
                    .cause = Cause::truncated_file};
  if (l1_behind_end) {
    pointed_behind_end = std::min(pointed_behind_end, std::max(at.value, file_size));
    damage(1, place, "L1 table at host offset ", at, ": ", entries * 8,
           " bytes are not all there: the file ends before");
  }
  if (l1_too_short) {
    damage(1, place, "L1 table of ", entries, " entries: a disk of ", head.header.size,
           " bytes needs ", needed);
  }
  const uint64_t there = at.value < file_size ? (file_size - at.value) / 8 : 0;
  co_await count_l1(at, l1_behind_end ? there : entries, 0, "", "");
}

/// `what` is put in front of findings; the active table's is empty.
Task<bool> MetadataScan::count_l1(HostOffset at, uint64_t entries, uint64_t identity,
                                  std::string what, std::string snapshot) {
  if (!count_range(at.value, entries * 8, Owner::l1, identity, 1, what + "L1 table"))
    co_return false;
  const bool active = identity == 0;
  const L1Table l1{.at = at, .entries = entries, .active = active, .snapshot = snapshot};
  l1_tables.push_back(l1);
  std::vector<std::byte> piece;
  for (uint64_t done = 0; done < entries;) {
    const uint64_t count = std::min(entries - done, kPiece / 8);
    piece.resize(count * 8);
    const Result<void> read =
        co_await read_padded(at.value + done * 8, piece, IoTag::l1_load).result();
    if (!read) {
      unreadable(read.error());
      co_return false;
    }
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t entry = load_l1_entry(piece, i);
      if (active) l1_.push_back(entry);
      if (entry != 0) count_l1_entry(entry, done + i, l1, what);
    }
    done += count;
  }
  co_return true;
}

void MetadataScan::count_l1_entry(uint64_t entry, uint64_t index, const L1Table& l1,
                                  std::string_view what) {
  const bool active = l1.active;
  Place place{.structure = "L1 entry",
              .at = l1.at.value + index * 8,
              .length = 8,
              .guest = geometry().first_of_l1(index),
              .guest_clusters = geometry().l2_entries(),
              .l1 = &l1,
              .entry = entry};
  const auto broken = [&](FindingKind kind, const auto&... parts) {
    place.kind = kind;
    lost(1, place, what, "L1 entry ", index, ": ", parts...);
  };
  if ((entry & ~(kCopied | kOffsetMask)) != 0) {
    broken(FindingKind::reserved_bits, hex(entry), ": reserved bits are set");
  }
  const HostOffset at{entry & kOffsetMask};
  if (at.value == 0) {
    // There was one: what it pointed to is still there, as a leak.
    if (entry == kCopied) broken(FindingKind::stray_flag, "COPIED, but no L2 table");
    return;
  }
  if (!geometry().aligned(at)) {
    broken(FindingKind::misaligned, "L2 table at ", at, " is not cluster aligned");
    count_range(at.value, geometry().cluster_size(), Owner::l2, index, 1, "L2 table");
    if (active) behind_end_[geometry().cluster_of(at)] = false;  // Its flag is looked at, too.
    copied_mismatch |= active;
    return;
  }
  if (at.value >= file_size) {
    pointed_behind_end = std::min(pointed_behind_end, at.value);
    place.cause = Cause::truncated_file;
    broken(FindingKind::behind_end, "L2 table at ", at, " lies behind the end of the file");
    if (active) behind_end_[geometry().cluster_of(at)] = false;
    copied_mismatch |= active;
    return;
  }
  const bool copied = (entry & kCopied) != 0;
  l2_uses_.push_back({.cluster = geometry().cluster_of(at).value,
                      .weight = 1,
                      .active = active,
                      .l1_index = static_cast<uint32_t>(index),
                      .copied_set = active && copied,
                      .copied_clear = active && !copied});
  // Snapshots share most of their tables: keep the list as short as the tables are many.
  if (l2_uses_.size() >= std::max<size_t>(1 << 16, 2 * l2_uses_merged_)) merge_l2_uses();
}

/// Sorts the uses by place in the file, and makes one of those of the same table.
void MetadataScan::merge_l2_uses() {
  std::sort(l2_uses_.begin(), l2_uses_.end(), [](const L2Use& a, const L2Use& b) {
    return a.cluster != b.cluster ? a.cluster < b.cluster : a.l1_index < b.l1_index;
  });
  size_t count = 0;
  for (const L2Use& use : l2_uses_) {
    if (count == 0 || l2_uses_[count - 1].cluster != use.cluster) {
      l2_uses_[count++] = use;
      continue;
    }
    L2Use& same = l2_uses_[count - 1];
    if (same.l1_index != use.l1_index && !same.shared) {
      same.shared = true;
      Place place = place_of(HostCluster{use.cluster});
      place.kind = FindingKind::shared_table;
      place.structure = "L2 table";
      place.cause = Cause::failed_l1_update;
      damage_beyond_qemu(1, place, "L1 entries ", same.l1_index, " and ", use.l1_index,
                         " point to the same L2 table at ",
                         geometry().start_of(HostCluster{use.cluster}));
    }
    same.weight += use.weight;
    same.active += use.active;
    same.copied_set |= use.copied_set;
    same.copied_clear |= use.copied_clear;
    same.shared |= use.shared;
  }
  l2_uses_.resize(count);
  l2_uses_merged_ = count;
}

void MetadataScan::count_l2_tables() {
  for (const L2Use& use : l2_uses_) {
    const HostCluster cluster{use.cluster};
    const std::optional<Owner> other = counts.add(cluster, Owner::l2, use.l1_index, use.weight);
    if (other) {
      Place place = place_of(cluster);
      place.structure = "L2 table";
      place.guest = geometry().first_of_l1(use.l1_index);
      place.guest_clusters = geometry().l2_entries();
      place.use = &use;
      damage_beyond_qemu(1, place, "host cluster at ", geometry().start_of(cluster), ": L2 table ",
                         use.l1_index, " lies in ", name_of(*other));
    }
    ReferenceCounts::Cell& cell = *counts.find(cluster);
    if (use.shared) counts.set_aliased(cell);
    if (use.copied_set) cell.see_copied(true);
    if (use.copied_clear) cell.see_copied(false);
  }
}

// ---- L2 tables.

TableReader::Pace MetadataScan::pace_of(uint64_t count, double from, double to) const {
  return {
      .go_on = [this] { return go_on(); },
      .progress =
          [this, count, from, to](uint64_t done) {
            progress(from + (to - from) * static_cast<double>(done) / static_cast<double>(count));
          }};
}

void MetadataScan::unreadable_table(const Error& error, std::string_view what,
                                    HostCluster cluster) {
  unreadable(error.copy().while_doing(cat(what, " at ", hex(geometry().start_of(cluster).value))));
}

Task<void> MetadataScan::each_l2(const VisitL2& visit, bool counting) {
  TableReader::Pace pace = pace_of(l2_uses_.size(), 0, kShareOfCounting);
  if (!counting) pace.progress = nullptr;
  TableReader reader(file, geometry(), file_size);
  const auto cluster = [this](uint64_t i) { return HostCluster{l2_uses_[i].cluster}; };
  const auto visit_table = [&](uint64_t i, MutableBytes table) { visit(l2_uses_[i], table); };
  const auto failed = [&](uint64_t i, const Error& error) {
    unreadable_table(error, "L2 table", cluster(i));
  };
  co_await reader.each({.count = l2_uses_.size(), .cluster = cluster, .tag = IoTag::l2_load},
                       visit_table, failed, std::move(pace));
}

/// What visit() changes is written back.
Task<void> MetadataScan::change_each_l2(const VisitL2& visit) {
  TableReader reader(file, geometry(), file_size);
  std::vector<std::byte> before(geometry().cluster_size());
  TableReader::Window window;
  for (uint64_t done = 0; done < l2_uses_.size();) {
    co_await go_on();
    window.clusters.clear();
    const uint64_t end = std::min<uint64_t>(l2_uses_.size(), done + reader.window_max());
    for (uint64_t i = done; i < end; ++i) window.clusters.push_back({l2_uses_[i].cluster});
    co_await reader.read(window, IoTag::l2_load);
    for (uint64_t i = 0; i < window.clusters.size(); ++i) {
      if (window.errors[i]) unreadable_table(window.errors[i], "L2 table", window.clusters[i]);
    }
    for (uint64_t i = 0; done < end; ++i, ++done) {
      if (window.errors[i]) continue;
      const MutableBytes table = window.table(i, geometry());
      copy(before, table);
      visit(l2_uses_[done], table);
      co_await write_changes(geometry().start_of(window.clusters[i]), before, table,
                             IoTag::l2_update);
    }
  }
}

Task<void> MetadataScan::write_changes(HostOffset at, Bytes before, Bytes after, IoTag tag) {
  const auto sector = [](Bytes bytes, uint64_t i) {
    return bytes.subspan(i * kSectorSize, std::min(kSectorSize, bytes.size() - i * kSectorSize));
  };
  uint64_t first = 0;
  uint64_t end = div_ceil(after.size(), kSectorSize);
  while (first < end && equal(sector(before, first), sector(after, first))) ++first;
  while (first < end && equal(sector(before, end - 1), sector(after, end - 1))) --end;
  if (first == end) co_return;
  const uint64_t from = first * kSectorSize;
  const uint64_t to = std::min<uint64_t>(end * kSectorSize, after.size());
  co_await file.write(at.value + from, after.subspan(from, to - from), {.tag = tag});
}

MetadataScan::Place MetadataScan::place_of(HostCluster cluster) const {
  return {.kind = FindingKind::two_owners,
          .at = geometry().start_of(cluster).value,
          .length = geometry().cluster_size(),
          .repair = RepairKind::unshare};
}

MetadataScan::Place MetadataScan::entry_place(const Met& met, FindingKind kind) const {
  const uint64_t table = geometry().start_of(HostCluster{met.use->cluster}).value;
  const uint64_t size = geometry().l2_entry_size();
  return {.kind = kind,
          .structure = "L2 entry",
          .at = table + geometry().l2_index(met.guest) * size,
          .length = size,
          .use = met.use,
          .guest = met.guest,
          .entry = met.entry.descriptor};
}

/// How the data of the table before it lie, to tell what is fragmented.
struct MetadataScan::Run {
  uint64_t next = 0;
};

/// What nearly all entries are: data in a cluster of the file that nobody has claimed.
struct MetadataScan::Plain {
  explicit Plain(const MetadataScan& scan)
      : possible(!scan.geometry().extended_l2 && !scan.geometry().data_file &&
                 scan.file_size >= scan.geometry().cluster_size()),
        cluster_bits(scan.geometry().cluster_bits),
        size(scan.geometry().cluster_size()),
        never(~(kCopied | kOffsetMask) | (size - 1)),
        last(possible ? scan.file_size - size : 0) {}
  bool possible;
  uint32_t cluster_bits;
  uint64_t size;
  uint64_t never;  ///< Bits that are not set.
  uint64_t last;   ///< Where a cluster may begin at most.
};

void MetadataScan::count_l2(const L2Use& use, Bytes table) {
  Run run;
  const uint64_t entries = geometry().l2_entries();
  const uint64_t first = geometry().first_of_l1(use.l1_index).value;
  const Plain plain(*this);
  for (uint64_t i = 0; i < entries; ++i) {
    if (plain.possible) {
      const auto descriptor = load_be<uint64_t>(table, i * 8);
      if (descriptor == 0 || count_plain(use, first + i, descriptor, plain, run)) continue;
    }
    const L2Entry entry = load_l2(table, i, geometry());
    if (entry != L2Entry{}) count_entry(use, i, entry, run);
  }
}

/// False when it is something else; then nothing was counted.
bool MetadataScan::count_plain(const L2Use& use, uint64_t guest, uint64_t descriptor,
                               const Plain& plain, Run& run) {
  const uint64_t at = descriptor & kOffsetMask;
  if ((descriptor & plain.never) != 0 || at == 0 || at > plain.last) return false;
  ReferenceCounts::Cell* cell =
      counts.add_first({at >> plain.cluster_bits}, Owner::data, guest, use.weight);
  if (!cell) return false;
  if (use.active == 0) return true;
  report.allocated_clusters += use.active;
  if (run.next != 0 && run.next != at) report.fragmented_clusters += use.active;
  run.next = at + plain.size;
  cell->see_copied(descriptor != at);
  return true;
}

void MetadataScan::count_entry(const L2Use& use, uint64_t index, L2Entry entry, Run& run) {
  const GuestCluster guest = geometry().first_of_l1(use.l1_index) + index;
  const uint64_t descriptor = entry.descriptor;
  if ((descriptor & kCompressed) != 0) return count_compressed(use, guest, entry, run);

  if ((descriptor & ~(kCopied | kOffsetMask | kReadsZero)) != 0) {
    lost(use.weight, entry_place({&use, guest, entry}, FindingKind::reserved_bits), "guest offset ",
         geometry().start_of(guest), ": L2 entry ", hex(descriptor), ": reserved bits are set");
  }
  if ((descriptor & kReadsZero) != 0 && (geometry().version < 3 || geometry().extended_l2)) {
    lost_entries = true;
    damage_beyond_qemu(use.weight, entry_place({&use, guest, entry}, FindingKind::stray_flag),
                       "guest offset ", geometry().start_of(guest), ": L2 entry ", hex(descriptor),
                       ": zero flag, which this kind of image does not have");
  }
  const HostOffset at{descriptor & kOffsetMask};
  const bool copied = (descriptor & kCopied) != 0;
  const bool has_host = at.value != 0 || (geometry().data_file && copied);
  check_subclusters(use, guest, entry, has_host);
  if (has_host) return count_host(use, guest, entry, at, run);
  if (copied) {
    lost_entries = true;
    damage_beyond_qemu(use.weight, entry_place({&use, guest, entry}, FindingKind::stray_flag),
                       "guest offset ", geometry().start_of(guest), ": L2 entry ", hex(descriptor),
                       ": COPIED, but no host cluster");
  }
}

bool MetadataScan::check_subclusters(const L2Use& use, GuestCluster guest, L2Entry entry,
                                     bool has_host) {
  const uint64_t allocated = entry.bitmap & UINT32_MAX;
  const uint64_t zero = entry.bitmap >> 32;
  if (allocated != 0 && !has_host) {
    lost(use.weight, entry_place({&use, guest, entry}, FindingKind::subclusters), "guest offset ",
         geometry().start_of(guest), ": subclusters ", hex(entry.bitmap), " are allocated nowhere");
    return false;
  }
  if ((allocated & zero) != 0) {
    lost(use.weight, entry_place({&use, guest, entry}, FindingKind::subclusters), "guest offset ",
         geometry().start_of(guest), ": subclusters ", hex(entry.bitmap),
         " are allocated and zero at once");
    return false;
  }
  return true;
}

void MetadataScan::count_compressed(const L2Use& use, GuestCluster guest, L2Entry entry, Run&) {
  const uint64_t descriptor = entry.descriptor;
  if ((descriptor & kCopied) != 0) {
    report.corruptions += use.weight;
    Place place = entry_place({&use, guest, entry}, FindingKind::stray_flag);
    place.repair = RepairKind::fix_flag;
    add_finding(Severity::corruption, place, "guest offset ", geometry().start_of(guest),
                ": L2 entry ", hex(descriptor), ": COPIED on compressed data");
    repairable_entries = true;
  }
  if (geometry().data_file) {
    return lost(use.weight, entry_place({&use, guest, entry}, FindingKind::stray_flag),
                "guest offset ", geometry().start_of(guest), ": L2 entry ", hex(descriptor),
                ": compressed, in an external data file");
  }
  if (entry.bitmap != 0) {
    return lost(use.weight, entry_place({&use, guest, entry}, FindingKind::subclusters),
                "guest offset ", geometry().start_of(guest), ": L2 entry ", hex(descriptor),
                ": compressed, with subclusters ", hex(entry.bitmap));
  }
  const uint32_t offset_bits = geometry().compressed_offset_bits();
  const uint64_t field = descriptor & ~(kCopied | kCompressed);
  const uint64_t at = field & ((uint64_t{1} << offset_bits) - 1);
  const uint64_t size = ((field >> offset_bits) + 1) * kSectorSize - at % kSectorSize;
  const Met met{&use, guest, entry};
  count_range(at, size, Owner::compressed, 0, use.weight, "compressed data", &met);
  if (use.active != 0) {
    // They never follow one another cluster by cluster.
    report.allocated_clusters += use.active;
    report.compressed_clusters += use.active;
    report.fragmented_clusters += use.active;
  }
}

void MetadataScan::count_host(const L2Use& use, GuestCluster guest, L2Entry entry, HostOffset at,
                              Run& run) {
  if (!geometry().aligned(at)) {
    const bool reads_zero = (entry.descriptor & kReadsZero) != 0;
    const bool fixable = reads_zero && geometry().version >= 3 && !geometry().extended_l2;
    Place place = entry_place({&use, guest, entry}, FindingKind::misaligned);
    if (fixable) place.repair = RepairKind::fix_flag;
    lost(use.weight, place, "guest offset ", geometry().start_of(guest), ": host cluster at ", at,
         " is not cluster aligned");
    repairable_entries |= fixable;
  }
  if (use.active != 0) {
    report.allocated_clusters += use.active;
    if (run.next != 0 && run.next != at.value) report.fragmented_clusters += use.active;
    run.next = at.value + geometry().cluster_size();
  }

  const bool copied = (entry.descriptor & kCopied) != 0;
  if (geometry().data_file) {
    if (at.value != geometry().start_of(guest).value) {
      lost_entries = true;
      damage_beyond_qemu(use.weight, entry_place({&use, guest, entry}, FindingKind::misplaced),
                         "guest offset ", geometry().start_of(guest), ": at ", at,
                         " of the data file, where another guest cluster belongs");
    }
    if (use.active != 0 && !copied) copied_mismatch = true;
    return;
  }
  const Met met{&use, guest, entry};
  if (!count_range(at.value, geometry().cluster_size(), Owner::data, guest.value, use.weight,
                   "data", &met)) {
    if (use.active != 0) behind_end_[geometry().cluster_of(at)] = false;
    copied_mismatch |= use.active != 0;
    return;
  }
  if (use.active != 0) counts.find(geometry().cluster_of(at))->see_copied(copied);
}

// ---- Snapshots, bitmaps.

/// When the header counts too many, the entries that are not there may lie in what the file lacks
/// of its last cluster.
Task<std::vector<Snapshot>> MetadataScan::read_snapshots() {
  Result<std::vector<Snapshot>> whole = co_await load_snapshots(file, head).result();
  const uint64_t at = head.header.snapshots_offset.value;
  const uint64_t end = round_up(file_size, geometry().cluster_size());
  if (whole || whole.error().code() != Errc::corrupt || at >= file_size || end == file_size) {
    co_return co_await std::move(whole);
  }
  std::vector<std::byte> bytes(std::min(end - at, kSnapshotTableSizeMax));
  co_await read_padded(at, bytes, IoTag::snapshot_load);
  Result<std::vector<Snapshot>> padded = parse_snapshots(bytes, head.header.snapshot_count);
  if (!padded) co_return co_await std::move(whole);
  // Of one that is something no byte may be missing.
  uint64_t count = padded->size();
  while (count != 0 && is_empty_entry((*padded)[count - 1])) --count;
  const Bytes there = Bytes(bytes).first(std::min(bytes.size(), file_size - at));
  if (!parse_snapshots(there, static_cast<uint32_t>(count))) co_return co_await std::move(whole);
  co_return *std::move(padded);
}

/// What others refuse to read, though nothing that it refers to is in doubt.
void MetadataScan::check_snapshot_entry(uint64_t index) {
  const Snapshot& snapshot = snapshots[index];
  Place place{.kind = FindingKind::snapshot,
              .structure = "snapshot table",
              .at = head.header.snapshots_offset.value};
  const auto words = cat("snapshot table entry ", index, " of ", snapshots.size());
  const bool version_3 = geometry().version >= 3;
  if (is_empty_entry(snapshot)) {
    // It may have been something.
    place.repair = RepairKind::drop;
    repairable_snapshots = true;
    if (!version_3) ++report.corruptions_beyond_qemu;
    damage(1, place, words, " is empty: no L1 table, no id, no name");
    return;
  }
  if (version_3 && !snapshot.disk_size) {
    place.repair = RepairKind::complete;
    repairable_snapshots = true;
    ++format_only;
    ++report.corruptions;
    add_finding(Severity::corruption, place, words, " (", quoted(snapshot.name),
                ") is incomplete: it does not say how large its disk is, as version 3 wants");
  }
  if (snapshot.extra_data.size() > kSnapshotExtraSizeMax) {
    place.repair = RepairKind::refuse;
    fault(place, words, " (", quoted(snapshot.name), ") has ", snapshot.extra_data.size(),
          " bytes of extra data; no other reader takes more than ", kSnapshotExtraSizeMax);
  }
}

Task<void> MetadataScan::count_snapshots() {
  Result<std::vector<Snapshot>> read = co_await read_snapshots().result();
  if (!read) {
    if (read.error().code() == Errc::io) {
      unreadable(read.error());
    } else {
      damage(1,
             {.kind = FindingKind::snapshot,
              .structure = "snapshot table",
              .at = head.header.snapshots_offset.value},
             read.error().message());
    }
    snapshots_lost = true;
    co_return;
  }
  snapshots = *std::move(read);
  for (uint64_t i = 0; i < snapshots.size(); ++i) {
    const Snapshot& snapshot = snapshots[i];
    check_snapshot_entry(i);
    if (is_empty_entry(snapshot)) continue;
    std::string name = cat("snapshot ", quoted(snapshot.name), ": ");
    if (const Result<void> sound = check_l1_table(snapshot, geometry()); !sound) {
      damage(1,
             {.kind = FindingKind::snapshot,
              .structure = "snapshot's L1 table",
              .at = snapshot.l1_offset.value},
             name, sound.error().message());
      if (!within(snapshot.l1_offset.value, uint64_t{snapshot.l1_entries} * 8, file_size)) {
        pointed_behind_end =
            std::min(pointed_behind_end, std::max(snapshot.l1_offset.value, file_size));
      }
      broken_snapshots.insert(i);
      continue;
    }
    if (snapshot.l1_entries < geometry().l1_entries_for(snapshot.disk_size.value_or(0))) {
      note(FindingKind::snapshot, name, "L1 table of ", snapshot.l1_entries,
           " entries is too short for its disk of ", *snapshot.disk_size, " bytes");
    }
    const bool there = co_await count_l1(snapshot.l1_offset, snapshot.l1_entries, i + 1,
                                         std::move(name), snapshot.name);
    if (!there) broken_snapshots.insert(i);
  }
  if (snapshots.empty()) co_return;
  const uint64_t at = head.header.snapshots_offset.value;
  const Result<std::vector<std::byte>> table = serialize_snapshots(snapshots);
  if (table) {
    count_range(at, table->size(), Owner::other, kSnapshotTable, 1, "snapshot table");
  } else {
    damage(1, {.kind = FindingKind::snapshot, .structure = "snapshot table", .at = at},
           "snapshot table at ", hex(at), ": ", table.error().message());
  }
}

/// Bitmaps count only while their feature bit says that they are consistent, as in QEMU: without
/// it their clusters are leaks.
Task<void> MetadataScan::count_bitmaps() {
  const std::optional<BitmapsExtension>& extension = head.extensions.bitmaps;
  if (!extension || (head.header.autoclear & kBitmaps) == 0) co_return;
  const uint64_t at = extension->directory_offset.value;
  if (!count_range(at, extension->directory_size, Owner::other, kBitmapDirectory, 1,
                   "bitmap directory")) {
    bitmaps_lost = true;
    co_return;
  }
  std::vector<std::byte> bytes(extension->directory_size);
  Result<void> read = co_await read_padded(at, bytes, IoTag::bitmap_load).result();
  if (!read) {
    unreadable(read.error());
    co_return;
  }
  const Result<std::vector<Bitmap>> bitmaps =
      parse_bitmap_directory(bytes, extension->count, geometry());
  if (!bitmaps) {
    bitmaps_lost = true;
    damage(1,
           {.kind = FindingKind::bitmap,
            .structure = "bitmap directory",
            .at = at,
            .length = extension->directory_size},
           bitmaps.error().message());
    co_return;
  }
  for (uint64_t i = 0; i < bitmaps->size(); ++i) {
    const Bitmap& bitmap = (*bitmaps)[i];
    check_bitmap(bitmap);
    co_await count_bitmap(bitmap, i);
  }
}

void MetadataScan::check_bitmap(const Bitmap& bitmap) {
  Place place{.kind = FindingKind::bitmap,
              .structure = "bitmap directory",
              .at = head.extensions.bitmaps->directory_offset.value,
              .length = head.extensions.bitmaps->directory_size};
  const auto [fault_kind, why] = why_unusable(bitmap, head.header.size, geometry());
  switch (fault_kind) {
    case BitmapFault::none:
      return check_extra_data(bitmap, place);
    case BitmapFault::in_use:
      note(FindingKind::bitmap, why);
      return check_extra_data(bitmap, place);
    case BitmapFault::foreign:
      foreign_bitmaps = true;
      return fault(place, why, "; other readers refuse the image");
    case BitmapFault::unfit:
      place.repair = RepairKind::fix_flag;
      break;
    case BitmapFault::invalid:
      place.repair = RepairKind::drop;
      break;
  }
  repairable_bitmaps = true;
  fault(place, why);
}

/// Within the format, and yet no other reader takes them.
void MetadataScan::check_extra_data(const Bitmap& bitmap, Place place) {
  if (bitmap.extra_data.empty() && !bitmap.extra_data_compatible) return;
  if (bitmap.extra_data.empty()) {
    place.repair = RepairKind::fix_flag;
    repairable_bitmaps = true;
    return fault(place, "bitmap ", quoted(bitmap.name),
                 ": has the flag for extra data, and none; other readers refuse the image");
  }
  foreign_bitmaps = true;
  fault(place, "bitmap ", quoted(bitmap.name), ": has ", bitmap.extra_data.size(),
        " bytes of extra data; other readers refuse the image");
}

Task<void> MetadataScan::count_bitmap(const Bitmap& bitmap, uint64_t index) {
  const uint64_t at = bitmap.table_offset.value;
  const uint64_t size = uint64_t{bitmap.table_entries} * 8;
  const uint64_t identity = kFirstBitmap + 2 * index;
  const std::string name = cat("bitmap ", quoted(bitmap.name), ": ");
  if (!count_range(at, size, Owner::other, identity, 1, name + "table")) {
    broken_bitmaps.insert(index);
    co_return;
  }
  const std::string what = name + "data";
  std::vector<std::byte> piece;
  for (uint64_t done = 0; done < size; done += piece.size()) {
    piece.resize(std::min(size - done, kPiece));
    const Result<void> read = co_await read_padded(at + done, piece, IoTag::bitmap_load).result();
    if (!read) {
      unreadable(read.error());
      co_return;
    }
    for (uint64_t i = 0; i < piece.size(); i += 8) {
      const auto raw = load_be<uint64_t>(piece, i);
      if (raw == 0) continue;
      const Result<BitmapTableEntry> entry = decode_bitmap_table_entry(raw, geometry());
      if (!entry) {
        broken_bitmaps.insert(index);
        damage(1,
               {.kind = FindingKind::bitmap,
                .structure = "bitmap table",
                .at = at + done + i,
                .length = 8,
                .entry = raw},
               name, entry.error().message());
      } else if (entry->data) {
        // Each cluster of bitmap data is an owner of its own.
        const uint64_t own = (identity + 1) ^ (done + i) << 24;
        const bool there = count_range(geometry().start_of(*entry->data).value,
                                       geometry().cluster_size(), Owner::other, own, 1, what);
        if (!there || counts.find(*entry->data)->aliased) broken_bitmaps.insert(index);
      }
    }
  }
}

// ---- Refcount table and blocks.

HostCluster MetadataScan::block_at(uint64_t index) const {
  return geometry().cluster_of(HostOffset{refcount_table[index]});
}

HostCluster MetadataScan::block_end(uint64_t index) const {
  return std::min(HostCluster{clusters}, geometry().first_of_refcount_table(index + 1));
}

Task<std::vector<std::byte>> MetadataScan::read_block(uint64_t index) {
  std::vector<std::byte> block(geometry().cluster_size());
  const uint64_t at = geometry().start_of(block_at(index)).value;
  co_await read_padded(at, block, IoTag::refcount_load)
      .doing("refcount block ", index, " at ", hex(at));
  co_return block;
}

Task<void> MetadataScan::count_refcounts() {
  const uint64_t at = head.header.refcount_table_offset.value;
  const uint64_t size = uint64_t{head.header.refcount_table_clusters} << geometry().cluster_bits;
  if (const Result<void> sound = check_refcount_table(head.header); !sound) {
    refcounts_unsound = true;
    ++report.corruptions;
    add_finding(Severity::corruption,
                {.kind = FindingKind::refcount_table,
                 .structure = "refcount table",
                 .at = at,
                 .repair = RepairKind::rewrite_counts},
                sound.error().message());
    co_return;
  }
  // Not damage: all that it could tell is counted here anyway.
  if (!within(at, size, round_up(file_size, geometry().cluster_size()))) {
    refcounts_unsound = true;
    ++report.corruptions;
    add_finding(Severity::corruption,
                {.kind = FindingKind::refcount_table,
                 .structure = "refcount table",
                 .at = at,
                 .length = size,
                 .repair = RepairKind::rewrite_counts},
                "refcount table at ", hex(at), " lies behind the end of the file");
    co_return;
  }
  if (!count_range(at, size, Owner::refcounts, 0, 1, "refcount table")) {
    refcounts_unsound = true;
    co_return;
  }
  for (uint64_t i = 0; i < head.header.refcount_table_clusters; ++i) {
    const HostCluster cluster = geometry().cluster_of(HostOffset{at}) + i;
    refcount_clusters.push_back(cluster);
    if (counts.find(cluster)->aliased) refcounts_unsound = true;
  }
  std::vector<std::byte> table(size);
  Result<void> read = co_await read_padded(at, table, IoTag::refcount_table_load).result();
  if (!read) {
    unreadable(std::move(read).error().while_doing(cat("refcount table at ", hex(at))));
    refcounts_unknown_ = true;
    co_return;
  }
  for (uint64_t i = 0; i < size / 8; ++i) {
    refcount_table.push_back(load_refcount_table_entry(table, i));
  }
  blocks.assign(refcount_table.size(), Block::none);
  for (uint64_t i = 0; i < blocks.size(); ++i) {
    if (refcount_table[i] != 0) count_block(i);
  }
}

void MetadataScan::count_block(uint64_t index) {
  const uint64_t entry = refcount_table[index];
  const auto unsound = [&](Block block, const auto&... parts) {
    refcounts_unsound = true;
    blocks[index] = block;
    report.corruptions += 1;
    add_finding(Severity::corruption,
                {.kind = FindingKind::refcount_block,
                 .structure = "refcount block",
                 .at = entry,
                 .length = geometry().cluster_size(),
                 .entry = entry,
                 .repair = RepairKind::rewrite_counts},
                "refcount block ", index, " at ", hex(entry), ": ", parts...);
  };
  if (const auto decoded = decode_refcount_table_entry(entry, geometry()); !decoded) {
    return unsound(Block::lost, decoded.error().message());
  }
  // Behind the end everything reads as zero.
  if (entry >= file_size) return unsound(Block::none, "lies behind the end of the file");

  const HostCluster cluster = block_at(index);
  const std::optional<Owner> other = counts.add(cluster, Owner::refcounts, index + 1);
  refcount_clusters.push_back(cluster);
  if (other || counts.references(cluster) != 1) {
    damaged = true;
    return unsound(Block::suspect, "lies in ", name_of(other.value_or(Owner::refcounts)));
  }
  blocks[index] = Block::sound;
}

// ---- 2.

Task<void> MetadataScan::compare() {
  const std::vector<uint64_t> regions = counts.regions();
  const std::vector<uint64_t> indices = indices_to_compare(regions);
  TableReader reader(file, geometry(), file_size);
  // What has no block is read behind the end of the file: as zeros.
  const auto block_of = [&](uint64_t i) {
    return is_readable(indices[i]) ? block_at(indices[i]) : HostCluster{clusters};
  };
  const auto compare_table = [&](uint64_t i, MutableBytes block) {
    compare_block(indices[i], is_readable(indices[i]) ? Bytes(block) : Bytes(), regions);
  };
  const auto failed = [&](uint64_t i, const Error& error) {
    const HostCluster at = block_of(i);
    blocks[indices[i]] = Block::lost;
    compare_block(indices[i], {}, regions);
    unreadable_table(error, "refcount block", at);
  };
  co_await reader.each({.count = indices.size(), .cluster = block_of, .tag = IoTag::refcount_load},
                       compare_table, failed, pace_of(indices.size(), kShareOfCounting, 1));
  // What no table entry covers.
  const uint64_t covered = geometry().first_of_refcount_table(blocks.size()).value;
  for (const uint64_t region : regions) {
    for (uint64_t i = 0; i < ReferenceCounts::kRegion; ++i) {
      const HostCluster cluster{region * ReferenceCounts::kRegion + i};
      if (cluster.value >= covered && cluster.value < clusters) compare_cluster(cluster, 0, false);
    }
  }
}

/// Entries of the refcount table that have a block, or that count clusters which are referenced.
std::vector<uint64_t> MetadataScan::indices_to_compare(const std::vector<uint64_t>& regions) const {
  std::vector<uint64_t> indices;
  auto region = regions.begin();
  for (uint64_t i = 0; i < blocks.size(); ++i) {
    if (geometry().first_of_refcount_table(i).value >= clusters) break;
    const uint64_t end = geometry().first_of_refcount_table(i + 1).value;
    const bool referenced = region != regions.end() && *region * ReferenceCounts::kRegion < end;
    while (region != regions.end() && *region * ReferenceCounts::kRegion < end) ++region;
    if (referenced || blocks[i] != Block::none) indices.push_back(i);
  }
  return indices;
}

/// `block` is empty when there is none or it could not be read.
void MetadataScan::compare_block(uint64_t index, Bytes block,
                                 const std::vector<uint64_t>& regions) {
  const bool lost = blocks[index] == Block::lost;
  const bool writable = blocks[index] == Block::sound;
  each_used(index, block, regions, [&](HostCluster cluster, uint64_t refcount) {
    if (!lost) return compare_cluster(cluster, refcount, writable);
    if (counts.references(cluster) != 0) highest_ = std::max(highest_, cluster.value);
  });
}

void MetadataScan::compare_cluster(HostCluster cluster, uint64_t refcount, bool writable) {
  ReferenceCounts::Cell* cell = counts.find(cluster);
  if (cell && refcount != 0 && ReferenceCounts::is_exactly(*cell, refcount)) {  // As it should be.
    highest_ = std::max(highest_, cluster.value);
    cell->set_on_disk(refcount);
    copied_mismatch |= (refcount == 1 ? cell->copied_clear : cell->copied_set) != 0;
    return;
  }
  const uint64_t references = cell ? counts.references_of(cluster, *cell) : 0;
  if (references != 0 || refcount != 0) highest_ = std::max(highest_, cluster.value);
  if (cell) {
    cell->set_on_disk(refcount);
    if (refcount == 1 ? cell->copied_clear : cell->copied_set) copied_mismatch = true;
  }
  if (refcount < references) {
    ++report.corruptions;
    undercounted = true;
    if (references > refcount_max(geometry().refcount_order)) damaged = overfull = true;
    if (!writable) refcounts_unsound = true;
    Place place = place_of(cluster);
    place.kind = FindingKind::refcount_too_small;
    place.structure = name_of(cell->owner());
    place.repair = writable ? RepairKind::set_refcount : RepairKind::rewrite_counts;
    const bool second_of_region = geometry().refcount_block_index(cluster) == 1;
    if (refcount == 0 && cell->owner() == Owner::refcounts && second_of_region) {
      place.cause = Cause::vmd_refcount_block;
    }
    add_finding(Severity::corruption, place, "host cluster at ", geometry().start_of(cluster),
                ": refcount is ", refcount, ", references are ", references, " (",
                name_of(cell->owner()), ")");
  } else if (refcount > references) {
    ++report.leaks;
    if (references == 0) {
      if (!orphans.empty() && orphans.back().end() == cluster) {
        ++orphans.back().count;
      } else {
        orphans.push_back({cluster, 1});
      }
    }
    const bool remembered = references == 0 && kept.contains(cluster);
    if (remembered) ++orphans_remembered_;
    Place place = place_of(cluster);
    place.kind = FindingKind::refcount_too_large;
    place.structure = cell ? name_of(cell->owner()) : name_of(Owner::nobody);
    place.repair = damaged || remembered
                       ? RepairKind::set_aside
                       : (references == 0 ? RepairKind::free_cluster : RepairKind::set_refcount);
    place.cause = damaged ? Cause::unknown : Cause::cut_short;
    add_finding(Severity::leak, place, "host cluster at ", geometry().start_of(cluster),
                ": refcount is ", refcount, ", references are ", references,
                remembered ? "; an earlier repair has kept it" : "");
  }
}

/// In the order of the clusters, so that each block is read once.
Task<void> MetadataScan::check_behind_end() {
  std::vector<std::byte> block;
  uint64_t loaded = UINT64_MAX;
  for (auto& [cluster, counted_once] : behind_end_) {
    const uint64_t index = geometry().refcount_table_index(cluster);
    if (index >= blocks.size()) co_return;
    if (!is_readable(index)) continue;
    if (index != loaded) {
      Result<std::vector<std::byte>> read = co_await read_block(index).result();
      if (!read) {
        unreadable(read.error());
        co_return;
      }
      block = *std::move(read);
      loaded = index;
    }
    const uint64_t at = geometry().refcount_block_index(cluster);
    counted_once = get_refcount(block, at, geometry().refcount_order) == 1;
  }
}

// ---- 3, and changes to entries.

std::optional<bool> MetadataScan::should_be_copied(HostCluster cluster) const {
  if (cluster.value >= clusters) {
    const auto known = behind_end_.find(cluster);
    return known != behind_end_.end() && known->second;
  }
  const ReferenceCounts::Cell* cell = counts.find(cluster);
  if (!cell || cell->on_disk() == ReferenceCounts::OnDisk::unknown) return std::nullopt;
  return cell->on_disk() == ReferenceCounts::OnDisk::one;
}

/// What two things use is never said to be one's own, whatever its refcount is.
bool MetadataScan::may_change_copied(Copied what, HostCluster cluster) const {
  const ReferenceCounts::Cell* cell = counts.find(cluster);
  return what != Copied::set || !cell || !cell->aliased;
}

void MetadataScan::report_copied(uint64_t weight, const Place& place, std::string_view what) {
  report.corruptions += weight;
  copied_wrong += weight;
  const bool copied = (place.entry & kCopied) != 0;
  add_finding(
      Severity::corruption, place, what, ": ", hex(place.entry),
      copied ? ": COPIED, but the refcount is not 1" : ": not COPIED, but the refcount is 1");
}

Task<void> MetadataScan::visit_copied(Copied what) {
  co_await visit_copied_l1(what);
  const VisitL2 visit = [this, what](const L2Use& use, MutableBytes table) {
    if (use.active != 0) visit_copied_l2(what, use, table);
  };
  if (what == Copied::report) {
    co_await each_l2(visit);
  } else {
    co_await change_each_l2(visit);
  }
}

Task<void> MetadataScan::visit_copied_l1(Copied what) {
  // A table that is somebody else's, too, is left alone.
  const HostOffset at = head.header.l1_offset;
  const auto* cell = counts.find(geometry().cluster_of(at));
  if (what != Copied::report && (!cell || cell->aliased)) co_return;

  std::vector<std::byte> before(l1_.size() * 8);
  for (uint64_t i = 0; i < l1_.size(); ++i) store_l1_entry(before, i, l1_[i]);
  for (uint64_t i = 0; i < l1_.size(); ++i) {
    const HostOffset l2{l1_[i] & kOffsetMask};
    if (l2.value == 0) continue;
    const std::optional<bool> wanted = should_be_copied(geometry().cluster_of(l2));
    const bool copied = (l1_[i] & kCopied) != 0;
    if (!wanted || *wanted == copied) continue;
    if (what == Copied::report) {
      report_copied(1,
                    {.kind = FindingKind::copied,
                     .structure = "L1 entry",
                     .at = at.value + i * 8,
                     .length = 8,
                     .guest = geometry().first_of_l1(i),
                     .guest_clusters = geometry().l2_entries(),
                     .l1 = &l1_tables.front(),
                     .entry = l1_[i],
                     .repair = RepairKind::fix_flag},
                    cat("L1 entry ", i));
    } else if (l2.value < file_size && *wanted == (what == Copied::set) &&
               may_change_copied(what, geometry().cluster_of(l2))) {
      l1_[i] ^= kCopied;
    }
  }
  if (what == Copied::report) co_return;
  std::vector<std::byte> after(l1_.size() * 8);
  for (uint64_t i = 0; i < l1_.size(); ++i) store_l1_entry(after, i, l1_[i]);
  co_await write_changes(at, before, after, IoTag::l1_update);
}

void MetadataScan::visit_copied_l2(Copied what, const L2Use& use, MutableBytes table) {
  const auto* own = counts.find(HostCluster{use.cluster});
  if (what != Copied::report && own->aliased) return;
  for (uint64_t i = 0; i < geometry().l2_entries(); ++i) {
    L2Entry entry = load_l2(table, i, geometry());
    const HostOffset at{entry.descriptor & kOffsetMask};
    const bool copied = (entry.descriptor & kCopied) != 0;
    const bool has_host = at.value != 0 || (geometry().data_file && copied);
    if ((entry.descriptor & kCompressed) != 0 || !has_host) continue;

    const std::optional<bool> wanted =
        geometry().data_file ? true : should_be_copied(geometry().cluster_of(at));
    if (!wanted || *wanted == copied) continue;
    if (what == Copied::report) {
      const GuestCluster guest = geometry().first_of_l1(use.l1_index) + i;
      Place place = entry_place({&use, guest, entry}, FindingKind::copied);
      place.repair = RepairKind::fix_flag;
      report_copied(use.active, place,
                    cat("guest offset ", geometry().start_of(guest), ": L2 entry"));
      continue;
    }
    const bool there = geometry().data_file || at.value < file_size;
    if (!there || *wanted != (what == Copied::set)) continue;
    if (!geometry().data_file && !may_change_copied(what, geometry().cluster_of(at))) continue;
    entry.descriptor ^= kCopied;
    store_l2(table, i, entry, geometry());
  }
}

Task<void> MetadataScan::repair_entries() {
  const VisitL2 visit = [this](const L2Use& use, MutableBytes table) {
    if (counts.find(HostCluster{use.cluster})->aliased) return;
    for (uint64_t i = 0; i < geometry().l2_entries(); ++i) {
      L2Entry entry = load_l2(table, i, geometry());
      const HostOffset at{entry.descriptor & kOffsetMask};
      const bool compressed = (entry.descriptor & kCompressed) != 0;
      if (compressed && (entry.descriptor & kCopied) != 0) {
        entry.descriptor &= ~kCopied;
      } else if (!compressed && at.value != 0 && (entry.descriptor & kReadsZero) != 0 &&
                 !geometry().aligned(at) && geometry().version >= 3 && !geometry().extended_l2) {
        entry.descriptor = kReadsZero;
      } else {
        continue;
      }
      store_l2(table, i, entry, geometry());
    }
  };
  co_await change_each_l2(visit);
}

}  // namespace byre
