// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/snapshot_scan.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "format/limits.h"

namespace byre {
namespace {

class SnapshotScan {
 public:
  SnapshotScan(ScanContext& scan, L1Scan& l1) : scan_(scan), result_(scan.result()), l1_(l1) {}
  Task<void> run();

 private:
  const Geometry& geometry() const { return scan_.geometry(); }
  Task<std::vector<Snapshot>> read();
  void check_entry(uint64_t index);
  Task<void> count_l1(uint64_t index);
  void count_table();

  ScanContext& scan_;
  ScanResult& result_;
  L1Scan& l1_;
};

/// When the header counts too many, the entries that are not there may lie in what the file lacks
/// of its last cluster.
Task<std::vector<Snapshot>> SnapshotScan::read() {
  Result<std::vector<Snapshot>> whole =
      co_await load_snapshots(scan_.file(), result_.head).result();
  const uint64_t at = result_.head.header.snapshots_offset.value;
  const uint64_t end = round_up(result_.file_size(), geometry().cluster_size());
  if (whole || whole.error().code() != Errc::corrupt || at >= result_.file_size() ||
      end == result_.file_size()) {
    co_return co_await std::move(whole);
  }
  std::vector<std::byte> bytes(std::min(end - at, kSnapshotTableSizeMax));
  co_await scan_.read_padded(at, bytes, IoTag::snapshot_load);
  Result<std::vector<Snapshot>> padded = parse_snapshots(bytes, result_.head.header.snapshot_count);
  if (!padded) co_return co_await std::move(whole);
  // Of one that is something no byte may be missing.
  uint64_t count = padded->size();
  while (count != 0 && is_empty_entry((*padded)[count - 1])) --count;
  const Bytes there = Bytes(bytes).first(std::min(bytes.size(), result_.file_size() - at));
  if (!parse_snapshots(there, static_cast<uint32_t>(count))) co_return co_await std::move(whole);
  co_return *std::move(padded);
}

/// What others refuse to read, though nothing that it refers to is in doubt.
void SnapshotScan::check_entry(uint64_t index) {
  const Snapshot& snapshot = result_.snapshots[index];
  FindingPlace place{.kind = FindingKind::snapshot,
                     .structure = "snapshot table",
                     .at = result_.head.header.snapshots_offset.value};
  const auto words = cat("snapshot table entry ", index, " of ", result_.snapshots.size());
  const bool version_3 = geometry().version >= 3;
  if (is_empty_entry(snapshot)) {
    // It may have been something.
    place.repair = RepairKind::drop;
    result_.repairable_snapshots = true;
    if (!version_3) ++result_.report.corruptions_beyond_qemu;
    scan_.damage(1, place, words, " is empty: no L1 table, no id, no name");
    return;
  }
  if (version_3 && !snapshot.disk_size) {
    place.repair = RepairKind::complete;
    result_.repairable_snapshots = true;
    ++result_.format_only;
    ++result_.report.corruptions;
    scan_.add_finding(Severity::corruption, place, words, " (", quoted(snapshot.name),
                      ") is incomplete: it does not say how large its disk is, as version 3 wants");
  }
  if (snapshot.extra_data.size() > kSnapshotExtraSizeMax) {
    place.repair = RepairKind::refuse;
    scan_.fault(place, words, " (", quoted(snapshot.name), ") has ", snapshot.extra_data.size(),
                " bytes of extra data; no other reader takes more than ", kSnapshotExtraSizeMax);
  }
}

Task<void> SnapshotScan::run() {
  Result<std::vector<Snapshot>> loaded = co_await read().result();
  if (!loaded) {
    if (loaded.error().code() == Errc::io) {
      scan_.unreadable(loaded.error());
    } else {
      scan_.damage(1,
                   {.kind = FindingKind::snapshot,
                    .structure = "snapshot table",
                    .at = result_.head.header.snapshots_offset.value},
                   loaded.error().message());
    }
    result_.snapshots_lost = true;
    co_return;
  }
  result_.snapshots = *std::move(loaded);
  for (uint64_t i = 0; i < result_.snapshots.size(); ++i) {
    check_entry(i);
    if (!is_empty_entry(result_.snapshots[i])) co_await count_l1(i);
  }
  if (!result_.snapshots.empty()) count_table();
}

Task<void> SnapshotScan::count_l1(uint64_t index) {
  const Snapshot& snapshot = result_.snapshots[index];
  std::string name = cat("snapshot ", quoted(snapshot.name), ": ");
  if (const Result<void> sound = check_l1_table(snapshot, geometry()); !sound) {
    scan_.damage(1,
                 {.kind = FindingKind::snapshot,
                  .structure = "snapshot's L1 table",
                  .at = snapshot.l1_offset.value},
                 name, sound.error().message());
    if (!within(snapshot.l1_offset.value, uint64_t{snapshot.l1_entries} * 8, result_.file_size())) {
      result_.references.note_behind_end(snapshot.l1_offset.value);
    }
    result_.broken_snapshots.insert(index);
    co_return;
  }
  if (snapshot.l1_entries < geometry().l1_entries_for(snapshot.disk_size.value_or(0))) {
    scan_.note(FindingKind::snapshot, name, "L1 table of ", snapshot.l1_entries,
               " entries is too short for its disk of ", *snapshot.disk_size, " bytes");
  }
  const bool there = co_await l1_.count_of_snapshot(snapshot.l1_offset, snapshot.l1_entries,
                                                    index + 1, std::move(name), snapshot.name);
  if (!there) result_.broken_snapshots.insert(index);
}

void SnapshotScan::count_table() {
  const uint64_t at = result_.head.header.snapshots_offset.value;
  const Result<std::vector<std::byte>> table = serialize_snapshots(result_.snapshots);
  if (table) {
    scan_.count_range(at, table->size(), Owner::other, kSnapshotTableIdentity, 1, "snapshot table");
  } else {
    scan_.damage(1, {.kind = FindingKind::snapshot, .structure = "snapshot table", .at = at},
                 "snapshot table at ", hex(at), ": ", table.error().message());
  }
}

}  // namespace

Task<void> scan_snapshots(ScanContext& scan, L1Scan& l1) {
  SnapshotScan snapshots(scan, l1);
  co_await snapshots.run();
}

}  // namespace byre
