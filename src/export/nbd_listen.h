// SPDX-License-Identifier: Apache-2.0
/// Where a server listens: sockets that were passed in, a unix socket, a TCP port.
///
/// Invariant: who comes over the network must know the name of an export; only this machine's
/// clients may list them.
/// Cost: a few system calls each, once.
/// Not here: who is let in and how many (nbd_server.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coro/task.h"
#include "export/nbd_server.h"
#include "nbd/nbd_uri.h"

namespace byre::nbd {

struct ListenPlan {
  std::optional<std::string> socket;          ///< The path of a unix socket.
  std::optional<std::string> default_socket;  ///< Unless `socket` is set or sockets were passed in.
  std::string default_socket_hint;            ///< Behind the error when the default does not work.
  std::optional<uint16_t> port;               ///< 0: one that is free.
  std::string address = "127.0.0.1";          ///< Of `port`.
  std::string export_name;                    ///< In the answer.
  bool may_be_nowhere = false;                ///< Its clients come by other ways.
};

/// Gives `server` its listeners, those that were passed in first; where clients reach them.
Task<std::vector<Uri>> listen(Reactor& reactor, Server& server, ListenPlan plan);

}  // namespace byre::nbd
