// SPDX-License-Identifier: Apache-2.0
/// Trace: what happened in a simulation, as one hash and, when somebody listens, as lines of text.
///
/// Equal seeds must give equal hashes: that is how a dependence on addresses, clocks or hash order
/// is found.  The last few lines are always kept, for the report of a failure.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace byre {

class Trace {
 public:
  /// Gets every line.
  std::function<void(std::string_view)> sink;

  uint64_t hash() const { return hash_; }
  uint64_t events() const { return events_; }

  /// One event: a word that names it and numbers that belong to it.
  void add(std::string_view what, std::initializer_list<uint64_t> numbers) {
    ++events_;
    for (const char c : what) mix(static_cast<unsigned char>(c));
    for (const uint64_t number : numbers) mix(number);
    recent_[events_ % kRecent] = {what, {}, numbers.size()};
    size_t i = 0;
    for (const uint64_t number : numbers) {
      if (i < kNumbers) recent_[events_ % kRecent].numbers[i++] = number;
    }
    if (sink) sink(line(recent_[events_ % kRecent]));
  }
  /// A line for people only; not part of the hash.
  void say(std::string_view text) {
    if (sink) sink(text);
  }
  /// The last events, oldest first.
  std::string recent() const {
    std::string text;
    for (uint64_t i = events_ < kRecent ? 1 : events_ - kRecent + 1; i <= events_; ++i) {
      text += cat("  ", line(recent_[i % kRecent]), "\n");
    }
    return text;
  }

 private:
  static constexpr size_t kRecent = 40;
  static constexpr size_t kNumbers = 5;
  struct Event {
    std::string_view what;  // A literal.
    uint64_t numbers[kNumbers];
    size_t count;
  };
  static std::string line(const Event& event) {
    std::string text(event.what);
    for (size_t i = 0; i < event.count && i < kNumbers; ++i) {
      text += cat(" ", hex(event.numbers[i]));
    }
    return text;
  }
  void mix(uint64_t word) {
    hash_ = (hash_ ^ word) * 0x9e3779b97f4a7c15u;
    hash_ ^= hash_ >> 29;
  }

  uint64_t hash_ = 0xcbf29ce484222325u;
  uint64_t events_ = 0;
  Event recent_[kRecent] = {};
};

}  // namespace byre
