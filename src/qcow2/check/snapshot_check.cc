// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/snapshot_check.h"

#include <algorithm>
#include <map>

#include "base/checked.h"
#include "format/l1.h"

namespace byre {
namespace {

class SnapshotCheck {
 public:
  SnapshotCheck(ScanContext& scan, const Snapshot& snapshot)
      : scan_(scan), snapshot_(snapshot), name_(cat("snapshot ", quoted(snapshot.name), ": ")) {}

  Task<void> run() {
    const Geometry& g = scan_.geometry();
    if (!check_l1_table(snapshot_, g)) co_return;  // Known.
    const uint64_t size = snapshot_.disk_size.value_or(scan_.result().head.header.size);
    if (size > g.size_max()) {
      broken("its disk of ", size, " bytes is larger than clusters of ", g.cluster_size(),
             " bytes allow");
      co_return;
    }
    const uint64_t disk_entries = g.l1_entries_for(size);
    if (disk_entries > snapshot_.l1_entries) {
      broken("an L1 table of ", snapshot_.l1_entries, " entries, and its disk of ", size,
             " bytes needs ", disk_entries);
      co_return;
    }
    if (snapshot_.vm_state_size == 0) co_return;
    const uint64_t entries = div_ceil(snapshot_.vm_state_size, g.l1_span());
    if (entries > snapshot_.l1_entries - disk_entries) {
      broken("a VM state of ", snapshot_.vm_state_size, " bytes, and its L1 table ends before");
      co_return;
    }
    co_await check_vm_state(disk_entries, entries);
  }

 private:
  FindingPlace place(uint64_t index, uint64_t count) const {
    return {.kind = FindingKind::snapshot,
            .structure = "snapshot's L1 table",
            .at = snapshot_.l1_offset.value + index * 8,
            .length = count * 8};
  }
  template <class... Parts>
  void broken(const Parts&... parts) {
    scan_.damage_beyond_qemu(1, place(0, snapshot_.l1_entries), name_, parts...);
  }
  template <class... Parts>
  void note(const Parts&... parts) {
    FindingPlace at = place(0, snapshot_.l1_entries);
    at.repair = RepairKind::none;
    scan_.add_finding(Severity::note, at, name_, parts...);
  }

  Task<void> check_vm_state(uint64_t first, uint64_t count) {
    std::vector<std::byte> bytes(count * 8);
    const uint64_t at = snapshot_.l1_offset.value + first * 8;
    const Result<void> read = co_await scan_.read_padded(at, bytes, IoTag::l1_load).result();
    if (!read) co_return;  // Known.
    for (uint64_t i = 0; i < count; ++i) {
      if ((load_l1_entry(bytes, i) & kOffsetMask) != 0) continue;
      note("a part of its VM state of ", snapshot_.vm_state_size,
           " bytes has no table: it reads "
           "as zeros");
      co_return;
    }
  }

  ScanContext& scan_;
  const Snapshot& snapshot_;
  const std::string name_;
};

}  // namespace

Task<void> check_snapshots(ScanContext& scan) {
  if (scan.result().snapshots_lost) co_return;  // The scan has said so.
  std::map<std::string_view, uint64_t> ids;
  std::map<std::string_view, uint64_t> names;
  for (const Snapshot& snapshot : scan.result().snapshots) {
    if (is_empty_entry(snapshot)) continue;
    ++ids[snapshot.id];
    ++names[snapshot.name];
  }
  const FindingPlace table{.kind = FindingKind::snapshot,
                           .structure = "snapshot table",
                           .at = scan.result().head.header.snapshots_offset.value};
  for (const auto& [id, count] : ids) {
    if (count == 1) continue;
    scan.damage_beyond_qemu(1, table, count, " snapshots have the id ", quoted(id));
  }
  for (const auto& [name, count] : names) {
    if (count == 1) continue;
    FindingPlace place = table;
    place.repair = RepairKind::none;
    scan.add_finding(Severity::note, place, count, " snapshots have the name ", quoted(name),
                     "; only ids tell them apart");
  }
  for (const Snapshot& snapshot : scan.result().snapshots) {
    if (is_empty_entry(snapshot)) continue;
    co_await scan.go_on();
    SnapshotCheck check(scan, snapshot);
    co_await check.run();
  }
}

}  // namespace byre
