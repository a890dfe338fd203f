// SPDX-License-Identifier: Apache-2.0
/// A small seeded generator (xoshiro256**, Blackman and Vigna 2018; seeded by splitmix64): the same
/// seed gives the same numbers on every machine.  Not for secrets.
#pragma once

#include <bit>
#include <cstdint>

namespace byre {

class Prng {
 public:
  explicit Prng(uint64_t seed) {
    for (uint64_t& word : state_) {
      seed += 0x9e3779b97f4a7c15u;
      uint64_t z = seed;
      z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
      z = (z ^ z >> 27) * 0x94d049bb133111ebu;
      word = z ^ z >> 31;
    }
  }
  uint64_t next() {
    const uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
    const uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }
  /// Evenly from [0, bound), bound > 0 (Lemire's multiplication; the bias is below 2^-32).
  uint64_t below(uint64_t bound) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>((Wide{next()} * bound) >> 64);
  }
  /// Evenly from [low, high].
  uint64_t between(uint64_t low, uint64_t high) { return low + below(high - low + 1); }
  /// True once in `n` on average.
  bool one_in(uint64_t n) { return below(n) == 0; }

 private:
  uint64_t state_[4];
};

}  // namespace byre
