// SPDX-License-Identifier: Apache-2.0
/// MetadataScan: one walk over all of an image's metadata: what refers to what, and what the
/// refcounts say.  check.cc runs it, repair.cc acts on it.
///
///   1. The references are counted: from the header, the active L1 table, each snapshot's, the
///      snapshot table, the encryption header, the bitmaps, the refcount table.  Each L2 table is
///      read once, in the order of the file, with a weight: how many L1 entries point to it.
///   2. The refcount blocks are read and compared.
///   3. Only if that found one out of order, the L2 tables are read again for their COPIED flags.
///
/// An image may be hostile: a table that begins behind the end of the file is a finding and is not
/// read; nothing is followed twice; an owner that meets another is reported and not followed into
/// large tables, so the time follows what is really there.
/// Invariant: run() writes nothing; repair_entries() and visit_copied() do, for repair.cc.
/// Memory: ReferenceCounts (reference_counts.h), 32 bytes an L2 table, the refcount table.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "format/kept_clusters.h"
#include "format/l2.h"
#include "format/refcount.h"
#include "qcow2/check/finding.h"
#include "qcow2/check/reference_counts.h"
#include "qcow2/check/report.h"
#include "qcow2/check/table_reader.h"
#include "qcow2/core/image_header.h"

namespace byre {

class MetadataScan {
 public:
  MetadataScan(Device& file, const CheckOptions& options) : file(file), options(options) {}

  /// All three steps.  Fails only when there is no way into the image at all.
  Task<void> run();
  /// The same in two parts.  begin() reads what everything hangs on: header, L1 tables, snapshot
  /// table, bitmap tables; after it all that is counted is metadata.  Refcount structures are not
  /// among it yet.
  Task<void> begin();
  Task<void> end();

  Device& file;
  const CheckOptions& options;
  ImageHeader head;
  uint64_t file_size = 0;
  uint64_t clusters = 0;  ///< Of the file; of the last one there may be a part, or nothing.
  CheckReport report;
  ReferenceCounts counts;

  /// What stands against a repair.
  bool damaged = false;            ///< References may be missing or wrong: free nothing.
  bool undercounted = false;       ///< A refcount is too small.
  bool refcounts_unsound = false;  ///< They can only be written anew.
  /// The first byte behind the end of the file that something points to.  The file must not grow
  /// beyond it: what was lost there would seem to be back.
  uint64_t pointed_behind_end = UINT64_MAX;
  bool keep_orphans = false;        ///< Free nothing that may be the only copy of lost data,
  KeptClusters kept;                ///< and nothing that an earlier repair has kept (keep.h).
  bool promise = false;             ///< The next write is preceded by the promise to keep all.
  bool snapshots_lost = false;      ///< Their table may lie anywhere: no place is sure to be free.
  bool l1_behind_end = false;       ///< A part of the active L1 table is not there,
  bool l1_too_short = false;        ///< or the header does not count it (lost_l1.h).
  bool copied_mismatch = false;     ///< COPIED flags may contradict refcounts.
  bool repairable_entries = false;  ///< repair_entries() has something to do.
  bool lost_entries = false;        ///< Entries lead nowhere (loss.h).
  bool foreign_bitmaps = false;     ///< Of a type that no reader knows.
  bool bitmaps_lost = false;        ///< Their directory cannot be read.
  bool overfull = false;            ///< More references than a refcount holds.
  bool repairable_snapshots = false;  ///< repair_snapshots(),
  bool repairable_bitmaps = false;    ///< repair_bitmaps(),
  bool repairable_header = false;  ///< or repair_header() (structure_repair.h) has something to do.
  uint64_t copied_wrong = 0;       ///< Corruptions that are COPIED flags.
  uint64_t format_only = 0;        ///< Corruptions that change no reference.

  enum class Block : uint8_t {
    none,     ///< All counts are zero.
    sound,    ///< May be written in place.
    suspect,  ///< Its counts are readable, but somebody else may own the cluster.
    lost,     ///< Its counts are not known.
  };
  std::vector<uint64_t> refcount_table;        ///< As it is in the file.
  std::vector<Block> blocks;                   ///< For each entry of it.
  std::vector<HostCluster> refcount_clusters;  ///< The table's and the blocks', one reference each.

  const Geometry& geometry() const { return head.geometry; }
  HostCluster block_at(uint64_t index) const;
  /// The first cluster behind those that block `index` counts, within the file.
  HostCluster block_end(uint64_t index) const;
  /// The block's bytes; needs one that is sound or suspect.
  Task<std::vector<std::byte>> read_block(uint64_t index);

  /// Calls visit(cluster, refcount) for each cluster of block `index`, within the file, whose
  /// refcount in `block` (all zeros when empty) is not zero or which lies in one of `regions`:
  /// time follows what is there, not what could be.
  template <class Visit>
  void each_used(uint64_t index, Bytes block, const std::vector<uint64_t>& regions,
                 Visit visit) const;
  /// Writes those sectors of a table that differ from what was read.
  Task<void> write_changes(HostOffset at, Bytes before, Bytes after, IoTag tag);
  /// Clears flags and offsets that mean nothing where they are: COPIED on compressed entries, hosts
  /// of zero clusters that are not aligned.  No guest sees a difference.
  Task<void> repair_entries();
  /// Makes COPIED clear (or set) where counts' on_disk says so.
  enum class Copied : uint8_t { report, clear, set };
  Task<void> visit_copied(Copied what);

  /// The L1 tables that could be walked, the active one first.
  struct L1Table {
    HostOffset at;
    uint64_t entries = 0;
    bool active = false;
    std::string snapshot;  ///< Its name, unless active.
  };
  std::vector<L1Table> l1_tables;
  std::vector<Snapshot> snapshots;  ///< As their table says, which may be less than is right.
  /// Runs of clusters that have a refcount and no reference, ascending.
  std::vector<HostSpan> orphans;
  uint64_t orphan_clusters() const {
    uint64_t count = 0;
    for (const HostSpan& span : orphans) count += span.count;
    return count;
  }
  /// Those that must not be freed.
  uint64_t orphans_kept() const {
    if (keep_orphans) return orphan_clusters();
    return kept.empty() ? 0 : orphans_remembered_;
  }
  /// May a cluster that nothing refers to be freed?
  bool keeps(HostCluster cluster) const { return keep_orphans || kept.contains(cluster); }
  /// Clusters in which compressed streams overlap; known only when that was asked for.
  std::set<HostCluster> overlapping;

  /// Compressed streams that do not inflate, by offset and size; known only when that was asked
  /// for.
  std::set<std::pair<uint64_t, uint64_t>> bad_streams;
  /// Indices of those whose tables cannot be used.
  std::set<uint64_t> broken_snapshots;
  std::set<uint64_t> broken_bitmaps;

  /// An L2 table and who points to it.
  struct L2Use {
    uint64_t cluster = 0;
    uint64_t weight = 0;        ///< L1 entries that point to it, of all L1 tables.
    uint32_t active = 0;        ///< Those of the active one.
    uint32_t l1_index = 0;      ///< Of the first of them.
    bool copied_set = false;    ///< An active entry that points to it has COPIED,
    bool copied_clear = false;  ///< or one has not.
    bool shared = false;        ///< By different places of the disk.
  };
  using VisitL2 = std::function<void(const L2Use&, MutableBytes)>;
  /// Reads every L2 table, in the order of the file.  visit() runs on a worker thread, with nothing
  /// but reads beside it; `counting` tells how far the check is.
  Task<void> each_l2(const VisitL2& visit, bool counting = false);
  /// Likewise, one after another, and what visit() changes is written back.
  Task<void> change_each_l2(const VisitL2& visit);
  /// Counts what an L2 table refers to.
  void count_l2(const L2Use& use, Bytes table);
  const std::vector<L2Use>& l2_uses() const { return l2_uses_; }
  /// Null when no L1 entry leads to a table there.
  const L2Use* find_use(uint64_t cluster) const {
    const auto at =
        std::lower_bound(l2_uses_.begin(), l2_uses_.end(), cluster,
                         [](const L2Use& use, uint64_t wanted) { return use.cluster < wanted; });
    return at != l2_uses_.end() && at->cluster == cluster ? &*at : nullptr;
  }
  /// Reads; what lies behind the end of the file is zeros.
  Task<void> read_padded(uint64_t offset, MutableBytes data, IoTag tag);
  /// Does it end behind the end of the file?
  bool is_behind_end(uint64_t offset, uint64_t length) const;
  void unreadable(const Error& error);
  /// Fails when the check was stopped.
  Result<void> go_on() const;

  /// What a finding is about; what is not known stays as it is.
  struct Place {
    FindingKind kind = FindingKind::oddity;
    std::string_view structure = {};
    uint64_t at = 0;  ///< In the file, with `length` bytes.
    uint64_t length = 0;
    const L2Use* use = nullptr;  ///< It is an entry of this L2 table.
    std::optional<GuestCluster> guest = {};
    uint64_t guest_clusters = 1;
    const L1Table* l1 = nullptr;  ///< It is an entry of this L1 table.
    uint64_t entry = 0;           ///< The entry.
    RepairKind repair = RepairKind::refuse;
    Cause cause = Cause::unknown;
  };
  template <class... Parts>
  void add_finding(Severity severity, const Place& place, const Parts&... parts) {
    if (report.findings.size() < options.findings_max) store(severity, place, cat(parts...));
  }
  /// References may be wrong or missing: a corruption, and nothing is freed.
  template <class... Parts>
  void damage(uint64_t weight, const Place& place, const Parts&... parts) {
    damaged = true;
    report.corruptions += weight;
    add_finding(Severity::corruption, place, parts...);
  }
  /// The same for what QEMU does not count.
  template <class... Parts>
  void damage_beyond_qemu(uint64_t weight, const Place& place, const Parts&... parts) {
    report.corruptions_beyond_qemu += weight;
    damage(weight, place, parts...);
  }
  /// What breaks the format but hides no reference; QEMU does not count it.
  template <class... Parts>
  void fault(const Place& place, const Parts&... parts) {
    ++format_only;
    ++report.corruptions;
    ++report.corruptions_beyond_qemu;
    add_finding(Severity::corruption, place, parts...);
  }

 private:
  void store(Severity severity, const Place& place, std::string text);
  Place place_of(HostCluster cluster) const;
  /// An entry of an L2 table.
  struct Met {
    const L2Use* use;
    GuestCluster guest;
    L2Entry entry;
  };
  Place entry_place(const Met& met, FindingKind kind) const;
  template <class... Parts>
  void note(FindingKind kind, const Parts&... parts) {
    add_finding(Severity::note, {.kind = kind, .repair = RepairKind::none}, parts...);
  }

  // 1.
  Task<void> count_metadata();
  bool count_range(uint64_t offset, uint64_t length, Owner owner, uint64_t identity,
                   uint64_t weight, std::string_view what, const Met* met = nullptr);
  Task<void> count_active_l1();
  Task<bool> count_l1(HostOffset at, uint64_t entries, uint64_t identity, std::string what,
                      std::string snapshot);
  /// The same for an entry that leads nowhere.
  template <class... Parts>
  void lost(uint64_t weight, const Place& place, const Parts&... parts) {
    lost_entries = true;
    damage(weight, place, parts...);
  }
  void count_l1_entry(uint64_t entry, uint64_t index, const L1Table& l1, std::string_view what);
  void merge_l2_uses();
  void count_l2_tables();
  struct Run;
  void count_entry(const L2Use& use, uint64_t index, L2Entry entry, Run& run);
  struct Plain;
  bool count_plain(const L2Use& use, uint64_t guest, uint64_t descriptor, const Plain& plain,
                   Run& run);
  void count_compressed(const L2Use& use, GuestCluster guest, L2Entry entry, Run& run);
  void count_host(const L2Use& use, GuestCluster guest, L2Entry entry, HostOffset at, Run& run);
  bool check_subclusters(const L2Use& use, GuestCluster guest, L2Entry entry, bool has_host);
  void check_header();
  void check_readers(Header& header, Extensions& extensions);
  Task<std::vector<Snapshot>> read_snapshots();
  void check_snapshot_entry(uint64_t index);
  Task<void> count_snapshots();
  Task<void> count_bitmaps();
  void check_bitmap(const Bitmap& bitmap);
  void check_extra_data(const Bitmap& bitmap, Place place);
  Task<void> count_bitmap(const Bitmap& bitmap, uint64_t index);
  Task<void> count_refcounts();
  void count_block(uint64_t index);

  // 2.
  Task<void> compare();
  std::vector<uint64_t> indices_to_compare(const std::vector<uint64_t>& regions) const;
  bool is_readable(uint64_t index) const {
    return blocks[index] == Block::sound || blocks[index] == Block::suspect;
  }
  void compare_block(uint64_t index, Bytes block, const std::vector<uint64_t>& regions);
  void compare_cluster(HostCluster cluster, uint64_t refcount, bool writable);
  Task<void> check_behind_end();

  // 3.
  void visit_copied_l2(Copied what, const L2Use& use, MutableBytes table);
  Task<void> visit_copied_l1(Copied what);
  std::optional<bool> should_be_copied(HostCluster cluster) const;
  bool may_change_copied(Copied what, HostCluster cluster) const;
  void report_copied(uint64_t weight, const Place& place, std::string_view what);

  TableReader::Pace pace_of(uint64_t count, double from, double to) const;
  void unreadable_table(const Error& error, std::string_view what, HostCluster cluster);
  void progress(double fraction) const;

  std::vector<uint64_t> l1_;  ///< The active one.
  std::vector<L2Use> l2_uses_;
  size_t l2_uses_merged_ = 0;
  /// Clusters behind the end that the active disk points to, and whether their refcount is 1: it
  /// may be there all the same.
  std::map<HostCluster, bool> behind_end_;
  uint64_t highest_ = 0;
  uint64_t orphans_remembered_ = 0;  ///< That an earlier repair has kept.
  bool refcounts_unknown_ = false;   ///< The disk did not give their table.
};

template <class Visit>
void MetadataScan::each_used(uint64_t index, Bytes block, const std::vector<uint64_t>& regions,
                             Visit visit) const {
  constexpr uint64_t kRegion = ReferenceCounts::kRegion;
  const uint32_t order = geometry().refcount_order;
  const uint64_t first = geometry().first_of_refcount_table(index).value;
  const uint64_t end = block_end(index).value;
  auto region = std::lower_bound(regions.begin(), regions.end(), first / kRegion);
  const auto refcount = [&](uint64_t cluster) {
    return block.empty() ? 0 : get_refcount(block, cluster - first, order);
  };

  uint64_t counted = first;
  for (uint64_t at = first; at < end;) {
    while (region != regions.end() && (*region + 1) * kRegion <= at) ++region;
    const uint64_t in_region = region == regions.end() ? end : std::max(at, *region * kRegion);
    if (block.empty()) counted = end;
    if (counted <= at) {
      counted = first + find_nonzero_refcount(block, at - first, end - first, order);
    }
    if (std::min(in_region, counted) >= end) break;
    if (counted < in_region) {
      visit(HostCluster{counted}, refcount(counted));
      at = counted + 1;
      continue;
    }
    const uint64_t stop = std::min(end, (*region + 1) * kRegion);
    for (at = in_region; at < stop; ++at) visit(HostCluster{at}, refcount(at));
  }
}

}  // namespace byre
