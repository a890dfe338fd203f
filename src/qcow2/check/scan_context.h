// SPDX-License-Identifier: Apache-2.0
/// ScanContext: what the parts of a scan share: the file, what is asked for, the result in the
/// making, and the way of a finding into it.
///
/// Invariant: only the parts of a scan (this folder) have one, so nothing else writes into a
/// ScanResult; nothing here writes to the file.
/// Cost: at most `findings_max` findings are kept with words; the others are only counted.
/// Not here: the parts (metadata_scan.h names them).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "format/l2.h"
#include "qcow2/check/finding.h"
#include "qcow2/check/l2_tables.h"
#include "qcow2/check/scan_result.h"

namespace byre {

/// What a finding is about; what is not known stays as it is.
struct FindingPlace {
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

/// An entry of an L2 table.
struct FoundEntry {
  const L2Use* use;
  GuestCluster guest;
  L2Entry entry;
};

class ScanContext {
 public:
  ScanContext(Device& file, const CheckOptions& options) : file_(file), options_(options) {}

  Device& file() const { return file_; }
  const CheckOptions& options() const { return options_; }
  ScanResult& result() { return result_; }
  const ScanResult& result() const { return result_; }
  const Geometry& geometry() const { return result_.geometry(); }
  void progress(double fraction) const;
  /// Fails when the check was stopped.
  Result<void> go_on() const { return options_.go_on(); }

  /// Reads; what lies behind the end of the file is zeros.
  BYRE_CORO_WRAPPER Task<void> read_padded(uint64_t offset, MutableBytes data, IoTag tag) {
    return byre::read_padded(file_, result_.file_size(), offset, data, tag);
  }
  /// Visits every L2 table; what is unreadable is a finding.  With `share`, the progress goes from
  /// 0 to that.
  Task<void> each_l2(VisitL2 visit, double share = 0);
  TableReader::Pace pace_of(uint64_t count, double from, double to) const;

  /// Adds references to every cluster that [offset, offset + length) touches; false, with a
  /// finding, when it ends behind the end of the file, or is too large for something that lies in
  /// something else.  `entry`: the L2 entry that leads there, if it is one.
  bool count_range(uint64_t offset, uint64_t length, Owner owner, uint64_t identity,
                   uint64_t weight, std::string_view what, const FoundEntry* entry = nullptr);

  FindingPlace place_of(HostCluster cluster) const;
  FindingPlace place_of(const FoundEntry& entry, FindingKind kind) const;

  template <class... Parts>
  void add_finding(Severity severity, const FindingPlace& place, const Parts&... parts) {
    if (result_.report.findings.size() < options_.findings_max) {
      store(severity, place, cat(parts...));
    }
  }
  template <class... Parts>
  void note(FindingKind kind, const Parts&... parts) {
    add_finding(Severity::note, {.kind = kind, .repair = RepairKind::none}, parts...);
  }
  /// References may be wrong or missing: a corruption, and nothing is freed.
  template <class... Parts>
  void damage(uint64_t weight, const FindingPlace& place, const Parts&... parts) {
    result_.damaged = true;
    result_.report.corruptions += weight;
    add_finding(Severity::corruption, place, parts...);
  }
  /// The same for what QEMU does not count.
  template <class... Parts>
  void damage_beyond_qemu(uint64_t weight, const FindingPlace& place, const Parts&... parts) {
    result_.report.corruptions_beyond_qemu += weight;
    damage(weight, place, parts...);
  }
  /// The same for an entry that leads nowhere.
  template <class... Parts>
  void lost(uint64_t weight, const FindingPlace& place, const Parts&... parts) {
    result_.lost_entries = true;
    damage(weight, place, parts...);
  }
  /// Both.
  template <class... Parts>
  void lost_beyond_qemu(uint64_t weight, const FindingPlace& place, const Parts&... parts) {
    result_.lost_entries = true;
    damage_beyond_qemu(weight, place, parts...);
  }
  /// What breaks the format but hides no reference; QEMU does not count it.
  template <class... Parts>
  void fault(const FindingPlace& place, const Parts&... parts) {
    ++result_.format_only;
    ++result_.report.corruptions;
    ++result_.report.corruptions_beyond_qemu;
    add_finding(Severity::corruption, place, parts...);
  }
  /// The refcount structures can only be written anew.
  template <class... Parts>
  void refcounts_unsound(FindingPlace place, const Parts&... parts) {
    result_.refcounts_unsound = true;
    ++result_.report.corruptions;
    place.repair = RepairKind::rewrite_counts;
    add_finding(Severity::corruption, place, parts...);
  }
  void unreadable(const Error& error);

 private:
  void store(Severity severity, const FindingPlace& place, std::string text);

  Device& file_;
  const CheckOptions& options_;
  ScanResult result_;
};

}  // namespace byre
