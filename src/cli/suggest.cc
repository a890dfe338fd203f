// SPDX-License-Identifier: Apache-2.0
#include "cli/suggest.h"

#include <algorithm>
#include <vector>

namespace byre {

namespace {

/// The longest word that is looked at.
constexpr size_t kLengthMax = 40;

/// Optimal string alignment: Levenshtein's distance, with neighbours swapped as one step.
size_t distance(std::string_view left, std::string_view right) {
  std::vector<std::vector<size_t>> steps(left.size() + 1, std::vector<size_t>(right.size() + 1));
  for (size_t i = 0; i <= left.size(); ++i) {
    for (size_t j = 0; j <= right.size(); ++j) {
      if (i == 0 || j == 0) {
        steps[i][j] = i + j;
        continue;
      }
      const size_t change = left[i - 1] == right[j - 1] ? 0 : 1;
      steps[i][j] =
          std::min({steps[i - 1][j] + 1, steps[i][j - 1] + 1, steps[i - 1][j - 1] + change});
      if (i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1]) {
        steps[i][j] = std::min(steps[i][j], steps[i - 2][j - 2] + 1);
      }
    }
  }
  return steps[left.size()][right.size()];
}

}  // namespace

std::string_view closest(std::string_view word, std::span<const std::string_view> known) {
  if (word.size() < 2 || word.size() > kLengthMax) return {};
  std::string_view begins;
  size_t beginning = 0;
  for (std::string_view name : known) {
    if (!name.starts_with(word)) continue;
    begins = name;
    ++beginning;
  }
  if (beginning == 1) return begins;

  size_t best = std::max<size_t>(1, word.size() / 3) + 1;
  std::string_view found;
  for (std::string_view name : known) {
    if (name.size() > kLengthMax) continue;
    const size_t steps = distance(word, name);
    if (steps < best) {
      best = steps;
      found = name;
    } else if (steps == best) {
      found = {};
    }
  }
  return found;
}

}  // namespace byre
