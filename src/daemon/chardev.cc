// SPDX-License-Identifier: Apache-2.0
#include "daemon/chardev.h"

#include <unistd.h>

#include <utility>

namespace byre::qmp {

namespace {

Result<SocketAddress> address_of(const ChardevOptions& options) {
  SocketAddress address;
  const int given = int{options.path.has_value()} + int{options.fd.has_value()} +
                    int{options.host || options.port};
  if (given != 1) {
    return invalid("chardev ", byre::quoted(options.id),
                   ": give one of path, fd, and host with port");
  }
  if (options.path) {
    address.type = SocketAddress::Kind::unix;
    address.path = *options.path;
    address.abstract = options.abstract;
    address.tight = options.tight;
  } else if (options.fd) {
    address.type = SocketAddress::Kind::fd;
    address.fd = *options.fd;
  } else {
    if (!options.port) return invalid("chardev: socket: no port given");
    address.type = SocketAddress::Kind::inet;
    address.host = options.host.value_or(options.server ? "127.0.0.1" : "localhost");
    address.port = *options.port;
  }
  return address;
}

std::string place_of(const SocketAddress& address) {
  switch (address.type) {
    case SocketAddress::Kind::unix:
      return cat("unix:", address.path, address.abstract ? ",abstract=on" : "");
    case SocketAddress::Kind::inet:
      return cat("tcp:", address.host, ":", address.port);
    case SocketAddress::Kind::fd:
      return cat("fd:", address.fd);
  }
  return "";
}

}  // namespace

const Enumeration& definition_of(const ChardevOptions::Backend*) {
  static const Enumeration kBackends({"socket", "stdio"});
  return kBackends;
}

const Struct& definition_of(const ChardevOptions*) {
  using Options = ChardevOptions;
  constexpr std::string_view kNoTls = "there is no TLS yet";
  constexpr std::string_view kPlain = "a monitor speaks plain JSON";
  static const Struct kStruct(
      {field("backend", &Options::backend, "socket or stdio"),
       field("id", &Options::id, "what --monitor calls it")},
      "backend",
      {{.value = "socket",
        .fields = {with_default("path", &Options::path, "of a unix socket"),
                   with_default("abstract", &Options::abstract, "its name is in no file system"),
                   with_default("tight", &Options::tight, "an abstract name is not filled up"),
                   with_default("host", &Options::host, "of TCP"),
                   with_default("port", &Options::port, "of TCP"),
                   with_default("fd", &Options::fd, "a socket that was passed to this process"),
                   with_default("server", &Options::server, "listen, and do not connect"),
                   with_default("wait", &Options::wait, "go on only once a client is there"),
                   refused_field("reconnect", "a lost connection is not made anew"),
                   refused_field("reconnect-ms", "a lost connection is not made anew"),
                   refused_field("telnet", kPlain), refused_field("websocket", kPlain),
                   refused_field("tn3270", kPlain), refused_field("tls-creds", kNoTls),
                   refused_field("tls-authz", kNoTls), refused_field("to", "one port is tried"),
                   refused_field("logfile", "nothing is logged"),
                   refused_field("logappend", "nothing is logged"),
                   refused_field("mux", "a monitor has its chardev for itself")}},
       {.value = "stdio",
        .fields = {
            with_default("signal", &Options::signal, "ctrl-C ends the daemon: always on")}}});
  return kStruct;
}

Task<std::unique_ptr<Chardev>> Chardev::open(AddressContext context, ChardevOptions options) {
  std::unique_ptr<Chardev> made(new Chardev(context.reactor, options.id));
  if (options.backend == ChardevOptions::Backend::stdio) {
    if (!options.signal) {
      co_return unsupported("chardev ", byre::quoted(options.id),
                            ": signal=off is not supported: ", "ctrl-C ends the daemon");
    }
    made->first_ = Channel::over_streams(context.reactor, STDIN_FILENO, STDOUT_FILENO);
    co_return std::move(made);
  }
  if (!options.server && options.wait) {
    co_return invalid("'wait' option is incompatible with socket in client connect mode");
  }
  SocketAddress address = co_await address_of(options);
  made->place_ = cat(place_of(address), options.server ? ",server=on" : "");
  if (!options.server) {
    Socket socket = co_await connect_to(context, std::move(address));
    made->first_ = std::make_unique<Channel>(context.reactor, std::move(socket));
    co_return std::move(made);
  }
  Listener listener = co_await listen_at(context, std::move(address));
  made->listener_.emplace(std::move(listener));
  made->waits_ = options.wait.value_or(true);
  co_return std::move(made);
}

std::string Chardev::waits_for() const { return waits_ ? listener_->name() : ""; }

Task<void> Chardev::wait_for_first() {
  std::unique_ptr<Channel> first = co_await next();
  first_ = std::move(first);
}

Task<std::unique_ptr<Channel>> Chardev::next() {
  if (stopped_) co_return std::unique_ptr<Channel>();
  if (first_) co_return std::move(first_);
  if (!listener_) co_return std::unique_ptr<Channel>();
  Result<Socket> socket = co_await listener_->accept().result();
  if (!socket && stopped_) co_return std::unique_ptr<Channel>();
  if (!socket) co_return std::move(socket).error();
  co_return std::make_unique<Channel>(reactor_, *std::move(socket));
}

void Chardev::stop() {
  stopped_ = true;
  if (listener_) listener_->cancel();
}

}  // namespace byre::qmp
