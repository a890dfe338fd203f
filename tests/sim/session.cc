// SPDX-License-Identifier: Apache-2.0
#include "session.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "run.h"

namespace byre {

namespace {

std::string_view name_of(Step::Kind kind) {
  switch (kind) {
    case Step::Kind::read:
      return "read";
    case Step::Kind::write:
      return "write";
    case Step::Kind::zero:
      return "zero";
    case Step::Kind::discard:
      return "discard";
    case Step::Kind::flush:
      return "flush";
    case Step::Kind::pause:
      return "pause";
    case Step::Kind::resize:
      return "resize";
    case Step::Kind::create_snapshot:
      return "snapshot";
    case Step::Kind::apply_snapshot:
      return "apply snapshot";
    case Step::Kind::delete_snapshot:
      return "delete snapshot";
    case Step::Kind::check:
      return "check";
    case Step::Kind::add_bitmap:
      return "add bitmap";
    case Step::Kind::remove_bitmap:
      return "remove bitmap";
    case Step::Kind::clear_bitmap:
      return "clear bitmap";
    case Step::Kind::toggle_bitmap:
      return "enable or disable bitmap";
    case Step::Kind::merge_bitmap:
      return "merge into bitmap";
    case Step::Kind::drain:
      return "drain";
    case Step::Kind::toggle_filter:
      return "put a filter above, or take it away";
    case Step::Kind::replace_backing:
      return "replace the backing file";
    case Step::Kind::toggle_snapshot:
      return "keep the disk as it is, or end that";
    case Step::Kind::read_snapshot:
      return "read what was kept";
  }
  return "unknown";
}

}  // namespace

std::string Step::text() const {
  if (kind == Kind::flush) return "flush";
  if (kind == Kind::check) return cat("check", may_unmap ? ", frees leaks" : "");
  if (kind == Kind::resize) {
    return fmt::format(
        "resize {:#x}{}", length,
        mode == Preallocation::off ? "" : cat(" preallocation ", static_cast<int>(mode)));
  }
  if (is_of_snapshot()) return cat(name_of(kind), " ", offset);
  if (kind == Kind::add_bitmap) return cat(name_of(kind), " of granularity ", length);
  if (is_of_bitmap()) return cat(name_of(kind), " ", offset);
  if (kind == Kind::read_snapshot)
    return fmt::format("{} {:#x}+{:#x}", name_of(kind), offset, length);
  if (is_of_graph()) return std::string(name_of(kind));
  if (kind == Kind::pause) return fmt::format("pause {} us", pause_ns / 1000);
  return fmt::format("{} {:#x}+{:#x}{}{}{}", name_of(kind), offset, length, fua ? " fua" : "",
                     may_unmap ? " may_unmap" : "", compressed ? " compressed" : "") +
         (own_entrance ? " by an entrance of its own" : "");
}

std::string History::text() const {
  std::string text = cat("seed ", seed, ": ", knobs.text(), "\n");
  for (size_t i = 0; i < incarnations.size(); ++i) {
    const Incarnation& incarnation = incarnations[i];
    const std::string_view end = incarnation.end == Incarnation::End::close  ? "close"
                                 : incarnation.end == Incarnation::End::kill ? "kill"
                                                                             : "power loss";
    text += cat(
        "incarnation ", i, " (", end,
        incarnation.end == Incarnation::End::close ? "" : cat(" after ", incarnation.ends_after),
        incarnation.faults.can_fail() ? ", faults" : "", ")\n");
    for (const Step& step : incarnation.warm_up) text += cat("  first: ", step.text(), "\n");
    if (incarnation.amend) {
      const AmendOptions& a = *incarnation.amend;
      text += "  amend:";
      if (a.version) text += cat(" version ", *a.version);
      if (a.refcount_bits) text += cat(" refcount_bits ", *a.refcount_bits);
      if (a.lazy_refcounts) text += cat(" lazy ", *a.lazy_refcounts ? "on" : "off");
      if (a.size) text += cat(" size ", hex(*a.size));
      if (a.backing_format) text += cat(" backing_fmt ", *a.backing_format);
      if (a.data_file_raw) text += " data_file_raw off";
      text += "\n";
    }
    for (size_t c = 0; c < incarnation.clients.size(); ++c) {
      for (const Step& step : incarnation.clients[c])
        text += cat("  client ", c, ": ", step.text(), "\n");
    }
  }
  return text;
}

RunReport run_history(const History& history, const RunOptions& options) {
  if (options.begun && !options.begun(history)) return {.failure = "not played"};
  return Run(history, options).run();
}

std::vector<Step> draw_steps(const Knobs& knobs, Prng& prng, size_t count) {
  const std::vector<Window> windows = windows_of(knobs);
  std::vector<Step> steps;
  while (steps.size() < count) {
    Step step;
    if (knobs.resizes && prng.one_in(10)) {
      const Window& window = windows[prng.below(windows.size())];
      step.kind = Step::Kind::resize;
      step.length = knobs.size;
      if (!prng.one_in(3)) {
        step.length = window.offset + prng.between(1, window.length / kSectorSize) * kSectorSize;
        if (prng.one_in(2)) step.length = round_up(step.length, knobs.cluster_size());
        step.length = std::min(step.length, knobs.size);
      }
      // Not where a disk of 256 MiB would get all its clusters.
      if (knobs.size <= 64 * knobs.cluster_size() && prng.one_in(2)) {
        step.mode = static_cast<Preallocation>(prng.between(1, 3));
      }
      steps.push_back(step);
      continue;
    }
    if (knobs.checks && prng.one_in(6)) {
      step.kind = Step::Kind::check;
      step.may_unmap = prng.one_in(4);
      steps.push_back(step);
      continue;
    }
    if (knobs.bitmaps && prng.one_in(6)) {
      const uint64_t which = prng.below(6);
      step.kind = which < 2    ? Step::Kind::add_bitmap
                  : which < 4  ? Step::Kind::clear_bitmap
                  : which == 4 ? Step::Kind::toggle_bitmap
                               : Step::Kind::remove_bitmap;
      step.offset = prng.below(1000);
      if (which == 5 && step.offset % 2 != 0) step.kind = Step::Kind::merge_bitmap;
      step.length = uint64_t{512} << prng.below(9);
      steps.push_back(step);
      continue;
    }
    if (knobs.copy_before_write && prng.one_in(3)) {
      const bool toggles = prng.one_in(4);
      step.kind = toggles ? Step::Kind::toggle_snapshot : Step::Kind::read_snapshot;
      step.may_unmap = prng.one_in(3);
      const Window& window = windows[prng.below(windows.size())];
      step.offset = window.offset + prng.below(window.length);
      step.length = prng.between(1, window.offset + window.length - step.offset);
      steps.push_back(step);
      continue;
    }
    if (knobs.graph && prng.one_in(5)) {
      const uint64_t which = prng.below(4);
      step.kind = which == 0   ? Step::Kind::drain
                  : which == 1 ? Step::Kind::toggle_filter
                               : Step::Kind::replace_backing;
      step.pause_ns = static_cast<int64_t>(prng.between(1, 1200)) * kMillisecond;
      steps.push_back(step);
      continue;
    }
    if (knobs.snapshots && prng.one_in(5)) {
      const uint64_t which = prng.below(4);
      step.kind = which < 2    ? Step::Kind::create_snapshot
                  : which == 2 ? Step::Kind::apply_snapshot
                               : Step::Kind::delete_snapshot;
      step.offset = prng.below(1000);
      steps.push_back(step);
      continue;
    }
    const uint64_t what = prng.below(16);
    if (what == 15) {
      step.kind = Step::Kind::pause;
      step.pause_ns = static_cast<int64_t>(prng.between(1, 40)) * kMillisecond / 4;
      steps.push_back(step);
      continue;
    }
    if (what >= 13) {
      step.kind = Step::Kind::flush;
      steps.push_back(step);
      continue;
    }
    step.kind = what < 6    ? Step::Kind::write
                : what < 8  ? Step::Kind::read
                : what < 11 ? Step::Kind::discard
                            : Step::Kind::zero;
    step.fua = prng.one_in(8);
    step.may_unmap = prng.one_in(2);
    if (knobs.graph) step.own_entrance = prng.one_in(4);
    const Window& window = windows[prng.below(windows.size())];
    const uint64_t cluster = knobs.cluster_size();
    const uint64_t end = window.offset + window.length;
    if (prng.one_in(2)) {  // Whole clusters.
      const uint64_t first = prng.below(div_ceil(window.length, cluster));
      step.offset =
          std::min(round_down(window.offset, cluster) + first * cluster, end - kSectorSize);
      step.offset = std::max(step.offset, window.offset);
      step.length = std::min(prng.between(1, 3) * cluster, end - step.offset);
    } else {
      step.offset = window.offset + prng.below(window.length / kSectorSize) * kSectorSize;
      const uint64_t longest = prng.one_in(2) ? cluster : 3 * cluster;
      step.length = prng.between(1, std::max<uint64_t>(longest / kSectorSize, 1)) * kSectorSize;
      step.length = std::min(step.length, end - step.offset);
    }
    // Streams are made of whole clusters.
    const bool ends_whole =
        (step.offset + step.length) % cluster == 0 || step.offset + step.length == knobs.size;
    const bool streams = knobs.data_file == Knobs::DataFile::none;
    step.compressed = step.kind == Step::Kind::write && streams && step.offset % cluster == 0 &&
                      ends_whole && prng.one_in(2);
    steps.push_back(step);
  }
  return steps;
}

}  // namespace byre
