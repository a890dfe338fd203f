// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/copied_flags.h"

namespace byre {
namespace {

class CopiedFlags {
 public:
  explicit CopiedFlags(ScanContext& scan) : scan_(scan), result_(scan.result()) {}

  Task<void> run() {
    check_l1();
    const VisitL2 visit = [this](const L2Use& use, MutableBytes table) {
      if (use.active != 0) check_l2(use, table);
    };
    co_await scan_.each_l2(visit);
  }

 private:
  const Geometry& geometry() const { return scan_.geometry(); }

  /// What lies behind the end of the file may be there all the same.
  std::optional<bool> wanted(HostCluster cluster) const {
    if (cluster.value < result_.references.clusters) {
      return should_be_copied(result_.references.counts, cluster);
    }
    const auto known = result_.behind_end.find(cluster);
    return known != result_.behind_end.end() && known->second;
  }

  void check_l1() {
    const std::vector<uint64_t>& l1 = result_.active_l1;
    for (uint64_t i = 0; i < l1.size(); ++i) {
      const HostOffset l2{l1[i] & kOffsetMask};
      if (l2.value == 0) continue;
      const std::optional<bool> should_be = wanted(geometry().cluster_of(l2));
      if (!should_be || *should_be == ((l1[i] & kCopied) != 0)) continue;
      report(1,
             {.kind = FindingKind::copied,
              .structure = "L1 entry",
              .at = result_.head.header.l1_offset.value + i * 8,
              .length = 8,
              .guest = geometry().first_of_l1(i),
              .guest_clusters = geometry().l2_entries(),
              .l1 = &result_.l1_tables.front(),
              .entry = l1[i],
              .repair = RepairKind::fix_flag},
             cat("L1 entry ", i));
    }
  }

  void check_l2(const L2Use& use, Bytes table) {
    for (uint64_t i = 0; i < geometry().l2_entries(); ++i) {
      const L2Entry entry = load_l2(table, i, geometry());
      const HostOffset at{entry.descriptor & kOffsetMask};
      const bool copied = (entry.descriptor & kCopied) != 0;
      const bool has_host = at.value != 0 || (geometry().data_file && copied);
      if ((entry.descriptor & kCompressed) != 0 || !has_host) continue;

      const std::optional<bool> should_be =
          geometry().data_file ? true : wanted(geometry().cluster_of(at));
      if (!should_be || *should_be == copied) continue;
      const GuestCluster guest = geometry().first_of_l1(use.l1_index) + i;
      FindingPlace place = scan_.place_of({&use, guest, entry}, FindingKind::copied);
      place.repair = RepairKind::fix_flag;
      report(use.active, place, cat("guest offset ", geometry().start_of(guest), ": L2 entry"));
    }
  }

  void report(uint64_t weight, const FindingPlace& place, std::string_view what) {
    result_.report.corruptions += weight;
    result_.copied_wrong += weight;
    const bool copied = (place.entry & kCopied) != 0;
    scan_.add_finding(
        Severity::corruption, place, what, ": ", hex(place.entry),
        copied ? ": COPIED, but the refcount is not 1" : ": not COPIED, but the refcount is 1");
  }

  ScanContext& scan_;
  ScanResult& result_;
};

}  // namespace

std::optional<bool> should_be_copied(const ReferenceCounts& counts, HostCluster cluster) {
  const ReferenceCounts::Cell* cell = counts.find(cluster);
  if (!cell || cell->on_disk() == ReferenceCounts::OnDisk::unknown) return std::nullopt;
  return cell->on_disk() == ReferenceCounts::OnDisk::one;
}

Task<void> report_copied_flags(ScanContext& scan) {
  CopiedFlags flags(scan);
  co_await flags.run();
}

}  // namespace byre
