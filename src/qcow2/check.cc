// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check.h"

#include <memory>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "qcow2/repair.h"
#include "qcow2/survey.h"

namespace byre {
namespace {

/// Each round can uncover what the next one repairs.
constexpr int kRoundsMax = 6;

struct Tally {
  uint64_t corruptions = 0;
  uint64_t leaks = 0;
  friend bool operator==(const Tally&, const Tally&) = default;
};
Tally tally_of(const CheckReport& report) { return {report.corruptions, report.leaks}; }

/// What was found first and is not found any more was repaired.
CheckReport merge(CheckReport first, CheckReport last, uint64_t findings_max) {
  std::unordered_set<std::string_view> left;
  for (const CheckReport::Finding& finding : last.findings) left.insert(finding.text);
  std::vector<CheckReport::Finding> findings;
  for (CheckReport::Finding& finding : first.findings) {
    if (left.contains(finding.text)) continue;
    finding.repaired = true;
    findings.push_back(std::move(finding));
  }
  for (CheckReport::Finding& finding : last.findings) {
    if (findings.size() < findings_max) findings.push_back(std::move(finding));
  }
  last.findings = std::move(findings);
  if (first.corruptions > last.corruptions) {
    last.corruptions_fixed = first.corruptions - last.corruptions;
  }
  if (first.leaks > last.leaks) last.leaks_fixed = first.leaks - last.leaks;
  return last;
}

Task<std::unique_ptr<Survey>> look(Device& file, const CheckOptions& options) {
  auto survey = std::make_unique<Survey>(file, options);
  co_await survey->run();
  co_return survey;
}

Task<CheckReport> survey_and_repair(Device& file, const CheckOptions& options) {
  std::unique_ptr<Survey> survey = co_await look(file, options);
  if (options.repair == Repair::none) co_return std::move(survey->report);

  CheckReport first = survey->report;
  bool damaged = false;
  bool try_entries = true;
  for (int round = 0; round < kRoundsMax; ++round) {
    const Tally before = tally_of(survey->report);
    const bool entries = try_entries && can_fix_entries(*survey, options.repair);
    if (entries) {
      co_await fix_entries(*survey);
    } else if (can_repair(*survey, options.repair)) {
      damaged |= survey->damaged;
      co_await repair_image(*survey, options.repair);
    } else {
      break;
    }
    survey = co_await look(file, options);
    // Two owners are one again when the refcounts moved away; what the other had lost is a leak.
    survey->damaged |= damaged;
    const bool changed = tally_of(survey->report) != before;
    if (!entries && !changed) break;
    try_entries = changed;
  }
  const bool sound = survey->report.corruptions == 0 && survey->report.check_errors == 0;
  if (sound) co_await clear_repaired_bits(file);
  co_return merge(std::move(first), std::move(survey->report), options.findings_max);
}

}  // namespace

Task<CheckReport> check_image(Device& file, CheckOptions options) {
  if (options.repair != Repair::none && !file.writable()) {
    co_return Error(Errc::read_only,
                    cat("repair ", quoted(file.name()), ": it was opened read-only"));
  }
  co_return co_await survey_and_repair(file, options).doing("check ", quoted(file.name()));
}

Task<CheckReport> rebuild_refcounts(Device& file) {
  const CheckOptions options{.repair = Repair::all};
  co_return co_await survey_and_repair(file, options)
      .doing("rebuild the refcounts of ", quoted(file.name()));
}

}  // namespace byre
