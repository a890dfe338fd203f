// SPDX-License-Identifier: Apache-2.0
#include "scenarios.h"

#include <algorithm>
#include <utility>

#include "sim/chooser.h"

namespace byre {

namespace {

constexpr uint64_t kDrawKnobs = 11;
constexpr uint64_t kDrawSteps = 12;
constexpr uint64_t kDrawFaults = 13;

Prng prng_for(uint64_t seed, uint64_t purpose) { return Prng(seed * 64 + purpose); }

/// Adds a run to a verdict; false when it failed.
bool add(Verdict& verdict, const History& history, RunReport report) {
  ++verdict.histories;
  verdict.hash = Prng(verdict.hash ^ report.hash).next();
  verdict.requests += report.requests;
  verdict.request_errors += report.request_errors;
  verdict.deliveries += report.deliveries;
  verdict.cuts += report.cuts;
  if (report.failure.empty()) return true;
  verdict.failure = std::move(report.failure);
  verdict.history = history;
  verdict.disks = std::move(report.disks);
  return false;
}

/// How many requests an incarnation may have with these clusters, and how many cuts.
size_t draw_count(const Knobs& knobs, Prng& prng, size_t most) {
  return prng.between(1, knobs.cluster_bits == 21 ? std::max<size_t>(most / 4, 1) : most);
}

Incarnation draw_life(const Knobs& knobs, Prng& prng, size_t clients, size_t most) {
  Incarnation incarnation{.seed = prng.next()};
  for (size_t c = 0; c < clients; ++c) {
    incarnation.clients.push_back(draw_steps(knobs, prng, draw_count(knobs, prng, most)));
  }
  return incarnation;
}

// --- T2: the random mix -------------------------------------------------------------------------

Verdict play_mix(uint64_t seed, const RunOptions& options) {
  Prng knob_prng = prng_for(seed, kDrawKnobs);
  Prng prng = prng_for(seed, kDrawSteps);
  History history{.seed = seed, .knobs = Knobs::draw(knob_prng)};
  const uint64_t incarnations = prng.between(1, 3);
  for (uint64_t i = 0; i < incarnations; ++i) {
    Incarnation incarnation = draw_life(history.knobs, prng, prng.between(1, 6), 14);
    const uint64_t way = prng.below(4);
    incarnation.end = way < 2    ? Incarnation::End::close
                      : way == 2 ? Incarnation::End::kill
                                 : Incarnation::End::power_cut;
    incarnation.ends_after = prng.between(1, 250);
    incarnation.cut_one_in = prng.between(5, 60);
    incarnation.cuts_max = history.knobs.cluster_bits == 21   ? 2
                           : history.knobs.cluster_bits == 16 ? 6
                                                              : 12;
    incarnation.faults.rates = prng.one_in(2) ? FaultPlan::harmless() : FaultPlan::Rates{};
    history.incarnations.push_back(std::move(incarnation));
  }
  Verdict verdict;
  add(verdict, history, run_history(history, options));
  return verdict;
}

/// The graph above and below a disk changes while it is used.
Verdict play_graph(uint64_t seed, const RunOptions& options) {
  Prng knob_prng = prng_for(seed, kDrawKnobs);
  Prng prng = prng_for(seed, kDrawSteps);
  Prng fault_prng = prng_for(seed, kDrawFaults);
  History history{.seed = seed, .knobs = Knobs::draw(knob_prng)};
  Knobs& knobs = history.knobs;
  knobs.graph = true;
  if (knobs.data_file == Knobs::DataFile::raw) knobs.data_file = Knobs::DataFile::plain;
  if (knobs.backing == Knobs::Backing::none && prng.one_in(4) == 0) {
    knobs.backing = Knobs::Backing::raw;
    knobs.backing_size = knobs.size;
  }
  knobs.checks = prng.one_in(3);
  if (prng.one_in(3)) knobs.scan = ImageOptions::Scan::beside_requests;
  const uint64_t incarnations = prng.between(1, 3);
  for (uint64_t i = 0; i < incarnations; ++i) {
    Incarnation incarnation = draw_life(knobs, prng, prng.between(2, 6), 14);
    const uint64_t way = prng.below(4);
    incarnation.end = way < 2    ? Incarnation::End::close
                      : way == 2 ? Incarnation::End::kill
                                 : Incarnation::End::power_cut;
    incarnation.ends_after = prng.between(1, 250);
    incarnation.cut_one_in = prng.between(3, 40);
    incarnation.cuts_max = knobs.cluster_bits == 21 ? 2 : knobs.cluster_bits == 16 ? 6 : 12;
    if (fault_prng.one_in(5)) incarnation.faults = FaultPlan::draw(fault_prng);
    history.incarnations.push_back(std::move(incarnation));
  }
  Verdict verdict;
  add(verdict, history, run_history(history, options));
  return verdict;
}

/// The disk is kept as it is at some moment, and read so, while it is used.
Verdict play_copy_before_write(uint64_t seed, const RunOptions& options) {
  Prng knob_prng = prng_for(seed, kDrawKnobs);
  Prng prng = prng_for(seed, kDrawSteps);
  History history{.seed = seed, .knobs = Knobs::draw(knob_prng)};
  Knobs& knobs = history.knobs;
  knobs.graph = true;
  knobs.copy_before_write = true;
  knobs.resizes = false;  // Of the image itself: not through the filter.
  if (knobs.data_file == Knobs::DataFile::raw) knobs.data_file = Knobs::DataFile::plain;
  if (knobs.contents == 0) knobs.contents = 2;
  const uint64_t incarnations = prng.between(1, 2);
  for (uint64_t i = 0; i < incarnations; ++i) {
    Incarnation incarnation = draw_life(knobs, prng, prng.between(3, 8), 16);
    // Most histories end well: each kept disk is then read whole.
    if (prng.one_in(4)) incarnation.end = Incarnation::End::power_cut;
    incarnation.ends_after = prng.between(50, 400);
    history.incarnations.push_back(std::move(incarnation));
  }
  Verdict verdict;
  add(verdict, history, run_history(history, options));
  return verdict;
}

/// Images that other programs have damaged (V).
Verdict play_damaged(uint64_t seed, const RunOptions& options) {
  Prng knob_prng = prng_for(seed, kDrawKnobs);
  Prng prng = prng_for(seed, kDrawSteps);
  Prng fault_prng = prng_for(seed, kDrawFaults);
  History history{.seed = seed, .knobs = Knobs::draw(knob_prng)};
  Knobs& knobs = history.knobs;
  knobs.data_file = Knobs::DataFile::none;
  knobs.lazy_refcounts = false;
  knobs.damaged = true;
  knobs.clusters_free = UINT64_MAX;
  if (knobs.contents == 0) knobs.contents = 2;
  // An alias may change until the scan has ended.
  const bool beside = prng.one_in(3);
  if (beside) knobs.scan = ImageOptions::Scan::beside_requests;
  knobs.damage_aliases = !beside;
  uint64_t incarnations = prng.between(1, 3);
  // Damage to an image that has snapshots and bitmaps by then.
  if (knobs.version >= 3 && prng.one_in(3)) {
    knobs.snapshots = true;
    knobs.resizes = false;
    knobs.bitmaps = prng.one_in(2);
    knobs.damage_aliases = false;
    knobs.damaged_before = 1;
    ++incarnations;
  }
  for (uint64_t i = 0; i < incarnations; ++i) {
    Incarnation incarnation = draw_life(knobs, prng, prng.between(1, 5), 12);
    const uint64_t way = prng.below(4);
    incarnation.end = way < 2    ? Incarnation::End::close
                      : way == 2 ? Incarnation::End::kill
                                 : Incarnation::End::power_cut;
    if (i < knobs.damaged_before) incarnation.end = Incarnation::End::close;
    incarnation.ends_after = prng.between(1, 250);
    incarnation.cut_one_in = prng.between(3, 40);
    incarnation.cuts_max = knobs.cluster_bits == 21 ? 2 : knobs.cluster_bits == 16 ? 6 : 12;
    if (i >= knobs.damaged_before && fault_prng.one_in(4))
      incarnation.faults = FaultPlan::draw(fault_prng);
    history.incarnations.push_back(std::move(incarnation));
  }
  Verdict verdict;
  add(verdict, history, run_history(history, options));
  return verdict;
}

/// The same with errors of the disk.
Verdict play_faults(uint64_t seed, const RunOptions& options) {
  Prng knob_prng = prng_for(seed, kDrawKnobs);
  Prng prng = prng_for(seed, kDrawSteps);
  Prng fault_prng = prng_for(seed, kDrawFaults);
  History history{.seed = seed, .knobs = Knobs::draw(knob_prng)};
  for (uint64_t i = 0; i < 3; ++i) {
    Incarnation incarnation = draw_life(history.knobs, prng, prng.between(1, 4), 12);
    const uint64_t way = prng.below(4);
    incarnation.end = way < 2    ? Incarnation::End::close
                      : way == 2 ? Incarnation::End::kill
                                 : Incarnation::End::power_cut;
    incarnation.ends_after = prng.between(1, 250);
    incarnation.cut_one_in = prng.between(10, 80);
    incarnation.cuts_max = history.knobs.cluster_bits == 21 ? 1 : 4;
    incarnation.faults = FaultPlan::draw(fault_prng);
    if (fault_prng.one_in(4)) {
      incarnation.room = fault_prng.between(1, 32) * 4096;
    } else if (fault_prng.one_in(4)) {
      incarnation.faults.no_space(fault_prng.between(1, 30), fault_prng.between(1, 5));
    }
    history.incarnations.push_back(std::move(incarnation));
  }
  Verdict verdict;
  add(verdict, history, run_history(history, options));
  return verdict;
}

/// Data writes that fail and land all the same, some time later (H6).
Verdict play_late_landing(uint64_t seed, const RunOptions& options) {
  Prng knob_prng = prng_for(seed, kDrawKnobs);
  Prng prng = prng_for(seed, kDrawSteps);
  History history{.seed = seed, .knobs = Knobs::draw(knob_prng)};
  Knobs& knobs = history.knobs;  // Where session.cc lets writes land late.
  knobs.version = 2;
  knobs.refcount_order = 4;
  knobs.extended_l2 = knobs.lazy_refcounts = false;
  knobs.data_file = Knobs::DataFile::none;
  knobs.compression = Compression::deflate;
  knobs.block_size = 1;
  Incarnation incarnation = draw_life(knobs, prng, prng.between(2, 5), 12);
  incarnation.faults.rates = {.write_error = prng.between(4, 20), .always_late = true};
  incarnation.cut_one_in = prng.between(10, 80);
  incarnation.cuts_max = knobs.cluster_bits == 21 ? 1 : 4;
  history.incarnations.push_back(std::move(incarnation));
  Verdict verdict;
  add(verdict, history, run_history(history, options));
  return verdict;
}

// --- T5: a fault at the k-th operation of a short trace, for every k
// ------------------------------

History short_history(uint64_t seed) {
  Prng knob_prng = prng_for(seed, kDrawKnobs);
  Prng prng = prng_for(seed, kDrawSteps);
  History history{.seed = seed, .knobs = Knobs::draw(knob_prng)};
  if (history.knobs.cluster_bits == 21) history.knobs.table_cache_size = 8 * KiB;
  history.knobs.snapshots = prng.one_in(3);
  if (history.knobs.snapshots) history.knobs.data_file = Knobs::DataFile::none;
  Incarnation incarnation = draw_life(history.knobs, prng, prng.between(1, 2), 5);
  incarnation.clients[0].push_back({.kind = Step::Kind::flush});
  const std::vector<Step> more = draw_steps(history.knobs, prng, 3);
  incarnation.clients[0].insert(incarnation.clients[0].end(), more.begin(), more.end());
  history.incarnations.push_back(std::move(incarnation));
  history.incarnations.push_back(draw_life(history.knobs, prng, 1, 4));
  return history;
}

Verdict play_kth_fault(uint64_t seed, const RunOptions& options) {
  const History base = short_history(seed);
  Verdict verdict;
  RunReport plain = run_history(base, options);
  FaultPlan counts = plain.faults;
  if (!add(verdict, base, std::move(plain))) return verdict;
  Prng prng = prng_for(seed, kDrawFaults);
  for (const Op::Kind kind : {Op::Kind::write, Op::Kind::sync, Op::Kind::punch, Op::Kind::allocate,
                              Op::Kind::truncate, Op::Kind::read}) {
    for (uint64_t k = 1; k <= counts.count(kind); ++k) {
      History history = base;
      Incarnation& incarnation = history.incarnations[0];
      incarnation.faults.add({.kind = kind,
                              .first = k,
                              .last = prng.one_in(4) ? k + prng.below(4) : k,
                              .fault = {.kind = Fault::Kind::error,
                                        .applied = static_cast<Fault::Applied>(prng.below(4)),
                                        .drops = prng.one_in(2),
                                        .evicts = prng.one_in(2)}});
      const uint64_t way = prng.below(4);
      incarnation.end = way == 0 ? Incarnation::End::power_cut : Incarnation::End::close;
      incarnation.ends_after = prng.between(5, 60);
      incarnation.cut_one_in = 20;
      incarnation.cuts_max = 2;
      if (!add(verdict, history, run_history(history, options))) return verdict;
    }
  }
  return verdict;
}

/// ENOSPC at the k-th operation that needs blocks, for every k; once, or from there on.
Verdict play_no_space(uint64_t seed, const RunOptions& options) {
  const History base = short_history(seed);
  Verdict verdict;
  RunReport plain = run_history(base, options);
  const uint64_t allocations = plain.faults.allocations();
  if (!add(verdict, base, std::move(plain))) return verdict;
  Prng prng = prng_for(seed, kDrawFaults);
  for (uint64_t k = 1; k <= allocations; ++k) {
    History history = base;
    Incarnation& incarnation = history.incarnations[0];
    incarnation.faults.no_space(k, prng.one_in(2) ? prng.between(1, 3) : UINT64_MAX);
    incarnation.end = prng.one_in(4) ? Incarnation::End::power_cut : Incarnation::End::close;
    incarnation.ends_after = prng.between(5, 60);
    incarnation.cut_one_in = 20;
    incarnation.cuts_max = 2;
    if (!add(verdict, history, run_history(history, options))) return verdict;
  }
  return verdict;
}

// --- T7: late completions -----------------------------------------------------------------------

Verdict play_late(uint64_t seed, const RunOptions& options) {
  Prng knob_prng = prng_for(seed, kDrawKnobs);
  Prng prng = prng_for(seed, kDrawSteps);
  History history{.seed = seed, .knobs = Knobs::draw(knob_prng)};
  history.knobs.delays.late_one_in = prng.between(2, 8);
  Incarnation incarnation = draw_life(history.knobs, prng, prng.between(2, 6), 8);
  incarnation.cut_one_in = prng.between(5, 40);
  incarnation.cuts_max = history.knobs.cluster_bits == 21 ? 2 : 6;
  history.incarnations.push_back(std::move(incarnation));
  Verdict verdict;
  add(verdict, history, run_history(history, options));
  return verdict;
}

// --- T3: snapshots ------------------------------------------------------------------------------

/// Snapshots are made, applied and deleted among the requests of several clients (S1, C5): cuts,
/// killed processes, and in every third history errors of the disk or a full one.
Verdict play_snapshots(uint64_t seed, const RunOptions& options) {
  Prng knob_prng = prng_for(seed, kDrawKnobs);
  Prng prng = prng_for(seed, kDrawSteps);
  Prng fault_prng = prng_for(seed, kDrawFaults);
  History history{.seed = seed, .knobs = Knobs::draw(knob_prng)};
  history.knobs.snapshots = true;
  history.knobs.data_file = Knobs::DataFile::none;  // Its clusters cannot be shared.
  const bool faults = prng.one_in(3);
  // A write that a change of the snapshots did not wait for lands after it.
  if (prng.one_in(3)) history.knobs.delays.late_one_in = prng.between(2, 8);
  const uint64_t incarnations = prng.between(2, 4);
  for (uint64_t i = 0; i < incarnations; ++i) {
    Incarnation incarnation = draw_life(history.knobs, prng, prng.between(1, 4), 14);
    const uint64_t way = prng.below(4);
    incarnation.end = way < 2    ? Incarnation::End::close
                      : way == 2 ? Incarnation::End::kill
                                 : Incarnation::End::power_cut;
    incarnation.ends_after = prng.between(1, 250);
    incarnation.cut_one_in = prng.between(4, 40);
    incarnation.cuts_max = history.knobs.cluster_bits == 21   ? 1
                           : history.knobs.cluster_bits == 16 ? 4
                                                              : 10;
    incarnation.faults.rates = prng.one_in(2) ? FaultPlan::harmless() : FaultPlan::Rates{};
    if (faults) {
      incarnation.faults = FaultPlan::draw(fault_prng);
      if (fault_prng.one_in(4)) {
        incarnation.room = fault_prng.between(1, 32) * 4096;
      } else if (fault_prng.one_in(4)) {
        incarnation.faults.no_space(fault_prng.between(1, 30), fault_prng.between(1, 5));
      }
    }
    history.incarnations.push_back(std::move(incarnation));
  }
  Verdict verdict;
  add(verdict, history, run_history(history, options));
  return verdict;
}

// --- T7: reads that outlast what goes on ---------------------------------------------------------

/// Reads land after everything else, whatever becomes of the clusters that they go to (H1, H3):
/// what a discard, a stream or a change of the snapshots releases has other owners by then, if it
/// was not kept for them.  There is little room, so that it is used again at once.
Verdict play_readers(uint64_t seed, const RunOptions& options) {
  Prng knob_prng = prng_for(seed, kDrawKnobs);
  Prng prng = prng_for(seed, kDrawSteps);
  History history{.seed = seed, .knobs = Knobs::draw(knob_prng)};
  Knobs& knobs = history.knobs;
  if (prng.one_in(2)) knobs = Knobs::tiny(prng.one_in(2) ? 9 : 12);
  knobs.data_file = Knobs::DataFile::none;
  knobs.resizes = false;
  knobs.snapshots = prng.one_in(2);
  if (knobs.geometry().refcount_block_entries() <= 20'000) knobs.clusters_free = prng.between(0, 4);
  if (knobs.contents == 0) knobs.contents = 1;
  knobs.delays = {.late_one_in = prng.between(2, 6), .late_reads_only = true};
  using Kind = Step::Kind;
  const Window& window = knobs.windows[0];
  Incarnation incarnation{.seed = prng.next()};
  if (knobs.snapshots) {  // The disk has clusters of its own again.
    incarnation.warm_up = {{.kind = Kind::create_snapshot},
                           {.kind = Kind::write, .offset = window.offset, .length = window.length},
                           {.kind = Kind::flush},
                           {.kind = Kind::flush}};
  }
  const uint64_t readers = prng.between(1, 3);
  for (uint64_t i = 0; i < readers; ++i) {
    std::vector<Step>& steps = incarnation.clients.emplace_back();
    while (steps.size() < 4) {
      for (Step& step : draw_steps(knobs, prng, 8)) {
        if (step.kind == Kind::read) steps.push_back(step);
      }
    }
  }
  const uint64_t others = prng.between(1, 2);
  for (uint64_t i = 0; i < others; ++i) {
    std::vector<Step> steps = draw_steps(knobs, prng, draw_count(knobs, prng, 12));
    if (knobs.snapshots && i == 0) {
      const Step change{.kind = prng.one_in(3) ? Kind::delete_snapshot : Kind::apply_snapshot};
      steps.insert(steps.begin(), change);
    }
    std::erase_if(steps, [](const Step& step) { return step.kind == Kind::read; });
    incarnation.clients.push_back(std::move(steps));
  }
  incarnation.cut_one_in = 40;
  incarnation.cuts_max = 2;
  history.incarnations.push_back(std::move(incarnation));
  Verdict verdict;
  add(verdict, history, run_history(history, options));
  return verdict;
}

// --- T8: checks of a disk in use ----------------------------------------------------------------

Verdict play_online(uint64_t seed, const RunOptions& options) {
  Prng knob_prng = prng_for(seed, kDrawKnobs);
  Prng prng = prng_for(seed, kDrawSteps);
  Prng fault_prng = prng_for(seed, kDrawFaults);
  History history{.seed = seed, .knobs = Knobs::draw(knob_prng)};
  history.knobs.checks = true;
  history.knobs.snapshots = prng.one_in(3);
  // Tables that a deleted snapshot had are punched while the check still reads them.
  const bool deletes = seed % 8 == 2;
  if (deletes) {
    history.knobs.snapshots = history.knobs.can_punch = true;
    history.knobs.discard = DiscardPolicy::unmap;
    history.knobs.delays = {.late_one_in = 2 + seed / 8 % 6, .late_reads_only = true};
  }
  if (history.knobs.snapshots) {
    history.knobs.resizes = false;
    history.knobs.data_file = Knobs::DataFile::none;
  }
  // Where nothing recounts on opening, and no smaller disk cuts it off.
  history.knobs.aliases = seed % 4 == 0 && !history.knobs.snapshots &&
                          !history.knobs.lazy_refcounts && !history.knobs.resizes &&
                          history.knobs.data_file == Knobs::DataFile::none;
  history.knobs.bitmaps = seed % 4 == 1 && history.knobs.version == 3;
  const uint64_t incarnations = prng.between(1, 2);
  for (uint64_t i = 0; i < incarnations; ++i) {
    Incarnation incarnation = draw_life(history.knobs, prng, prng.between(2, 6), 12);
    if (deletes && i == 0) {
      const Window& window = history.knobs.windows[0];
      incarnation.warm_up = {
          {.kind = Step::Kind::create_snapshot},
          {.kind = Step::Kind::write, .offset = window.offset, .length = window.length},
          {.kind = Step::Kind::flush},
          {.kind = Step::Kind::flush}};
      incarnation.clients[0].insert(incarnation.clients[0].begin(), {.kind = Step::Kind::check});
      // Waits for the begin of the check, and goes on while that reads.
      const auto after = static_cast<int64_t>(1 + seed / 8 % 20) * 50 * kMicrosecond;
      incarnation.clients[1].insert(
          incarnation.clients[1].begin(),
          {{.kind = Step::Kind::pause, .pause_ns = after}, {.kind = Step::Kind::delete_snapshot}});
    }
    // The first marks come while a check runs.
    if (history.knobs.bitmaps && i == 0)
      incarnation.warm_up = {
          {.kind = Step::Kind::add_bitmap, .length = uint64_t{512} << prng.below(9)}};
    const uint64_t way = prng.below(4);
    incarnation.end = way < 2    ? Incarnation::End::close
                      : way == 2 ? Incarnation::End::kill
                                 : Incarnation::End::power_cut;
    incarnation.ends_after = prng.between(1, 400);
    incarnation.cut_one_in = prng.between(20, 100);
    incarnation.cuts_max = history.knobs.cluster_bits == 21 ? 1 : 3;
    if (prng.one_in(3)) {
      incarnation.faults = FaultPlan::draw(fault_prng);
    } else if (prng.one_in(2)) {
      incarnation.faults.rates = FaultPlan::harmless();
    }
    history.incarnations.push_back(std::move(incarnation));
  }
  Verdict verdict;
  add(verdict, history, run_history(history, options));
  return verdict;
}

/// Plays `base` with a fault at the k-th operation of its second incarnation, for every k and each
/// kind.
void fault_at_each_operation(const History& base, std::initializer_list<Op::Kind> kinds,
                             const RunOptions& options, Verdict& verdict) {
  Prng fault_prng = prng_for(base.seed, kDrawFaults);
  for (const Op::Kind kind : kinds) {
    for (uint64_t k = 1; k <= 40; ++k) {
      History history = base;
      history.incarnations[1].faults.add(
          {.kind = kind,
           .first = k,
           .last = fault_prng.one_in(4) ? k + fault_prng.below(4) : k,
           .fault = {.kind = Fault::Kind::error,
                     .applied = static_cast<Fault::Applied>(fault_prng.below(4)),
                     .drops = fault_prng.one_in(2),
                     .evicts = fault_prng.one_in(2)}});
      const uint64_t way = fault_prng.below(4);
      history.incarnations[1].end =
          way == 0 ? Incarnation::End::power_cut : Incarnation::End::close;
      history.incarnations[1].ends_after = fault_prng.between(5, 80);
      history.incarnations[1].cut_one_in = 12;
      history.incarnations[1].cuts_max = 3;
      const uint64_t errors = verdict.request_errors;
      if (!add(verdict, history, run_history(history, options))) return;
      if (verdict.request_errors == errors && k > 30) break;
    }
  }
}

/// A short history around one change of the snapshots, a fault at its k-th operation, for every k;
/// every third seed sees every cut instead.
Verdict play_snapshot_faults(uint64_t seed, const RunOptions& options) {
  Prng prng = prng_for(seed, kDrawKnobs);
  using Kind = Step::Kind;
  History base{.seed = seed, .knobs = Knobs::tiny(prng.one_in(2) ? 9 : 12)};
  Knobs& knobs = base.knobs;
  knobs.snapshots = true;
  if (prng.one_in(3)) knobs.version = 2;
  if (knobs.version == 3 && prng.one_in(5)) knobs.lazy_refcounts = true;
  if (prng.one_in(2)) knobs.gap = knobs.geometry().refcount_block_entries();
  if (prng.one_in(3)) knobs.clusters_free = prng.between(0, 6);
  knobs.tables_apart = prng.one_in(2);
  const uint64_t c = knobs.cluster_size();
  const Kind changes[] = {Kind::create_snapshot, Kind::apply_snapshot, Kind::delete_snapshot};
  Incarnation before{.seed = prng.next()};
  before.clients.push_back({{.kind = Kind::create_snapshot},
                            {.kind = Kind::write, .offset = 0, .length = 2 * c},
                            {.kind = Kind::create_snapshot},
                            {.kind = Kind::write, .offset = c, .length = c}});
  Incarnation incarnation{.seed = prng.next()};
  incarnation.clients.push_back({{.kind = Kind::write, .offset = 0, .length = c},
                                 {.kind = changes[seed % 3], .offset = seed / 3},
                                 {.kind = Kind::write, .offset = 2 * c, .length = c},
                                 {.kind = Kind::flush},
                                 {.kind = Kind::write, .offset = 0, .length = c}});
  base.incarnations = {before, incarnation};
  Verdict verdict;
  if (seed / 3 % 3 == 0) {
    base.incarnations[1].every_cut = true;
    base.incarnations[1].clients[0].resize(3);
    add(verdict, base, run_history(base, options));
    return verdict;
  }
  fault_at_each_operation(
      base, {Op::Kind::write, Op::Kind::sync, Op::Kind::punch, Op::Kind::allocate, Op::Kind::read},
      options, verdict);
  return verdict;
}

// --- Amend --------------------------------------------------------------------------------------

AmendOptions draw_amend(const Knobs& knobs, Prng& prng) {
  AmendOptions amend;
  uint32_t version = knobs.version;
  if (prng.one_in(2)) amend.version = version = 5 - version;
  if (version == 2) {
    amend.refcount_bits = 16;
  } else {
    if (prng.one_in(2)) amend.refcount_bits = 1u << prng.below(7);
    if (prng.one_in(3)) amend.lazy_refcounts = prng.one_in(2);
  }
  if (!knobs.snapshots && prng.one_in(4)) {
    amend.size = prng.one_in(2) ? knobs.size : round_up(prng.between(1, knobs.size), kSectorSize);
  }
  if (knobs.data_file == Knobs::DataFile::raw && prng.one_in(2)) amend.data_file_raw = false;
  return amend;
}

/// An image with snapshots, zeros and streams in it is amended, then used: every kind of change,
/// cuts at every moment, in every third history faults.  Every fourth is a tiny one, and sees every
/// cut.
Verdict play_amend(uint64_t seed, const RunOptions& options) {
  Prng knob_prng = prng_for(seed, kDrawKnobs);
  Prng prng = prng_for(seed, kDrawSteps);
  Prng fault_prng = prng_for(seed, kDrawFaults);
  History history{.seed = seed, .knobs = Knobs::draw(knob_prng)};
  Knobs& knobs = history.knobs;
  const bool tiny = seed % 4 == 0;
  if (tiny) {
    knobs = Knobs::tiny(9);
    knobs.version = prng.one_in(3) ? 2 : 3;
    knobs.gap = prng.one_in(2) ? knobs.geometry().refcount_block_entries() : 0;
    if (prng.one_in(2)) {
      knobs.backing = Knobs::Backing::raw;
      knobs.backing_size = knobs.size;
    }
  }
  if (knobs.cluster_bits == 21) return {};
  knobs.resizes = false;
  // Version 2 has neither; half of the images can go there.
  if (prng.one_in(2)) {
    knobs.extended_l2 = false;
    knobs.compression = Compression::deflate;
    knobs.data_file = Knobs::DataFile::none;
  }
  knobs.snapshots = knobs.data_file == Knobs::DataFile::none && prng.one_in(2);
  // An image with bitmaps stays version 3.
  knobs.bitmaps = seed % 4 == 1 && knobs.version == 3;

  Incarnation before = draw_life(knobs, prng, 1, tiny ? 3 : 10);
  history.incarnations.push_back(std::move(before));
  Incarnation incarnation = draw_life(knobs, prng, 1, tiny ? 1 : 6);
  incarnation.amend = draw_amend(knobs, prng);
  incarnation.every_cut = tiny;
  incarnation.cut_one_in = prng.between(2, 12);
  incarnation.cuts_max = knobs.cluster_bits == 16 ? 10 : 40;
  const uint64_t way = prng.below(4);
  incarnation.end = tiny || way < 2 ? Incarnation::End::close
                    : way == 2      ? Incarnation::End::kill
                                    : Incarnation::End::power_cut;
  incarnation.ends_after = prng.between(20, 400);
  if (!tiny && prng.one_in(3)) {
    incarnation.faults = FaultPlan::draw(fault_prng);
    if (fault_prng.one_in(2)) {
      const Op::Kind kind = fault_prng.one_in(3) ? Op::Kind::sync : Op::Kind::write;
      const uint64_t k = fault_prng.between(1, 60);
      incarnation.faults.add({.kind = kind,
                              .first = k,
                              .last = k + fault_prng.below(3),
                              .fault = {.kind = Fault::Kind::error,
                                        .applied = static_cast<Fault::Applied>(fault_prng.below(4)),
                                        .drops = fault_prng.one_in(2),
                                        .evicts = fault_prng.one_in(2)}});
    } else if (fault_prng.one_in(3)) {
      incarnation.faults.no_space(fault_prng.between(1, 40), fault_prng.between(1, 5));
    }
  }
  history.incarnations.push_back(std::move(incarnation));
  Incarnation after = draw_life(knobs, prng, prng.between(1, 3), tiny ? 3 : 10);
  for (std::vector<Step>& steps : after.clients) {
    for (Step& step : steps)
      step.compressed = false;  // A size that was amended may end them early.
    std::erase_if(steps, [](const Step& step) { return step.is_of_snapshot(); });
  }
  knobs.resizes = history.incarnations[1].amend->size.has_value();  // Requests may pass the end.
  after.cut_one_in = 40;
  after.cuts_max = 2;
  history.incarnations.push_back(std::move(after));
  Verdict verdict;
  add(verdict, history, run_history(history, options));
  return verdict;
}

// --- The header ---------------------------------------------------------------------------------

/// Each operation that changes the header, beside a client whose commits change it too (the dirty
/// bit, the refcount table's place): every write of the first sector fails in turn, and has
/// happened nevertheless, or not, or will a little later; sometimes the next one fails as well
/// (M4).
Verdict play_header_faults(uint64_t seed, const RunOptions& options) {
  Prng prng = prng_for(seed, kDrawKnobs);
  Prng fault_prng = prng_for(seed, kDrawFaults);
  using Kind = Step::Kind;
  History base{.seed = seed, .knobs = Knobs::tiny(prng.one_in(2) ? 9 : 12)};
  Knobs& knobs = base.knobs;
  const uint64_t c = knobs.cluster_size();
  const uint64_t which = seed % 12;
  const bool of_snapshots = which < 3;
  const bool of_bitmaps = which >= 3 && which < 6;
  const bool amends = which >= 9;
  knobs.snapshots = of_snapshots;
  knobs.bitmaps = of_bitmaps || (!of_snapshots && !amends && prng.one_in(3));
  knobs.resizes = !of_snapshots && !amends;
  if (!knobs.bitmaps && !of_bitmaps && prng.one_in(3)) knobs.version = 2;
  if (knobs.version == 3 && prng.one_in(2)) knobs.lazy_refcounts = true;
  if (prng.one_in(2)) knobs.gap = knobs.geometry().refcount_block_entries();
  // Much is allocated, and the refcount table is about to move.
  if (prng.one_in(2)) knobs.contents = 0;
  if (prng.one_in(2)) knobs.clusters_free = prng.between(0, 8);
  if (prng.one_in(3)) knobs.commit_delay = static_cast<int64_t>(prng.below(3000)) * kMicrosecond;
  const Step changes[] = {{.kind = Kind::create_snapshot},
                          {.kind = Kind::apply_snapshot},
                          {.kind = Kind::delete_snapshot},
                          {.kind = Kind::add_bitmap, .length = 512},
                          {.kind = Kind::clear_bitmap},
                          {.kind = Kind::remove_bitmap},
                          {.kind = Kind::resize, .length = c + kSectorSize},
                          {.kind = Kind::resize, .length = 4 * c},
                          {.kind = Kind::resize, .length = 4 * c, .mode = Preallocation::metadata}};
  Incarnation before{.seed = prng.next()};
  before.clients.push_back({{.kind = Kind::write, .offset = 0, .length = 2 * c}});
  if (of_snapshots) before.clients[0].push_back({.kind = Kind::create_snapshot});
  if (knobs.bitmaps) before.clients[0].push_back({.kind = Kind::add_bitmap, .length = 512});
  if (which == 7 || which == 8) {
    before.clients[0].push_back({.kind = Kind::resize, .length = 2 * c + kSectorSize});
  }
  Incarnation incarnation{.seed = prng.next()};
  if (amends) {
    incarnation.amend = AmendOptions();
    if (which == 9) incarnation.amend->version = 5 - knobs.version;
    if (which == 10 && knobs.version == 3) incarnation.amend->refcount_bits = 64;
    if (which == 11) incarnation.amend->size = 2 * c + kSectorSize;
    // What they leave staged is being committed when the amendment begins, perhaps.
    incarnation.clients.push_back({{.kind = Kind::write, .offset = c, .length = c},
                                   {.kind = Kind::write, .offset = 0, .length = 2 * c},
                                   {.kind = Kind::write, .offset = 2 * c, .length = 2 * c}});
  } else {
    incarnation.clients.push_back({changes[which],
                                   {.kind = Kind::write, .offset = 0, .length = c},
                                   {.kind = Kind::flush},
                                   {.kind = Kind::write, .offset = c, .length = kSectorSize},
                                   {.kind = Kind::flush}});
  }
  // Allocates, releases and commits meanwhile.
  if (!amends || prng.one_in(2))
    incarnation.clients.push_back({{.kind = Kind::write, .offset = 0, .length = 2 * c},
                                   {.kind = Kind::flush},
                                   {.kind = Kind::discard, .offset = 0, .length = c},
                                   {.kind = Kind::flush},
                                   {.kind = Kind::write, .offset = 0, .length = c},
                                   {.kind = Kind::flush}});
  base.incarnations = {before, incarnation};
  Verdict verdict;
  RunReport plain = run_history(base, options);
  const uint64_t writes = plain.header_writes;
  if (!add(verdict, base, std::move(plain))) return verdict;
  for (uint64_t k = 1; k <= writes; ++k) {
    for (const Fault::Applied applied :
         {Fault::Applied::no, Fault::Applied::all, Fault::Applied::late}) {
      History history = base;
      Incarnation& faulty = history.incarnations[1];
      const bool again = fault_prng.one_in(3);
      faulty.faults.add({.first = k,
                         .last = again ? k + 1 : k,
                         .fault = {.kind = Fault::Kind::error, .applied = applied},
                         .first_sector = true});
      faulty.keeps_writing = !again;
      faulty.cut_one_in = 12;
      faulty.cuts_max = 4;
      if (fault_prng.one_in(4)) {
        faulty.end = Incarnation::End::power_cut;
        faulty.ends_after = fault_prng.between(20, 200);
      }
      if (!add(verdict, history, run_history(history, options))) return verdict;
    }
  }
  return verdict;
}

// --- Bitmaps ------------------------------------------------------------------------------------

/// Bitmaps are added, cleared, enabled, disabled and removed among the requests of several clients
/// (C8): cuts, kills, changes of the size, snapshots, and in every third history errors of the
/// disk.
Verdict play_bitmaps(uint64_t seed, const RunOptions& options) {
  Prng knob_prng = prng_for(seed, kDrawKnobs);
  Prng prng = prng_for(seed, kDrawSteps);
  Prng fault_prng = prng_for(seed, kDrawFaults);
  History history{.seed = seed, .knobs = Knobs::draw(knob_prng)};
  Knobs& knobs = history.knobs;
  knobs.bitmaps = true;
  if (knobs.version == 2) {
    knobs.version = 3;
    knobs.resizes = true;
  }
  if (!knobs.resizes && knobs.data_file == Knobs::DataFile::none && prng.one_in(4))
    knobs.snapshots = true;
  const bool faults = prng.one_in(3);
  const uint64_t incarnations = prng.between(2, 4);
  for (uint64_t i = 0; i < incarnations; ++i) {
    Incarnation incarnation = draw_life(knobs, prng, prng.between(1, 4), 12);
    if (i == 0) {
      incarnation.warm_up = {
          {.kind = Step::Kind::add_bitmap, .length = uint64_t{512} << prng.below(9)}};
    }
    const uint64_t way = prng.below(4);
    incarnation.end = way < 2    ? Incarnation::End::close
                      : way == 2 ? Incarnation::End::kill
                                 : Incarnation::End::power_cut;
    incarnation.ends_after = prng.between(1, 250);
    incarnation.cut_one_in = prng.between(4, 40);
    incarnation.cuts_max = knobs.cluster_bits == 21 ? 1 : knobs.cluster_bits == 16 ? 4 : 10;
    incarnation.faults.rates = prng.one_in(2) ? FaultPlan::harmless() : FaultPlan::Rates{};
    if (faults) {
      incarnation.faults = FaultPlan::draw(fault_prng);
      if (fault_prng.one_in(4)) {
        incarnation.room = fault_prng.between(1, 32) * 4096;
      } else if (fault_prng.one_in(4)) {
        incarnation.faults.no_space(fault_prng.between(1, 30), fault_prng.between(1, 5));
      }
    }
    history.incarnations.push_back(std::move(incarnation));
  }
  Verdict verdict;
  add(verdict, history, run_history(history, options));
  return verdict;
}

/// One change of the bitmaps, or the first write after one: every cut after every operation, or a
/// fault at the k-th, for every k.
Verdict play_bitmap_faults(uint64_t seed, const RunOptions& options) {
  Prng prng = prng_for(seed, kDrawKnobs);
  using Kind = Step::Kind;
  History base{.seed = seed, .knobs = Knobs::tiny(prng.one_in(2) ? 9 : 12)};
  Knobs& knobs = base.knobs;
  knobs.bitmaps = true;
  knobs.resizes = true;
  if (prng.one_in(5)) knobs.lazy_refcounts = true;
  if (prng.one_in(2)) knobs.gap = knobs.geometry().refcount_block_entries();
  if (prng.one_in(4)) knobs.clusters_free = prng.between(0, 12);
  const uint64_t c = knobs.cluster_size();
  const Step changes[] = {{.kind = Kind::add_bitmap, .length = 512},
                          {.kind = Kind::clear_bitmap},
                          {.kind = Kind::toggle_bitmap},
                          {.kind = Kind::remove_bitmap},
                          {.kind = Kind::resize, .length = 2 * c + kSectorSize},
                          {.kind = Kind::discard, .offset = 0, .length = 2 * c},
                          {.kind = Kind::write, .offset = 0, .length = c, .compressed = true}};
  Incarnation before{.seed = prng.next()};
  before.clients.push_back({{.kind = Kind::add_bitmap, .length = 512},
                            {.kind = Kind::write, .offset = 0, .length = 3 * c},
                            {.kind = Kind::add_bitmap, .length = 1024}});
  if (prng.one_in(2)) before.clients[0].push_back({.kind = Kind::clear_bitmap, .offset = 0});
  Incarnation incarnation{.seed = prng.next()};
  incarnation.clients.push_back({changes[seed % 7],
                                 {.kind = Kind::write, .offset = c, .length = kSectorSize},
                                 {.kind = Kind::flush},
                                 {.kind = Kind::write, .offset = 2 * c, .length = c},
                                 {.kind = Kind::check}});  // What a failure left is no finding.
  if (prng.one_in(2)) {
    incarnation.clients.push_back({{.kind = Kind::write, .offset = 0, .length = kSectorSize},
                                   {.kind = Kind::write, .offset = c, .length = kSectorSize}});
  }
  base.incarnations = {before, incarnation};
  Verdict verdict;
  if (seed / 7 % 2 == 0) {
    base.incarnations[1].every_cut = true;
    base.incarnations[1].clients[0].resize(2);
    add(verdict, base, run_history(base, options));
    return verdict;
  }
  fault_at_each_operation(base,
                          {Op::Kind::write, Op::Kind::sync, Op::Kind::allocate, Op::Kind::read},
                          options, verdict);
  return verdict;
}

/// M6: a process that is killed loses no more than the last commit_delay, flushed or not.  What it
/// left in the page cache is no more durable for the next one than for anybody (O8): power losses.
Verdict play_killed(uint64_t seed, const RunOptions& options) {
  Prng knob_prng = prng_for(seed, kDrawKnobs);
  Prng prng = prng_for(seed, kDrawSteps);
  History history{.seed = seed, .knobs = Knobs::draw(knob_prng)};
  history.knobs.delays.late_one_in = 0;
  Incarnation incarnation = draw_life(history.knobs, prng, prng.between(1, 4), 8);
  incarnation.end = Incarnation::End::kill;
  if (seed % 2 == 0) {
    for (std::vector<Step>& client : incarnation.clients) {
      std::erase_if(client, [](const Step& step) { return step.kind == Step::Kind::flush; });
      client.push_back({.kind = Step::Kind::pause, .pause_ns = 3600 * kSecond});
    }
    incarnation.ends_at_ns =
        history.knobs.commit_delay + static_cast<int64_t>(prng.below(200)) * kMillisecond;
  } else {  // In the middle of a commit, perhaps.
    incarnation.ends_after = prng.between(10, 150);
  }
  Incarnation next = draw_life(history.knobs, prng, prng.between(1, 3), 8);
  if (seed % 2 != 0) {  // In place, and durable with the mapping that was there.
    for (Step step : incarnation.clients[0]) {
      if (step.kind != Step::Kind::write) continue;
      step.fua = true;
      step.compressed = false;
      next.clients.push_back({step});
    }
  }
  history.incarnations.push_back(std::move(incarnation));
  next.cut_one_in = prng.between(2, 12);
  next.cuts_max = history.knobs.cluster_bits == 21 ? 2 : 8;
  history.incarnations.push_back(std::move(next));
  Verdict verdict;
  add(verdict, history, run_history(history, options));
  return verdict;
}

// --- T6: small histories, exhaustively
// ------------------------------------------------------------

/// The requests that the exhaustive walks are made of, on two clusters and the two behind them.
std::vector<Step> alphabet(const Knobs& knobs) {
  const uint64_t c = knobs.cluster_size();
  constexpr uint64_t s = kSectorSize;
  using Kind = Step::Kind;
  return {
      {.kind = Kind::write, .offset = 0, .length = c},
      {.kind = Kind::write, .offset = c, .length = c},
      {.kind = Kind::write, .offset = c - s, .length = 2 * s},
      {.kind = Kind::write, .offset = 0, .length = s},
      {.kind = Kind::write, .offset = 2 * c, .length = c, .fua = true},
      {.kind = Kind::write, .offset = 0, .length = c, .compressed = true},
      {.kind = Kind::write, .offset = c, .length = 2 * c, .compressed = true},
      {.kind = Kind::discard, .offset = 0, .length = c},
      {.kind = Kind::zero, .offset = 0, .length = 2 * c, .may_unmap = true},
      {.kind = Kind::zero, .offset = 0, .length = c},
      {.kind = Kind::read, .offset = 0, .length = 2 * c},
      {.kind = Kind::flush},
      {.kind = Kind::create_snapshot},
      {.kind = Kind::apply_snapshot},
      {.kind = Kind::delete_snapshot},
  };
}

Knobs draw_tiny(Prng& prng) {
  Knobs knobs = Knobs::tiny(prng.one_in(2) ? 9 : 12);
  if (prng.one_in(4)) {
    knobs.version = 2;
  } else {
    knobs.refcount_order = static_cast<uint32_t>(prng.one_in(2) ? 4 : prng.below(7));
    if (prng.one_in(8)) knobs.lazy_refcounts = true;
  }
  if (prng.one_in(4)) knobs.contents = 0;
  if (prng.one_in(2)) knobs.gap = knobs.geometry().refcount_block_entries();
  knobs.tables_apart = prng.one_in(2);
  if (prng.one_in(3)) knobs.clusters_free = prng.between(0, 2);
  if (prng.one_in(3)) knobs.table_cache_size = 8 * KiB;
  if (prng.one_in(6)) knobs.staged_max = 1;
  if (prng.one_in(4)) {
    knobs.backing = Knobs::Backing::raw;
    knobs.backing_size = knobs.size;
  }
  if (knobs.version == 3 && prng.one_in(4)) {
    knobs.data_file = prng.one_in(2) ? Knobs::DataFile::plain : Knobs::DataFile::raw;
    if (knobs.data_file == Knobs::DataFile::raw) knobs.backing = Knobs::Backing::none;
  }
  return knobs;
}

/// Seed n takes the n-th sequence of `length` requests of the alphabet, over and over with other
/// knobs: all of them are met, none is drawn.
std::vector<Step> sequence(const Knobs& knobs, uint64_t seed, uint64_t length) {
  std::vector<Step> letters = alphabet(knobs);
  for (Step& letter : letters) letter.compressed &= knobs.data_file == Knobs::DataFile::none;
  std::vector<Step> steps;
  for (uint64_t i = 0; i < length; ++i) {
    steps.push_back(letters[seed % letters.size()]);
    seed /= letters.size();
  }
  return steps;
}

/// What must be there before such requests: a snapshot, and a cluster that is no longer its own.
std::vector<Step> before_snapshots(Knobs& knobs, const std::vector<Step>& steps) {
  if (!std::any_of(steps.begin(), steps.end(), [](const Step& s) { return s.is_of_snapshot(); })) {
    return {};
  }
  knobs.snapshots = true;
  knobs.data_file = Knobs::DataFile::none;  // Its clusters cannot be shared.
  // Flushed twice, so that limbo is empty: nothing else then makes a change wait for I/O under way.
  return {{.kind = Step::Kind::create_snapshot},
          {.kind = Step::Kind::write, .offset = 0, .length = knobs.cluster_size()},
          {.kind = Step::Kind::flush},
          {.kind = Step::Kind::flush}};
}

/// Two or three requests, one after another, and every cut after every storage operation.
Verdict play_cuts(uint64_t seed, const RunOptions& options) {
  Prng prng = prng_for(seed, kDrawKnobs);
  History history{.seed = seed, .knobs = draw_tiny(prng)};
  Incarnation incarnation{.seed = prng.next(), .every_cut = true};
  incarnation.clients.push_back(sequence(history.knobs, seed / 2, 2 + seed % 2));
  std::vector<Step> before = before_snapshots(history.knobs, incarnation.clients[0]);
  if (!before.empty()) {
    history.incarnations.push_back({.seed = prng.next(), .clients = {std::move(before)}});
  }
  history.incarnations.push_back(std::move(incarnation));
  Verdict verdict;
  add(verdict, history, run_history(history, options));
  return verdict;
}

struct Walk {
  uint64_t requests = 2;
  bool snapshots = false;  ///< One of two changes the snapshots.
  uint64_t preemptions_max = UINT64_MAX;
  bool resume_at_once = true;
  uint64_t paths_max = 50'000;
};

/// Plays `history` in every interleaving that `walk` allows; false when one failed.
bool walk_paths(const History& history, const RunOptions& options, const Walk& walk,
                Verdict& verdict) {
  Enumerator paths(walk.preemptions_max);
  RunOptions chosen = options;
  chosen.chooser = &paths;
  chosen.resume_at_once = walk.resume_at_once;
  do {
    RunReport report = run_history(history, chosen);
    if (!report.failure.empty()) {
      report.failure += "\nchoices:";
      for (const size_t choice : paths.path()) report.failure += cat(" ", choice);
    }
    if (!add(verdict, history, std::move(report))) return false;
  } while (paths.next() && paths.walked() < walk.paths_max);
  return true;
}

/// Requests that begin together, in every interleaving that `walk` allows.
Verdict walk_interleavings(uint64_t seed, const RunOptions& options, const Walk& walk) {
  Prng prng = prng_for(seed, kDrawKnobs);
  History history{.seed = seed, .knobs = draw_tiny(prng)};
  Incarnation incarnation{.seed = prng.next()};
  if (prng.one_in(2)) {  // Tables and refcounts are in memory, some hosts have been freed.
    const uint64_t c = history.knobs.cluster_size();
    incarnation.warm_up = {{.kind = Step::Kind::write, .offset = 2 * c, .length = 2 * c},
                           {.kind = Step::Kind::discard, .offset = 3 * c, .length = c},
                           {.kind = Step::Kind::flush}};
  }
  // Pairs in turn, in an order in which neighbours differ; longer ones are too many, so drawn.
  const uint64_t which = walk.requests == 2 ? seed * 37 : prng.next();
  std::vector<Step> steps = sequence(history.knobs, which, walk.requests);
  if (walk.snapshots) {
    const std::vector<Step> letters = alphabet(history.knobs);
    const uint64_t pair = seed + 3 * letters.size() - 1;  // Seed 1 is the first.
    steps = {letters[pair / 3 % letters.size()], letters[letters.size() - 3 + pair % 3]};
  }
  for (const Step& step : steps) incarnation.clients.push_back({step});
  std::vector<Step> before = before_snapshots(history.knobs, steps);
  incarnation.warm_up.insert(incarnation.warm_up.begin(), before.begin(), before.end());
  // What the image became is seen by a last cut now and then, and by the next incarnation.
  incarnation.cut_one_in = 24;
  incarnation.cuts_max = 1;
  history.incarnations.push_back(std::move(incarnation));
  // Each change of the snapshots is a dozen operations: few preemptions in full, then some
  // thousands of paths with any number of them; the whole walk is for pairs-all.
  std::vector<Walk> walks = {walk};
  if (history.knobs.snapshots && walk.resume_at_once) {
    walks[0].preemptions_max = std::min<uint64_t>(walk.preemptions_max, walk.requests == 2 ? 3 : 1);
    walks.push_back(walk);
    walks[1].paths_max = walk.requests == 2 ? 5000 : 500;
  }
  Verdict verdict;
  for (const Walk& one : walks) {
    if (!walk_paths(history, options, one, verdict)) break;
  }
  return verdict;
}

}  // namespace

CutChoice draw_choice(Prng& prng, const SimDisk& disk) {
  switch (prng.below(6)) {
    case 0:
      return CutChoice::none();
    case 1:
      return CutChoice::all();
    case 2: {
      const std::vector<LogEntry> log = disk.log();
      return CutChoice::prefix(log, prng.below(log.size() + 1));
    }
    default:
      return CutChoice::random(prng.next(), prng.one_in(4));
  }
}

const std::vector<Scenario>& scenarios() {
  static const auto& list = *new std::vector<Scenario>{
      {"mix", "several clients, random requests, several incarnations, cuts (T2)", play_mix, 80},
      {"faults", "the same with I/O errors, failed syncs, a full disk", play_faults, 40},
      {"damaged", "images that other programs have damaged, in use (V)", play_damaged, 60},
      {"graph", "filters, drains and other backing files, in use (G)", play_graph, 60},
      {"copy-before-write", "the disk as it was at one moment, read while it is used (G)",
       play_copy_before_write, 40},
      {"late-landing", "writes that fail and land later all the same (H6)", play_late_landing, 10},
      {"late", "I/O that completes after everything else (T7)", play_late, 16},
      {"killed", "a process that dies loses a second at most (M6)", play_killed, 16},
      {"kth-fault", "a fault at the k-th operation, for every k (T5)", play_kth_fault, 3},
      {"no-space", "ENOSPC at the k-th allocation, for every k", play_no_space, 3},
      {"snapshots", "snapshots made, applied, deleted among requests (T3)", play_snapshots, 40},
      {"snapshot-faults", "one change of the snapshots: a fault at each operation, or every cut",
       play_snapshot_faults, 6},
      {"readers", "reads that land after all else, whatever becomes of their clusters (H1, H3)",
       play_readers, 30},
      {"online", "checks of the disk while it is used, whatever goes on (T8)", play_online, 40},
      {"amend",
       "another version, refcount width, size: cuts, faults, and the image used afterwards",
       play_amend, 24},
      {"header-faults", "every write of the header fails in turn, beside commits (M4)",
       play_header_faults, 48},
      {"bitmaps", "bitmaps among requests, through cuts and kills (C8)", play_bitmaps, 60},
      {"bitmap-faults", "one change of the bitmaps: a fault at each operation, or every cut",
       play_bitmap_faults, 14},
      {"cuts", "two or three requests, every cut after every operation (T6)", play_cuts, 5},
      {"repair", "damaged images, repaired and undone, cut off anywhere (R1 to R5)", play_repair,
       12},
      {"commit", "chains of images whose top goes down into a disk below, cut off anywhere (O9)",
       play_commit, 30},
      {"rebase", "overlays that get another backing disk, cut off anywhere (O9)", play_rebase, 30},
      {"in-order", "images that allocate in the order of their requests: the same bytes",
       play_in_order, 30},
      {"live-mirror", "guests' disk is mirrored, and they are led to the copy (J3)",
       play_live_mirror, 40},
      {"live-commit", "guests' disk goes down into one below it, and they are led there (J5)",
       play_live_commit, 40},
      {"live-commit-below", "disks below guests' disk go down into one further below (J5)",
       play_live_commit_below, 40},
      {"live-stream", "what lies below guests' disk becomes its own (J2)", play_live_stream, 40},
      {"live-backup", "guests' disk is backed up, whole or by a bitmap (J4)", play_live_backup, 40},
      {"live-two", "two jobs on one chain, or the refusal of the second (J9)", play_live_two, 60},
      {"live-steps", "a job paused, cancelled, completed, drained, killed after every step (J)",
       play_live_steps, 5},
      {"live-faults", "a fault at the k-th operation of every disk of a job, for every k (J)",
       play_live_faults, 5},
      {"pairs", "two requests in every order of their I/O",
       [](uint64_t seed, const RunOptions& options) {
         return walk_interleavings(seed, options, {});
       },
       10},
      {"snapshot-pairs", "the same, one of them a change of the snapshots",
       [](uint64_t seed, const RunOptions& options) {
         return walk_interleavings(seed, options, {.snapshots = true});
       },
       6},
      {"triples", "three or four requests, at most three preemptions",
       [](uint64_t seed, const RunOptions& options) {
         return walk_interleavings(seed, options, {.requests = 3 + seed % 2, .preemptions_max = 3});
       },
       4},
      {"pairs-all", "two requests in every interleaving whatever; slow",
       [](uint64_t seed, const RunOptions& options) {
         return walk_interleavings(seed, options,
                                   {.resume_at_once = false, .paths_max = UINT64_MAX});
       },
       0},
  };
  return list;
}

}  // namespace byre
