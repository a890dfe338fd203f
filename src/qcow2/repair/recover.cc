// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/recover.h"

#include <utility>

#include "block/overlay.h"
#include "qcow2/repair/check.h"
#include "qcow2/repair/keep.h"
#include "qcow2/repair/passes.h"

namespace byre {
namespace {

constexpr size_t kOrphansMax = 10000;

std::string reason_against(const CheckReport& left) {
  if (left.check_errors != 0) {
    for (const Finding& finding : left.findings) {
      if (finding.kind == FindingKind::unreadable) return finding.text;
    }
    return "some of its metadata cannot be read";
  }
  for (const Finding& finding : left.findings) {
    if (finding.severity == Severity::corruption) {
      return left.corruptions == 1
                 ? finding.text
                 : cat(left.corruptions, " errors would be left; the first: ", finding.text);
    }
  }
  return cat(left.corruptions, " corruptions would be left");
}

Task<Recovery> carry_out(Device& file, const RecoverOptions& options, bool for_good) {
  const CheckOptions check{.repair = Repair::all,
                           .progress = options.progress,
                           .attribute = true,
                           .streams = true,
                           .decode = options.decode,
                           .keep_orphans = true,
                           .remember = options.free_orphans      ? Remember::never
                                       : options.save_orphans_to ? Remember::if_room
                                                                 : Remember::always,
                           .accept_loss = options.accept_loss};
  RepairPasses passes = co_await repair_in_passes(file, check, for_good);
  Recovery recovery;
  recovery.found = std::move(passes.first);
  recovery.log = std::move(passes.log);
  if (!passes.sound) {
    recovery.refused = !passes.not_given_up.empty()   ? std::move(passes.not_given_up)
                       : !passes.not_unshared.empty() ? std::move(passes.not_unshared)
                                                      : reason_against(passes.last->found.report);
    recovery.left = passes.last->found.report;
    co_return std::move(recovery);
  }

  RepairState& state = *passes.last;
  recovery.orphans = co_await catalogue_orphans(file, state.found, kOrphansMax);
  recovery.orphan_clusters = state.found.orphan_clusters();
  if (for_good && options.save_orphans_to && recovery.orphan_clusters != 0) {
    recovery.orphans_saved = co_await save_orphans(file, state.found, *options.save_orphans_to);
  }
  const bool wanted = options.free_orphans || options.save_orphans_to;
  state.keep_orphans = passes.damaged && !wanted;
  // Before they are freed: from here on they are leaks like any other.
  state.promise = false;
  if (wanted && !state.kept.empty()) co_await remember_kept(state, {});
  if (can_repair(state, Repair::leaks)) {
    co_await repair_image(state, Repair::leaks, recovery.log);
    recovery.orphans_freed = recovery.orphan_clusters != 0 && state.orphans_kept() == 0;
    recovery.left = co_await check_image(file, {});
  } else {
    recovery.left = state.found.report;
  }
  co_await file.flush(IoTag::flush);
  co_return std::move(recovery);
}

}  // namespace

Task<Recovery> plan_recovery(Device& file, RecoverOptions options) {
  OverlayDevice overlay(file);
  Result<Recovery> planned = co_await carry_out(overlay, options, false).result();
  if (planned) {
    planned->needed = overlay.bytes_written() != 0;
    co_return *std::move(planned);
  }
  const Errc code = planned.error().code();
  if (code != Errc::unsupported && code != Errc::no_space && code != Errc::corrupt) {
    co_await fail(std::move(planned).error());
  }
  // What a repair would run into is a reason, not a failure.
  Recovery recovery;
  recovery.needed = true;
  recovery.refused = planned.error().message();
  recovery.found = co_await check_image(file, {.attribute = true});
  recovery.left = recovery.found;
  co_return std::move(recovery);
}

Task<Recovery> apply_recovery(Device& file, RecoverOptions options) {
  Recovery done = co_await carry_out(file, options, true);
  done.needed = true;
  co_return std::move(done);
}

Task<Recovery> recover(Device& file, RecoverOptions options) {
  Recovery planned = co_await plan_recovery(file, options);
  if (!planned.refused.empty() || !planned.needed) co_return std::move(planned);
  co_return co_await apply_recovery(file, std::move(options));
}

}  // namespace byre
