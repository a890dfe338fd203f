// SPDX-License-Identifier: Apache-2.0
/// FaultPlan: which of a simulated disk's operations go wrong, and how.
///
/// Scripted: a Rule names the k-th operation of a kind.  Drawn: Rates say how often.  Both count
/// from the disk's first operation, so a history that is repeated meets the same faults.
#pragma once

#include <cerrno>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/prng.h"
#include "io/op.h"

namespace byre {

struct Fault {
  enum class Kind : uint8_t {
    none,
    interrupted,  ///< -EINTR, nothing done.
    cut_short,    ///< A transfer of fewer bytes than asked.
    error,        ///< -`error`.
  };
  /// Of a write, punch or truncate that fails: what of it happened all the same.  `late`: it lands
  /// after it was answered, before the next sync ends (only writes for which the disk's
  /// may_land_late says so; others as `no`).
  enum class Applied : uint8_t { no, half, all, late };
  Kind kind = Kind::none;
  int error = EIO;
  Applied applied = Applied::no;
  /// Of a sync that fails: what was not durable stays in the cache but counts as clean from now on
  /// (Linux), so that later syncs succeed and do not write it.  False: it stays dirty.
  bool drops = true;
  /// With `drops`: the cache forgets it too, so reads give the durable bytes again.
  bool evicts = false;
};

class FaultPlan {
 public:
  /// Operations number `first` to `last` (from 1) of `kind` on this disk; with `first_sector` only
  /// those on the disk's first 512 bytes are concerned and counted.
  struct Rule {
    Op::Kind kind = Op::Kind::write;
    uint64_t first = 1;
    uint64_t last = 1;
    Fault fault = {.kind = Fault::Kind::error};
    bool first_sector = false;
  };
  /// Once in so many operations; 0 is never.
  struct Rates {
    uint64_t interrupted = 0;
    uint64_t cut_short = 0;
    uint64_t read_error = 0;
    uint64_t write_error = 0;  ///< Also punch, zero_range, allocate, truncate.
    uint64_t sync_error = 0;
    bool always_late = false;  ///< Writes that fail land late, where they may.
  };

  FaultPlan() = default;
  /// Harmless ones only: those that File hides from the engine.
  static Rates harmless() { return {.interrupted = 40, .cut_short = 20}; }
  /// A plan from the seed: most have few kinds of faults, some none.
  static FaultPlan draw(Prng& prng) {
    FaultPlan plan;
    if (prng.one_in(2)) plan.rates = harmless();
    if (prng.one_in(8)) plan.rates.read_error = prng.between(50, 500);
    if (prng.one_in(6)) plan.rates.write_error = prng.between(30, 500);
    if (prng.one_in(10)) plan.rates.sync_error = prng.between(20, 200);
    return plan;
  }

  void add(Rule rule) { rules_.push_back(rule); }
  /// Operations that need new blocks, from number `first` on (from 1), `count` of them: ENOSPC.
  void no_space(uint64_t first, uint64_t count = UINT64_MAX) {
    no_space_first_ = first;
    no_space_count_ = count;
  }
  void clear() { *this = FaultPlan(); }
  /// True when it can hand out an error that File passes on.
  bool can_fail() const {
    return !rules_.empty() || rates.read_error || rates.write_error || rates.sync_error ||
           no_space_count_ != 0;
  }

  Fault next(const Op& op, Prng& prng) {
    const Op::Kind kind = op.kind;
    const uint64_t number = ++counts_[static_cast<size_t>(kind)];
    const bool first_sector = kind == Op::Kind::write && op.offset < 512;
    if (first_sector) ++first_sector_writes_;
    for (const Rule& rule : rules_) {
      if (rule.kind != kind || (rule.first_sector && !first_sector)) continue;
      const uint64_t which = rule.first_sector ? first_sector_writes_ : number;
      if (which >= rule.first && which <= rule.last) return rule.fault;
    }
    const bool transfer = kind == Op::Kind::read || kind == Op::Kind::write;
    if (transfer && hit(rates.interrupted, prng)) return {.kind = Fault::Kind::interrupted};
    if (transfer && hit(rates.cut_short, prng)) return {.kind = Fault::Kind::cut_short};
    const uint64_t rate = kind == Op::Kind::read   ? rates.read_error
                          : kind == Op::Kind::sync ? rates.sync_error
                                                   : rates.write_error;
    if (!hit(rate, prng)) return {};
    return {.kind = Fault::Kind::error,
            .applied = rates.always_late ? Fault::Applied::late
                                         : static_cast<Fault::Applied>(prng.below(4)),
            .drops = prng.one_in(2),
            .evicts = prng.one_in(2)};
  }
  /// An operation that needs new blocks is about to run: does it get them?
  bool out_of_space() {
    const uint64_t number = ++allocations_;
    return no_space_count_ != 0 && number >= no_space_first_ &&
           number - no_space_first_ < no_space_count_;
  }
  /// How many operations of `kind` there were.
  uint64_t count(Op::Kind kind) const { return counts_[static_cast<size_t>(kind)]; }
  uint64_t allocations() const { return allocations_; }
  uint64_t first_sector_writes() const { return first_sector_writes_; }

  Rates rates = {};

 private:
  static bool hit(uint64_t rate, Prng& prng) { return rate != 0 && prng.one_in(rate); }

  std::vector<Rule> rules_;
  uint64_t no_space_first_ = 0;
  uint64_t no_space_count_ = 0;
  uint64_t counts_[16] = {};
  uint64_t allocations_ = 0;
  uint64_t first_sector_writes_ = 0;
};

}  // namespace byre
