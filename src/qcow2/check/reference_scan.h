// SPDX-License-Identifier: Apache-2.0
/// ReferenceScan: all references of an image, counted before it is written (docs/engine.md, V).
///
///   1. read_roots(): header, L1 tables, snapshot table, bitmaps, refcount table.  What they are is
///      metadata; what they lead to is known by place.
///   2. finish(): each L2 table once, in the order of the file, with a weight (how many L1 entries
///      point to it); then the refcount blocks, compared with what was counted.
///   3. Only when something is out of order, the L2 tables again, to find the entries that lead to
///      it.
///
/// It asks less than a check (metadata_scan.h), which knows each cluster's owner and has words for
/// every oddity: so two bits a cluster are enough.  Both count the same references.
/// Invariant: writes nothing, and its reads raise none of the events that QEMU's fault filter knows
/// (no IoTag), as QEMU makes none there.  Whoever runs it sees to it that no table changes
/// meanwhile. Cost: one pass over the tables, on a worker thread while the next ones are read.
/// Memory: CompactCounts, 24 bytes an L2 table, the refcount table, two windows of tables, the
/// tables that are kept; the lists of what was found, within the options.
/// One class with many methods, because all three steps add to the same counts and to one list of
/// what was found, which must stay bounded as a whole.
/// Not here: what is done about it (ops/heal.h).
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/progress.h"
#include "block/device.h"
#include "coro/gate.h"
#include "format/l2.h"
#include "qcow2/check/compact_counts.h"
#include "qcow2/check/damage.h"
#include "qcow2/core/image_header.h"

namespace byre {

struct ReferenceScanOptions {
  /// Waits between windows as long as reading the last one took: guests have the disk, too.
  bool paced = false;
  /// Each window takes a pass; null: none is needed.
  Gate* gate = nullptr;
  /// So many bytes of the active disk's L2 tables are kept for take_tables().
  uint64_t read_tables_max = 0;
  /// More than so many lost parts of the disk, or undercounted clusters, and the image is beyond
  /// healing.
  uint64_t lost_max = 64 * 1024;
  uint64_t undercounted_max = 1024 * 1024;
  uint64_t in_doubt_max = 1024;
  /// For counting; an image that needs more is beyond healing.  Enough for 32 TiB of 64 KiB
  /// clusters with snapshots, four times that without.
  uint64_t memory_max = 512 * MiB;
};

class ReferenceScan {
 public:
  /// `head` outlives the scan.
  ReferenceScan(Device& file, const ImageHeader& head, ReferenceScanOptions options);
  ReferenceScan(const ReferenceScan&) = delete;

  /// How much of table_bytes() was read; stopped, the scan ends with Errc::cancelled.
  Progress& progress() { return progress_; }
  /// Fails only when the device does.
  Task<void> read_roots();
  /// Bytes of L2 tables and refcount blocks that finish() reads, as the roots have it.
  uint64_t table_bytes() const;
  /// Where the L2 tables of the active disk and of snapshots are, as the roots have it.
  template <class Visit>
  void each_table(const Visit& visit) const {
    for (const Table& table : tables_) visit(table.at);
  }
  struct ReadTable {
    HostCluster at;
    std::vector<std::byte> bytes;
  };
  /// L2 tables of the active disk as finish() read them, for a cache; once.
  std::vector<ReadTable> take_tables() { return std::move(read_tables_); }
  /// The rest.  Fails with Errc::cancelled when it was stopped.
  Task<ImageDamage> finish();

 private:
  /// An L2 table, and the L1 entries that lead to it.
  struct Table {
    HostCluster at;
    uint32_t weight = 0;
    uint32_t active = 0;    ///< Entries of the active L1 table among them.
    uint32_t l1_index = 0;  ///< Of the first.
    bool copied = false;    ///< An active entry has COPIED.
    bool shared = false;    ///< Different places of the disk lead to it.
  };
  /// An entry that leads to a cluster that is out of order.
  struct Suspect {
    std::vector<GuestCluster> guests;
    bool data = false;
    bool compressed = false;
    bool active = false;
  };
  static constexpr size_t kSentencesMax = 16;
  static constexpr size_t kGuestsMax = 16;  ///< Of a suspect.

  void add_metadata(HostOffset at, uint64_t length, std::string_view what);
  Task<std::vector<std::byte>> read(HostOffset at, uint64_t length, std::string_view what);
  Task<void> read_l1(HostOffset at, uint64_t entries, const std::string* snapshot);
  void add_l1_entry(uint64_t raw, uint64_t index, bool active);
  void merge_tables();
  Task<void> read_snapshots();
  Task<void> read_bitmaps();
  Task<void> read_refcount_table();
  void lost(ImageDamage::Lost lost, bool active);
  void leads_behind_end(HostOffset at, uint64_t length, uint64_t references);
  bool out_of_memory();
  bool is_l2_table(HostCluster cluster) const;
  void in_metadata(GuestCluster guest, HostOffset at, uint64_t length, bool active);
  void beyond_healing(std::string sentence);
  bool is_beyond_healing() const { return !damage_.beyond_healing.empty(); }

  void count_tables();
  Task<void> walk_tables();
  void keep_table(const Table& table, Bytes bytes);
  void count_entries(const Table& table, Bytes bytes);
  void count_entry(const Table& table, uint64_t index, L2Entry entry);
  void count_range(const Table& table, uint64_t index, HostOffset at, uint64_t length, bool copied);

  void note_copied(const Table& table, uint64_t index);
  Task<void> compare();
  void compare_block(uint64_t index, Bytes block);
  void compare_cluster(HostCluster cluster, uint64_t refcount);

  Task<void> locate();
  void locate_entries(const Table& table, Bytes bytes);
  void add_twins();
  void describe_suspects();
  void in_doubt(GuestCluster first, uint64_t clusters, bool active);

  /// Reads `clusters`, which ascend, window by window; `visit` runs on a worker thread.
  Task<void> each_cluster(std::vector<HostCluster> clusters, std::string_view what,
                          const std::function<void(size_t, Bytes)>& visit);

  Device& file_;
  const ImageHeader& head_;
  const Geometry& g_;
  ReferenceScanOptions options_;
  Progress progress_;
  uint64_t file_size_ = 0;
  uint64_t clusters_end_ =
      0;  ///< Behind all that is counted: of the last cluster a part may be there.
  CompactCounts counts_;
  std::vector<Table> tables_;
  size_t tables_merged_ = 0;
  std::vector<ReadTable> read_tables_;
  std::vector<uint64_t> active_l1_;
  std::vector<uint64_t> refcount_table_;
  std::unordered_map<HostCluster, Suspect> suspects_;
  std::set<std::pair<uint32_t, uint32_t>> shared_;  ///< L1 entries that lead to one table.
  ImageDamage damage_;
};

}  // namespace byre
