// SPDX-License-Identifier: Apache-2.0
/// The scenarios of jobs on a disk that guests use (live_run.h).
#include "live_run.h"
#include "scenarios.h"

namespace byre {

namespace {

using live::Intrusion;
using live::LiveJob;
using live::LiveRun;

Verdict play(uint64_t seed, LiveJob kind) {
  Verdict verdict;
  LiveRun run(seed, kind, verdict);
  run.run();
  verdict.hash = run.hash();
  return verdict;
}

/// So many seeds share the moments of one history.
constexpr uint64_t kShares = 16;

/// The history of a seed: which job, which of its histories, and which share of the moments.
struct Shared {
  LiveJob job;
  uint64_t history;
  uint64_t first;  ///< The first moment, from 1; others follow kShares apart.
  explicit Shared(uint64_t seed)
      : job(static_cast<LiveJob>(seed % 5)),
        history(seed / 5 / kShares),
        first(seed / 5 % kShares + 1) {}
};

bool play(Verdict& verdict, const Shared& shared, Intrusion intrusion) {
  LiveRun run(shared.history, shared.job, verdict, std::move(intrusion));
  run.run();
  verdict.hash = Prng(verdict.hash * 0x9e3779b97f4a7c15u + run.hash()).next();
  return verdict.failure.empty();
}

}  // namespace

Verdict play_live_mirror(uint64_t seed, const RunOptions&) { return play(seed, LiveJob::mirror); }
Verdict play_live_commit(uint64_t seed, const RunOptions&) { return play(seed, LiveJob::commit); }
Verdict play_live_stream(uint64_t seed, const RunOptions&) { return play(seed, LiveJob::stream); }
Verdict play_live_backup(uint64_t seed, const RunOptions&) { return play(seed, LiveJob::backup); }
Verdict play_live_commit_below(uint64_t seed, const RunOptions&) {
  return play(seed, LiveJob::commit_below);
}

Verdict play_live_steps(uint64_t seed, const RunOptions&) {
  const Shared shared(seed);
  Verdict verdict;
  LiveRun plain(shared.history, shared.job, verdict, Intrusion{});
  plain.run();
  for (uint64_t at = shared.first; at <= plain.steps_of_job(); at += kShares) {
    for (const Intrusion::Kind kind :
         {Intrusion::Kind::pause, Intrusion::Kind::cancel, Intrusion::Kind::finish_soon,
          Intrusion::Kind::complete, Intrusion::Kind::drain, Intrusion::Kind::kill}) {
      if (!play(verdict, shared, {.kind = kind, .at = at})) return verdict;
    }
  }
  return verdict;
}

Verdict play_live_faults(uint64_t seed, const RunOptions&) {
  const Shared shared(seed);
  Verdict verdict;
  LiveRun plain(shared.history, shared.job, verdict, Intrusion{});
  plain.run();
  for (const auto& [disk, plan] : plain.operations()) {
    for (const Op::Kind kind : {Op::Kind::write, Op::Kind::sync, Op::Kind::punch,
                                Op::Kind::allocate, Op::Kind::truncate, Op::Kind::read}) {
      for (uint64_t at = shared.first; at <= plan.count(kind); at += kShares) {
        if (!play(verdict, shared,
                  {.kind = Intrusion::Kind::error, .at = at, .disk = disk, .operation = kind})) {
          return verdict;
        }
      }
    }
    for (uint64_t at = shared.first; at <= plan.allocations(); at += kShares) {
      if (!play(verdict, shared, {.kind = Intrusion::Kind::no_space, .at = at, .disk = disk}))
        return verdict;
    }
  }
  return verdict;
}

}  // namespace byre
