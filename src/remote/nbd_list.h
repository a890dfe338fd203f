// SPDX-License-Identifier: Apache-2.0
/// Asks another NBD server what it exports: the client's half of a handshake that attaches nothing.
///
/// What comes from the server is data to be shown: lengths are bounded, and names are as they came.
/// A server that says nothing is waited for.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "coro/task.h"
#include "io/socket.h"
#include "nbd/nbd_wire.h"

namespace byre::nbd {

struct ListedExport {
  std::string name;
  std::string description;
  std::optional<ExportInfo> info;  ///< None: the server tells it to those who attach only.
  std::optional<BlockSizeInfo> block_sizes;
  std::vector<std::string> contexts;  ///< Of metadata.
};

/// Errc::denied when the server does not list them.
Task<std::vector<ListedExport>> list_exports(Socket socket);

}  // namespace byre::nbd
