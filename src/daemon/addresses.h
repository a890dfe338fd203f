// SPDX-License-Identifier: Apache-2.0
/// Addresses of sockets as clients of a monitor and command lines give them.
///
/// Unix sockets by path or abstract name, TCP by host and port, and descriptors: numbers on a
/// command line, names of getfd in a monitor. Invariant: a place beyond this machine is listened at
/// only where that was allowed. Not here: sockets (io/socket.h).
#pragma once

#include <optional>
#include <string>

#include "daemon/descriptors.h"
#include "daemon/qmp_type.h"
#include "io/rooted_opener.h"
#include "io/socket.h"

namespace byre::qmp {

struct SocketAddress {
  enum class Kind : uint8_t { inet, unix, fd } type = Kind::unix;
  std::string path;
  bool abstract = false;
  bool tight = true;
  std::string host;
  std::string port;
  std::string fd;
};
const Enumeration& definition_of(const SocketAddress::Kind*);
/// {"type": "unix", "path": ...}
const Struct& definition_of(const SocketAddress*);

/// {"type": "unix", "data": {"path": ...}}
struct LegacyAddress {
  SocketAddress address;
};
const Struct& definition_of(const LegacyAddress*);

/// What opening an address may use.
struct AddressContext {
  Reactor& reactor;
  Descriptors* descriptors = nullptr;  ///< Of a monitor; null: numbers mean descriptors of ours.
  bool allow_remote = false;           ///< Other machines may connect.
  /// Where sockets may be made that clients of a monitor ask for; null: anywhere.
  const RootedOpener* root = nullptr;
};
Task<Listener> listen_at(AddressContext context, SocketAddress address);
Task<Socket> connect_to(AddressContext context, SocketAddress address);
/// May clients there list exports?
bool is_local(const SocketAddress& address);

/// A member that is refused, because of `why`.
Field refused_field(std::string_view name, std::string_view why);

}  // namespace byre::qmp
