// SPDX-License-Identifier: Apache-2.0
/// The scenarios of jobs on a disk that guests use (live_run.h).
#include "live_run.h"
#include "scenarios.h"

namespace byre {

namespace {

using live::LiveJob;
using live::LiveRun;

Verdict play(uint64_t seed, LiveJob kind) {
  Verdict verdict;
  LiveRun run(seed, kind, verdict);
  run.run();
  verdict.hash = run.hash();
  return verdict;
}

}  // namespace

Verdict play_live_mirror(uint64_t seed, const RunOptions&) { return play(seed, LiveJob::mirror); }
Verdict play_live_commit(uint64_t seed, const RunOptions&) { return play(seed, LiveJob::commit); }
Verdict play_live_stream(uint64_t seed, const RunOptions&) { return play(seed, LiveJob::stream); }
Verdict play_live_backup(uint64_t seed, const RunOptions&) { return play(seed, LiveJob::backup); }
Verdict play_live_commit_below(uint64_t seed, const RunOptions&) {
  return play(seed, LiveJob::commit_below);
}

}  // namespace byre
