// SPDX-License-Identifier: Apache-2.0
/// SimSocket: a pair of connected stream sockets in memory.
///
/// Transfers are partial by the seed; a send waits while the other side's buffer is full.
/// hang_up() of one side: the other reads what was sent, then the end; its sends get -EPIPE.
/// break_off(): both sides get -ECONNRESET at once, and what was under way is lost.
/// Not here: accept and connect; a session begins with a connected socket.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/prng.h"
#include "sim/sim_reactor.h"

namespace byre {

class SimSocket {
 public:
  struct Options {
    uint64_t seed = 0;
    size_t buffer_size = 64 * 1024;
    bool partial = true;  ///< Transfers may be shorter than they could be.
  };
  /// Two descriptors of `reactor`'s process, joined.  They live until the process dies.
  static std::pair<int, int> make_pair(SimReactor& reactor, Options options);
  static std::pair<int, int> make_pair(SimReactor& reactor) {
    return make_pair(reactor, Options{});
  }

  /// What happens to a connection from outside.
  static void hang_up(SimReactor& reactor, int fd);
  static void break_off(SimReactor& reactor, int fd);

 private:
  struct Wire;
  class End;
};

}  // namespace byre
