// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/passes.h"

#include <algorithm>
#include <memory>
#include <tuple>
#include <utility>

#include "qcow2/check/metadata_scan.h"
#include "qcow2/repair/keep.h"
#include "qcow2/repair/loss.h"
#include "qcow2/repair/lost_l1.h"
#include "qcow2/repair/structure_repair.h"
#include "qcow2/repair/unshare.h"

namespace byre {
namespace {

/// Each pass can uncover what the next one repairs.
constexpr int kPassesMax = 12;
/// With losses accepted there are more kinds of things to do.
constexpr int kPassesMaxWithLosses = 32;
constexpr int kLastResorts = 6;

struct Tally {
  uint64_t corruptions = 0;
  uint64_t leaks = 0;
  friend bool operator==(const Tally&, const Tally&) = default;
};
Tally tally_of(const CheckReport& report) { return {report.corruptions, report.leaks}; }

bool is_doubtful(FindingKind kind) {
  switch (kind) {
    case FindingKind::behind_end:
    case FindingKind::misaligned:
    case FindingKind::reserved_bits:
    case FindingKind::subclusters:
    case FindingKind::two_owners:
    case FindingKind::shared_table:
    case FindingKind::overlapping_streams:
    case FindingKind::bad_stream:
      return true;
    default:
      return false;
  }
}

/// Puts together what lies side by side and is seen alike.
void normalise(std::vector<Finding::Guest>& guests) {
  const auto view = [](const Finding::Guest& guest) {
    return std::tie(guest.active, guest.snapshots);
  };
  for (Finding::Guest& guest : guests) std::sort(guest.snapshots.begin(), guest.snapshots.end());
  std::sort(guests.begin(), guests.end(), [&](const auto& a, const auto& b) {
    if (view(a) != view(b)) return view(b) < view(a);
    return a.offset < b.offset;
  });
  size_t kept = 0;
  for (Finding::Guest& guest : guests) {
    if (!guest.active && guest.snapshots.empty()) continue;
    if (kept != 0) {
      Finding::Guest& last = guests[kept - 1];
      if (view(last) == view(guest) && guest.offset <= last.offset + last.length) {
        last.length = std::max(last.length, guest.offset + guest.length - last.offset);
        continue;
      }
    }
    if (&guests[kept] != &guest) guests[kept] = std::move(guest);
    ++kept;
  }
  guests.resize(kept);
}

Task<std::unique_ptr<RepairState>> scan_for_repair(Device& file, const CheckOptions& options) {
  ScanResult found = co_await scan_metadata(file, options);
  co_return std::make_unique<RepairState>(file, options, std::move(found));
}

/// The tables of snapshots and bitmaps.
bool can_repair_structures(const RepairState& state, Repair repair) {
  return repair == Repair::all && state.found.report.check_errors == 0 &&
         !state.refcounts_unsound && !state.found.snapshots_lost &&
         (state.found.repairable_snapshots || state.found.repairable_bitmaps ||
          state.found.repairable_header);
}
Task<bool> repair_structures(RepairState& state, RepairLog& log) {
  if (state.found.repairable_snapshots &&
      co_await repair_snapshots(state, log, RepairBroken::useless))
    co_return true;
  if (state.found.repairable_bitmaps && co_await repair_bitmaps(state, log, RepairBroken::useless))
    co_return true;
  if (!state.found.repairable_header) co_return false;
  co_return co_await repair_header(state, log);
}

/// What leads nowhere: the L1 table, and what is in it.  A new L1 table comes last, when nothing
/// keeps the file from growing.
bool can_give_up(const RepairState& state) {
  return can_give_up_entries(state) || has_lost_l1(state);
}
Task<std::string> give_up(RepairState& state, RepairLog& log) {
  if (!state.found.l1_behind_end && can_give_up_entries(state)) {
    co_return co_await give_up_entries(state, log, false);
  }
  co_return co_await give_up_l1(state, log);
}

/// When nothing else is left to do: what shares a cluster with other metadata, or leads nowhere
/// as a whole.  One kind of it.
Task<std::string> give_up_tables(RepairState& state, RepairLog& log) {
  if (has_broken_snapshots(state) && co_await repair_snapshots(state, log, RepairBroken::broken))
    co_return std::string();
  if (has_broken_bitmaps(state) && co_await repair_bitmaps(state, log, RepairBroken::broken))
    co_return std::string();
  co_return co_await give_up_entries(state, log, true);
}

/// What is tried next, and whether it is worth trying.
class Repairing {
 public:
  Repairing(Device& file, const CheckOptions& options, bool copy_data)
      : file_(file),
        options_(options),
        copy_data_(copy_data),
        promises_(options.remember != Remember::never && options.repair >= Repair::refcounts),
        giving_up_(options.accept_loss && options.repair == Repair::all),
        last_resorts_(giving_up_ ? kLastResorts : 0) {}

  Task<RepairPasses> run() {
    state_ = co_await scan_for_repair(file_, options_);
    passes_.first = state_->found.report;
    state_->keep_orphans = options_.keep_orphans;
    collect_doubts();
    const int passes_max = options_.accept_loss ? kPassesMaxWithLosses : kPassesMax;
    for (int pass = 0; pass < passes_max; ++pass) {
      const Tally before = tally_of(state_->found.report);
      state_->promise = promises_ && (passes_.damaged || state_->damaged);
      const Step step = co_await take_step();
      if (step == Step::none && goes_further()) continue;
      if (step == Step::none) break;
      state_ = co_await scan_for_repair(file_, options_);
      // Two owners are one again when the refcounts moved away; what the other had lost is a leak.
      state_->keep_orphans = options_.keep_orphans || passes_.damaged;
      const bool changed = tally_of(state_->found.report) != before;
      if (!changed && step == Step::final && !goes_further()) break;
      if (changed) try_entries_ = true;
    }
    if (promises_ && state_->kept == KeptClusters::all()) co_await keep_orphans();
    co_await end();
    co_return std::move(passes_);
  }

 private:
  /// `final`: when it has changed nothing, nothing will.
  enum class Step : uint8_t { none, some, final };

  void collect_doubts() {
    for (const Finding& finding : state_->found.report.findings) {
      if (!is_doubtful(finding.kind)) continue;
      passes_.log.in_doubt.insert(passes_.log.in_doubt.end(), finding.guests.begin(),
                                  finding.guests.end());
    }
  }

  bool goes_further() {
    const bool possible =
        state_->found.report.corruptions != 0 && state_->found.report.check_errors == 0;
    last_resort_ = possible && last_resorts_ > 0;
    last_resorts_ -= last_resort_;
    return last_resort_;
  }

  Task<Step> take_step() {
    if (last_resort_) {
      last_resort_ = false;
      passes_.damaged |= state_->damaged;
      passes_.not_given_up = co_await give_up_tables(*state_, passes_.log);
      unsharing_ = repairing_ = giving_up_ = true;
      co_return Step::final;
    }
    if (try_entries_ && can_fix_entries(*state_, options_.repair)) {
      co_await repair_entries(*state_, passes_.log);
      try_entries_ = false;
      co_return Step::some;
    }
    const uint64_t actions = passes_.log.actions_count;
    if (giving_up_ && can_give_up(*state_)) {
      passes_.damaged |= state_->damaged;
      passes_.not_given_up = co_await give_up(*state_, passes_.log);
      giving_up_ = passes_.log.actions_count != actions;
      unsharing_ |= giving_up_;
      co_return Step::some;
    }
    if (unsharing_ && can_unshare(*state_, options_.repair)) {
      passes_.damaged |= state_->damaged;
      passes_.not_unshared = co_await unshare(*state_, passes_.log, copy_data_);
      unsharing_ = passes_.log.actions_count != actions;
      co_return Step::some;
    }
    if (repairing_ && can_repair_structures(*state_, options_.repair)) {
      passes_.damaged |= state_->damaged;
      repairing_ = co_await repair_structures(*state_, passes_.log);
      co_return Step::some;
    }
    if (!can_repair(*state_, options_.repair)) co_return Step::none;
    passes_.damaged |= state_->damaged;
    co_await repair_image(*state_, options_.repair, passes_.log);
    co_return Step::final;
  }

  Task<void> keep_orphans() {
    co_await remember_orphans(*state_);
    const uint64_t count = state_->found.orphan_clusters();
    if (count == 0) co_return;
    passes_.log.add(
        {.kind = RepairAction::Kind::keep,
         .clusters = count,
         .text = cat("note in the header that ", count,
                     count == 1 ? " cluster stays, which may be the only copy of something"
                                : " clusters stay, which may be the only copy of something")});
  }

  Task<void> end() {
    const CheckReport& report = state_->found.report;
    passes_.sound = report.corruptions == 0 && report.check_errors == 0;
    const bool counted = options_.repair == Repair::refcounts && report.check_errors == 0 &&
                         report.corruptions == state_->found.format_only;
    if (passes_.sound || counted) co_await clear_repaired_bits(file_);
    normalise(passes_.log.in_doubt);
    normalise(passes_.log.lost);
    passes_.last = std::move(state_);
  }

  Device& file_;
  const CheckOptions& options_;
  const bool copy_data_;
  const bool promises_;
  std::unique_ptr<RepairState> state_;
  RepairPasses passes_;
  bool unsharing_ = true;
  bool try_entries_ = true;
  bool repairing_ = true;
  bool giving_up_;
  int last_resorts_;
  bool last_resort_ = false;
};

}  // namespace

Task<RepairPasses> repair_in_passes(Device& file, const CheckOptions& options, bool copy_data) {
  Repairing repairing(file, options, copy_data);
  co_return co_await repairing.run();
}

}  // namespace byre
