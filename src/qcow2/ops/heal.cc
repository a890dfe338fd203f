// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/heal.h"

#include <algorithm>
#include <map>
#include <set>
#include <unordered_set>

#include "base/checked.h"
#include "format/kept_clusters.h"
#include "format/l1.h"
#include "qcow2/core/l2_patch.h"
#include "qcow2/core/quiesced.h"

namespace byre {
namespace {

std::string_view why(ImageDamage::Lost::Why why) {
  switch (why) {
    case ImageDamage::Lost::Why::unreadable_entry:
      return "which no entry may say";
    case ImageDamage::Lost::Why::behind_end:
      return "behind the end that the file had when it was opened";
    case ImageDamage::Lost::Why::in_metadata:
      return "which holds metadata";
  }
  return "";
}

/// Whole tables first: what is lost in them need not be said again.
void note_lost(GuestDisk& disk, const ImageDamage& damage) {
  for (const bool whole_table : {true, false}) {
    for (const ImageDamage::Lost& lost : damage.lost) {
      if (lost.whole_table != whole_table) continue;
      disk.map->lost().add({.first = lost.first,
                            .count = lost.count,
                            .whole_table = lost.whole_table,
                            .why = why(lost.why),
                            .host = lost.host});
    }
  }
  for (const ImageDamage::BehindEnd& lost : damage.behind_end) {
    for (uint64_t i = 0; i < lost.clusters.count; ++i)
      disk.allocator->keep_out_of_use(lost.clusters.first + i);
  }
}

using Wrong = std::vector<ImageDamage::WrongCopied>;

Task<void> clear_copied_in_l1(GuestDisk& disk, const Wrong& entries, std::vector<uint64_t>& l1) {
  std::set<uint64_t> sectors;
  for (const ImageDamage::WrongCopied& entry : entries) {
    if (!entry.in_l1) continue;
    l1[entry.l1_index] &= ~kCopied;
    sectors.insert(entry.l1_index * 8 / kSectorSize);
  }
  for (const uint64_t sector : sectors) {
    const uint64_t first = sector * kSectorSize / 8;
    std::vector<std::byte> bytes(std::min(kSectorSize, (l1.size() - first) * 8));
    for (uint64_t i = 0; i < bytes.size() / 8; ++i)
      store_l1_entry(MutableBytes(bytes), i, l1[first + i]);
    const HostOffset at = disk.head.header.l1_offset + sector * kSectorSize;
    co_await disk.file->write(at.value, bytes, {.tag = IoTag::l1_update}).doing("L1 table at ", at);
  }
}

/// COPIED goes from these entries, on the disk and in memory.
Task<void> clear_copied(GuestDisk& disk, const Wrong& entries) {
  if (entries.empty()) co_return;
  const Geometry& g = disk.geometry();
  std::vector<uint64_t> l1 = disk.map->l1();
  co_await clear_copied_in_l1(disk, entries, l1);
  std::map<HostCluster, std::vector<uint64_t>> tables;
  for (const ImageDamage::WrongCopied& entry : entries) {
    if (!entry.in_l1) tables[g.cluster_of(entry.at)].push_back(entry.l2_index);
  }
  for (const auto& [table, wrong] : tables) {
    L2Patch patch = co_await L2Patch::load(*disk.file, g, table);
    for (const uint64_t index : wrong) {
      L2Entry entry = patch.entry(index);
      entry.descriptor &= ~kCopied;
      patch.set(index, entry);
    }
    co_await patch.write(*disk.file);
  }
  co_await disk.latch->sync(IoTag::commit_sync);
  disk.map->reset_l1(std::move(l1));
}

using Undercounted = std::vector<ImageDamage::Undercounted>;

/// Regions in which something is in use, and that no refcount block counts: each gets one, and its
/// counts, before the next.
Task<void> make_missing_regions(GuestDisk& disk, const Undercounted& undercounted) {
  const Geometry& g = disk.geometry();
  std::map<uint64_t, std::map<HostCluster, uint64_t>> missing;
  for (const ImageDamage::Undercounted& one : undercounted) {
    const uint64_t index = g.refcount_table_index(one.cluster);
    if (!disk.allocator->has_region(index)) missing[index][one.cluster] = one.references;
  }
  std::vector<uint64_t> full;
  const auto make = [&](uint64_t index, std::optional<HostCluster> at) -> Task<void> {
    co_await disk.allocator->make_region(index, at);
    for (const auto& [cluster, references] : missing[index])
      co_await disk.allocator->raise_to(cluster, references);
  };
  for (const auto& [index, used] : missing) {
    HostCluster at = g.first_of_refcount_table(index);
    const HostCluster end = at + g.refcount_block_entries();
    while (at < end && (used.contains(at) || disk.allocator->keeps_out({at, 1}))) ++at;
    if (at < end) {
      co_await make(index, at);
    } else {
      full.push_back(index);
    }
  }
  for (const uint64_t index : full) co_await make(index, std::nullopt);
}

/// What lies behind the end of the file, and something leads to, counts before the file grows over
/// it; where no refcount block counts it, with its region (Allocator::keep_out_of_use()).
void count_behind_end(GuestDisk& disk, const ImageDamage& damage, Undercounted& undercounted) {
  const Geometry& g = disk.geometry();
  std::map<HostCluster, uint64_t> references;
  for (const ImageDamage::BehindEnd& lost : damage.behind_end) {
    for (uint64_t i = 0; i < lost.clusters.count; ++i)
      references[lost.clusters.first + i] += lost.references;
  }
  for (const auto& [cluster, count] : references) {
    if (disk.allocator->has_region(g.refcount_table_index(cluster)))
      undercounted.push_back({.cluster = cluster, .references = count});
  }
}

Task<void> raise_refcounts(GuestDisk& disk, const Undercounted& undercounted) {
  // Regions that exist come first: whatever is taken for a new block is then known to be free.
  for (const ImageDamage::Undercounted& one : undercounted) {
    if (disk.allocator->has_region(disk.geometry().refcount_table_index(one.cluster)))
      co_await disk.allocator->raise_to(one.cluster, one.references);
  }
  co_await make_missing_regions(disk, undercounted);
  co_await disk.committer->flush_all();
}

/// Only of a sound image, and never what a repair has promised to keep (R1).
Task<void> free_leaks(GuestDisk& disk, const ImageDamage& damage) {
  const KeptClusters kept = kept_clusters_of(disk.head.extensions);
  if (!damage.sound() || !kept.empty()) co_return;
  for (const HostSpan& span : damage.leaks) {
    for (HostCluster cluster = span.first; cluster < span.end(); ++cluster) {
      co_await disk.allocator->load({cluster, 1});
      if (disk.metadata.contains(cluster)) continue;
      if (disk.allocator->refcount(cluster) > 1) disk.allocator->keep_one_reference(cluster);
      disk.allocator->release({cluster, 1});
    }
  }
  if (!damage.leaks.empty()) co_await disk.committer->flush_all();
}

Task<void> make_safe(GuestDisk& disk, const ImageDamage& damage) {
  // Requests that wait for us may hold the disk's size, but no cluster.
  ShapeChange shape(disk);
  co_await shape.begin();
  Quiesced quiesced(shape);
  co_await quiesced.begin();
  co_await clear_copied(disk, damage.copied);
  Undercounted undercounted = damage.undercounted;
  count_behind_end(disk, damage, undercounted);
  co_await raise_refcounts(disk, undercounted);
  if (disk.options.free_leaks) co_await free_leaks(disk, damage);
}

/// Tables that the scan has read need not be read again: nobody changes them before it has ended.
void warm_cache(GuestDisk& disk, std::vector<ReferenceScan::ReadTable> tables) {
  for (ReferenceScan::ReadTable& table : tables) {
    disk.map->cache().put(disk.geometry().start_of(table.at), table.bytes);
    table.bytes = {};
  }
}

std::string sentences_of(const ImageDamage& damage, const Geometry& geometry) {
  std::string text;
  for (const std::string& sentence : describe(damage, geometry)) {
    text += text.empty() ? sentence : cat("; ", sentence);
  }
  return text;
}

}  // namespace

Error refuse_damaged(const ImageDamage& damage, const std::string& name, const Geometry& geometry) {
  return Error(Errc::corrupt,
               cat("the image is damaged: ", sentences_of(damage, geometry),
                   "; nothing was changed; byre repair ", quoted(name), " repairs it"),
               EUCLEAN);
}

Task<void> heal(GuestDisk& disk, const ImageDamage& damage) {
  if (disk.references.decided()) co_return;  // It is being closed.
  note_lost(disk, damage);
  if (!damage.beyond_healing.empty()) {
    disk.references.refuse(corrupt(
        "metadata of ", quoted(disk.name()), " cannot be changed: ", damage.beyond_healing.front(),
        "; byre repair ", quoted(disk.name()), " says what can be done"));
    co_return;
  }
  disk.map->set_ends_known();
  const bool nothing_to_do = damage.copied.empty() && damage.undercounted.empty() &&
                             damage.behind_end.empty() &&
                             !(disk.options.free_leaks && !damage.leaks.empty());
  if (!nothing_to_do) {
    const Result<void> done = co_await make_safe(disk, damage).result();
    if (disk.references.decided()) co_return;
    if (!done) {
      disk.references.refuse(done.error().copy().while_doing("heal the image's refcounts"));
      co_return;
    }
  }
  disk.references.open();
}

Task<void> scan_and_heal(GuestDisk& disk, std::unique_ptr<ReferenceScan> scan, ImageHealth& health,
                         ScanTime time) {
  const int64_t began = disk.reactor.now().ns;
  Result<ImageDamage> found = co_await scan->finish().result();
  warm_cache(disk, scan->take_tables());
  scan.reset();
  if (!found) {
    if (!disk.references.decided())
      disk.references.refuse(std::move(found).error().while_doing("scan all references"));
    co_return;
  }
  health.damage = *std::move(found);
  if (health.damage.too_many_lost && time == ScanTime::while_opening)
    co_await fail(refuse_damaged(health.damage, disk.name(), disk.geometry()));
  co_await heal(disk, health.damage);
  health.scan_ns = static_cast<uint64_t>(disk.reactor.now().ns - began);
  health.known = true;
  if (health.damage.sound() || !disk.options.message) co_return;
  const bool refused = disk.references.refused();
  const bool may_have_changed =
      time == ScanTime::beside_requests && health.damage.in_doubt_count != 0;
  disk.options.message(cat(disk.name(),
                           ": the image is damaged: ", sentences_of(health.damage, disk.geometry()),
                           refused ? ". It can be read, but changes that need metadata fail"
                                   : ". It is used without making that worse",
                           may_have_changed ? "; what was written in place before this scan ended "
                                              "may have reached two ranges that share a cluster"
                                            : "",
                           "; byre repair ", quoted(disk.name()), " repairs it"));
}

}  // namespace byre
