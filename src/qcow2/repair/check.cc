// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/check.h"

#include <string_view>
#include <unordered_set>
#include <utility>

#include "qcow2/check/metadata_scan.h"
#include "qcow2/repair/passes.h"

namespace byre {
namespace {

/// What was found first and is not found any more was repaired.
CheckReport merge(CheckReport first, CheckReport last, uint64_t findings_max) {
  std::unordered_set<std::string_view> left;
  for (const Finding& finding : last.findings) left.insert(finding.text);
  std::vector<Finding> findings;
  for (Finding& finding : first.findings) {
    if (left.contains(finding.text)) continue;
    finding.repaired = true;
    findings.push_back(std::move(finding));
  }
  for (Finding& finding : last.findings) {
    if (findings.size() < findings_max) findings.push_back(std::move(finding));
  }
  last.findings = std::move(findings);
  if (first.corruptions > last.corruptions) {
    last.corruptions_fixed = first.corruptions - last.corruptions;
  }
  if (first.leaks > last.leaks) last.leaks_fixed = first.leaks - last.leaks;
  return last;
}

Task<CheckReport> scan_and_repair(Device& file, CheckOptions options) {
  if (options.repair == Repair::none) {
    ScanResult found = co_await scan_metadata(file, options);
    found.report.orphans_kept = found.orphans_remembered;
    co_return std::move(found.report);
  }
  RepairPasses passes = co_await repair_in_passes(file, options, true);
  CheckReport report =
      merge(std::move(passes.first), passes.last->found.report, options.findings_max);
  if (passes.log.actions_count != 0 && passes.damaged) {
    report.in_doubt = std::move(passes.log.in_doubt);
  }
  report.orphans_kept = passes.last->orphans_kept();
  if (options.repair == Repair::leaks) report.orphans_kept = report.leaks;
  co_return std::move(report);
}

}  // namespace

Task<CheckReport> check_image(Device& file, CheckOptions options) {
  if (options.repair != Repair::none && !file.writable()) {
    co_return Error(Errc::read_only,
                    cat("repair ", quoted(file.name()), ": it was opened read-only"));
  }
  co_return co_await scan_and_repair(file, options).doing("check ", quoted(file.name()));
}

Task<CheckReport> rebuild_refcounts(Device& file) {
  const CheckOptions options{.repair = Repair::refcounts, .remember = Remember::if_room};
  co_return co_await scan_and_repair(file, options)
      .doing("rebuild the refcounts of ", quoted(file.name()));
}

}  // namespace byre
