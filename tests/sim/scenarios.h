// SPDX-License-Identifier: Apache-2.0
/// The scenarios of byre-sim, each a function of a seed; docs/simulation.md lists them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "session.h"

namespace byre {

/// What playing a scenario with one seed gave.
struct Verdict {
  std::string failure;             ///< Empty: all is well.
  std::optional<History> history;  ///< The one that failed, for --shrink.
  SimDisks disks;
  uint64_t hash = 0;
  uint64_t histories = 0;
  uint64_t requests = 0;
  uint64_t request_errors = 0;
  uint64_t deliveries = 0;
  uint64_t cuts = 0;
};

struct Scenario {
  std::string name;
  std::string summary;
  std::function<Verdict(uint64_t seed, const RunOptions&)> play;
  /// Seeds from 0 of which the smoke test plays this many.
  uint64_t smoke_seeds = 0;
};

const std::vector<Scenario>& scenarios();

/// What a power loss leaves of one disk among several that are cut together.
CutChoice draw_choice(Prng& prng, const SimDisk& disk);

/// repair_scenario.cc
Verdict play_repair(uint64_t seed, const RunOptions& options);
/// chain_scenario.cc
Verdict play_commit(uint64_t seed, const RunOptions& options);
Verdict play_rebase(uint64_t seed, const RunOptions& options);
/// order_scenario.cc
Verdict play_in_order(uint64_t seed, const RunOptions& options);
/// live_scenario.cc
Verdict play_live_mirror(uint64_t seed, const RunOptions& options);
Verdict play_live_commit(uint64_t seed, const RunOptions& options);
Verdict play_live_stream(uint64_t seed, const RunOptions& options);
Verdict play_live_backup(uint64_t seed, const RunOptions& options);
Verdict play_live_commit_below(uint64_t seed, const RunOptions& options);
Verdict play_live_steps(uint64_t seed, const RunOptions& options);
Verdict play_live_faults(uint64_t seed, const RunOptions& options);
/// live_two.cc
Verdict play_live_two(uint64_t seed, const RunOptions& options);

}  // namespace byre
