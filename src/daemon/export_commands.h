// SPDX-License-Identifier: Apache-2.0
/// What --nbd-server and --export take, which is what the commands of that kind take.
/// Not here: exports (exports.h).
#pragma once

#include "daemon/addresses.h"
#include "daemon/exports.h"

namespace byre {
class Daemon;
}

namespace byre::qmp {

/// `--nbd-server addr.type=unix,addr.path=...`
struct ServerOptions {
  SocketAddress addr;
  uint32_t connections_max = 100;
};
const Struct& definition_of(const ServerOptions*);

/// A bitmap of the node that is exported, or {"node": ..., "name": ...}.
struct BitmapOfExport {
  std::optional<std::string> node;
  std::string name;
};
template <>
struct Described<BitmapOfExport> {
  static const Type& type();
  static Result<void> read(const Json& value, const Place& place, BitmapOfExport& to);
};

/// `--export`, and block-export-add.
struct ExportOptions {
  enum class Kind : uint8_t { nbd } type = Kind::nbd;
  std::string id;
  std::string node_name;
  bool writable = false;
  std::optional<std::string> name;
  std::string description;
  std::vector<BitmapOfExport> bitmaps;
  bool depth = false;
};
const Enumeration& definition_of(const ExportOptions::Kind*);
const Struct& definition_of(const ExportOptions*);
NewExport export_of(ExportOptions options);

Task<void> start_server(Daemon& daemon, Descriptors* descriptors, SocketAddress address,
                        uint32_t connections_max);

}  // namespace byre::qmp
