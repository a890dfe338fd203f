// SPDX-License-Identifier: Apache-2.0
/// Chooser: who decides what happens next in a simulation, where several things could.
///
/// A SimReactor without one draws its order from its seed.  With one, every scheduling decision is
/// asked for: an Enumerator walks them all, a Replay repeats a list of them (what is left of a
/// failing history after shrinking).
/// Choice 0 is always "go on as a plain reactor would"; any other counts as one preemption.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/assert.h"

namespace byre {

class Chooser {
 public:
  virtual ~Chooser() = default;
  /// One of [0, count), count > 0.
  virtual size_t choose(size_t count) = 0;
};

/// Depth first through every sequence of choices with at most `preemptions_max` that are not 0:
///     Enumerator paths(2);
///     do { run the history with &paths } while (paths.next());
/// The history must be a pure function of the choices.
class Enumerator final : public Chooser {
 public:
  explicit Enumerator(uint64_t preemptions_max = UINT64_MAX) : preemptions_max_(preemptions_max) {}

  size_t choose(size_t count) override {
    if (depth_ == path_.size()) path_.push_back({0, count});
    BYRE_ASSERT(path_[depth_].count == count);  // Otherwise the history is not deterministic.
    return path_[depth_++].choice;
  }
  /// Moves on to the next path; false when all were walked.
  bool next() {
    ++walked_;
    path_.resize(depth_ < path_.size() ? depth_ : path_.size());
    depth_ = 0;
    uint64_t spent = 0;
    for (const Point& point : path_) spent += point.choice != 0;
    while (!path_.empty()) {
      Point& last = path_.back();
      const uint64_t before = spent - (last.choice != 0);
      if (last.choice + 1 < last.count && before < preemptions_max_) {
        ++last.choice;
        return true;
      }
      spent = before;
      path_.pop_back();
    }
    return false;
  }
  uint64_t walked() const { return walked_; }
  /// The choices of the current path, for a Replay.
  std::vector<size_t> path() const {
    std::vector<size_t> choices;
    for (size_t i = 0; i < depth_; ++i) choices.push_back(path_[i].choice);
    return choices;
  }

 private:
  struct Point {
    size_t choice;
    size_t count;
  };
  uint64_t preemptions_max_;
  std::vector<Point> path_;
  size_t depth_ = 0;
  uint64_t walked_ = 0;
};

/// Repeats a list of choices, then always 0.
class Replay final : public Chooser {
 public:
  explicit Replay(std::vector<size_t> choices) : choices_(std::move(choices)) {}
  size_t choose(size_t count) override {
    const size_t choice = at_ < choices_.size() ? choices_[at_++] : 0;
    return choice < count ? choice : 0;
  }

 private:
  std::vector<size_t> choices_;
  size_t at_ = 0;
};

}  // namespace byre
