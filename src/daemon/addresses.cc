// SPDX-License-Identifier: Apache-2.0
#include "daemon/addresses.h"

#include <fcntl.h>

#include <utility>

#include "base/option_text.h"
#include "nbd/nbd_uri.h"

namespace byre::qmp {

namespace {

const Struct& unix_address() {
  static const Struct kStruct(
      {field("path", &SocketAddress::path, "of the socket, or its name when it is abstract"),
       with_default("abstract", &SocketAddress::abstract, "a name without a file"),
       with_default("tight", &SocketAddress::tight,
                    "an abstract name ends with its last byte, and is not filled up with zeros")});
  return kStruct;
}

const Struct& inet_address() {
  constexpr std::string_view kBoth = "addresses of either family are taken as the host has them";
  static const Struct kStruct({field("host", &SocketAddress::host, "a name or an address"),
                               field("port", &SocketAddress::port, "a number"),
                               refused_field("to", "one port is tried"),
                               refused_field("ipv4", kBoth), refused_field("ipv6", kBoth),
                               refused_field("numeric", "names are looked up"),
                               refused_field("keep-alive", "it is always on"),
                               refused_field("mptcp", "there is no multipath TCP")});
  return kStruct;
}

const Struct& fd_address() {
  static const Struct kStruct(
      {field("str", &SocketAddress::fd, "a name that getfd gave, or a number on a command line")});
  return kStruct;
}

Field data_of(const Struct& type) {
  return {.name = "data",
          .help = "the address",
          .known = &type,
          .store = [&type](void* object, const Json& value, const Place& place) {
            return type.read(value, place, &static_cast<LegacyAddress*>(object)->address);
          }};
}

/// Linux's name of a socket that is in no file system.
Result<std::string> path_of_unix(const SocketAddress& address) {
  constexpr size_t kNameMax = 107;
  if (address.path.empty()) return invalid("a socket needs a path");
  if (!address.abstract) {
    if (address.path[0] != '\0') return address.path;
    return invalid("a path of a socket has no zero bytes; say abstract");
  }
  std::string name = cat(std::string_view("\0", 1), address.path);
  if (name.size() > kNameMax + 1) return invalid("the name of the socket is too long");
  if (!address.tight) name.resize(kNameMax + 1, '\0');
  return name;
}

Result<uint16_t> port_of(const SocketAddress& address, uint64_t low) {
  const Result<uint64_t> port = parse_number(address.port, low, 65535);
  if (!port) return invalid("Invalid port '", address.port, "'");
  return static_cast<uint16_t>(*port);
}

Result<Descriptor> descriptor_of(const AddressContext& context, const SocketAddress& address) {
  if (context.descriptors) return context.descriptors->take(address.fd, false);
  Descriptors nothing;
  return nothing.take(address.fd, true);
}

}  // namespace

Field refused_field(std::string_view name, std::string_view why) {
  return {.name = name,
          .help = why,
          .optional = true,
          .hidden = true,
          .type = Type::any,
          .store = [why](void*, const Json&, const Place& place) -> Result<void> {
            return unsupported("Parameter '", place.path, "' is not supported: ", why);
          }};
}

const Enumeration& definition_of(const SocketAddress::Kind*) {
  static const Enumeration kKinds(
      {"inet", "unix", "fd"},
      {{"vsock", "Addresses of type 'vsock' are not supported: there are inet, unix and fd"}});
  return kKinds;
}

const Struct& definition_of(const SocketAddress*) {
  static const Struct kStruct({field("type", &SocketAddress::type, "what kind of address")}, "type",
                              {{.value = "inet", .fields = inet_address().fields},
                               {.value = "unix", .fields = unix_address().fields},
                               {.value = "fd", .fields = fd_address().fields}});
  return kStruct;
}

const Struct& definition_of(const LegacyAddress*) {
  static const Struct kStruct(
      {{.name = "type",
        .help = "what kind of address",
        .type = [] -> const Type& { return type_of<SocketAddress::Kind>(); },
        .store =
            [](void* object, const Json& value, const Place& place) {
              return Described<SocketAddress::Kind>::read(
                  value, place, static_cast<LegacyAddress*>(object)->address.type);
            }}},
      "type",
      {{.value = "inet", .fields = {data_of(inet_address())}},
       {.value = "unix", .fields = {data_of(unix_address())}},
       {.value = "fd", .fields = {data_of(fd_address())}}});
  return kStruct;
}

bool is_local(const SocketAddress& address) {
  return address.type != SocketAddress::Kind::inet || nbd::is_loopback(address.host);
}

Task<Listener> listen_at(AddressContext context, SocketAddress address) {
  switch (address.type) {
    case SocketAddress::Kind::unix: {
      std::string path = co_await path_of_unix(address);
      if (context.root && !address.abstract) path = co_await context.root->real_name(path);
      Listener listener = co_await Listener::listen_unix(context.reactor, path);
      co_return std::move(listener);
    }
    case SocketAddress::Kind::inet: {
      if (!context.allow_remote && !is_local(address)) {
        co_return Error(Errc::denied,
                        cat("'", address.host,
                            "' is not this machine alone, and there is neither "
                            "TLS nor a password: start with --allow-remote to listen there"));
      }
      const uint16_t port = co_await port_of(address, 0);
      Listener listener = co_await Listener::listen_tcp(context.reactor, address.host, port);
      co_return std::move(listener);
    }
    case SocketAddress::Kind::fd:
      break;
  }
  Descriptor fd = co_await descriptor_of(context, address);
  // A number that was no socket of a listener's stays open: it is somebody else's.
  fcntl(fd.get(), F_SETFD, FD_CLOEXEC);
  Listener listener = co_await Listener::adopt(context.reactor, fd.release());
  co_return std::move(listener);
}

Task<Socket> connect_to(AddressContext context, SocketAddress address) {
  switch (address.type) {
    case SocketAddress::Kind::unix: {
      const std::string path = co_await path_of_unix(address);
      Socket socket = co_await Socket::connect_unix(context.reactor, path);
      co_return std::move(socket);
    }
    case SocketAddress::Kind::inet: {
      const uint16_t port = co_await port_of(address, 1);
      Socket socket = co_await Socket::connect_tcp(context.reactor, address.host, port);
      co_return std::move(socket);
    }
    case SocketAddress::Kind::fd:
      break;
  }
  Descriptor fd = co_await descriptor_of(context, address);
  fcntl(fd.get(), F_SETFD, FD_CLOEXEC);
  co_return Socket(context.reactor, fd.release());
}

}  // namespace byre::qmp
