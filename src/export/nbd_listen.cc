// SPDX-License-Identifier: Apache-2.0
#include "export/nbd_listen.h"

#include <utility>

namespace byre::nbd {

Task<std::vector<Uri>> listen(Reactor& reactor, Server& server, ListenPlan plan) {
  std::vector<Uri> addresses;
  for (const PassedSocket& passed : take_passed_sockets()) {
    Listener listener = co_await Listener::adopt(reactor, passed.fd);
    const std::string name = listener.name();
    addresses.push_back(
        name.starts_with('/') || listener.port() == 0
            ? unix_uri(name, plan.export_name)
            : tcp_uri(name.substr(0, name.rfind(':')), listener.port(), plan.export_name));
    server.add_listener(std::move(listener), {});
  }
  const bool wants_default = plan.default_socket && addresses.empty();
  if (plan.socket || wants_default) {
    const std::string path = plan.socket ? *plan.socket : *plan.default_socket;
    Result<Listener> listener = Listener::listen_unix(reactor, path);
    if (!listener) {
      const std::string hint = plan.socket ? "" : plan.default_socket_hint;
      co_await fail(Error(listener.error().code(), cat(listener.error().message(), hint),
                          listener.error().sys_errno()));
    }
    addresses.push_back(unix_uri(path, plan.export_name));
    server.add_listener(*std::move(listener), {});
  }
  if (plan.port) {
    Listener listener = co_await Listener::listen_tcp(reactor, plan.address, *plan.port);
    addresses.push_back(tcp_uri(plan.address, listener.port(), plan.export_name));
    server.add_listener(std::move(listener), {.allow_list = is_loopback(plan.address)});
  }
  if (addresses.empty() && !plan.may_be_nowhere)
    co_await fail(invalid("there is no place to listen at; name a socket"));
  co_return addresses;
}

}  // namespace byre::nbd
