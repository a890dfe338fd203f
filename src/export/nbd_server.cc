// SPDX-License-Identifier: Apache-2.0
#include "export/nbd_server.h"

#include <algorithm>

namespace byre::nbd {

Server::Server(Reactor& reactor, ServerOptions options)
    : reactor_(reactor),
      options_(std::move(options)),
      memory_(reactor.ready(), std::max<uint64_t>(options_.memory_max, kPayloadMax)),
      shared_{exports_, statistics_, memory_, options_.report},
      doors_open_(reactor.ready()),
      clients_(reactor.ready()),
      place_free_(reactor.ready()),
      session_ended_(reactor.ready()) {
  BYRE_ASSERT(options_.connections_max > 0);
}

void Server::add_listener(Listener listener, DoorOptions options) {
  doors_.push_back(std::make_unique<Door>(std::move(listener), options));
}

void Server::add_client(Socket socket, DoorOptions options) {
  clients_.spawn(admit(std::move(socket), options));
}

Task<void> Server::serve() {
  if (!stopping_) {
    for (const auto& door : doors_) doors_open_.spawn(accept_from(*door));
  }
  Result<void> closed = co_await doors_open_.join().result();
  Result<void> gone = co_await clients_.join().result();
}

void Server::stop() {
  if (stopping_) return;
  stopping_ = true;
  place_free_.notify();
  for (const auto& door : doors_) door->listener.cancel();
  stop_sessions([](const Session&) { return true; });
}

template <class Which>
void Server::stop_sessions(Which which) {
  // A session that ends at once leaves the list while we walk it.
  const std::vector<Session*> sessions = sessions_;
  for (Session* session : sessions) {
    const bool is_there = std::ranges::find(sessions_, session) != sessions_.end();
    if (is_there && which(*session)) session->stop();
  }
}

size_t Server::clients_of(std::string_view name) const {
  const std::shared_ptr<const Export> target = exports_.find(name);
  return static_cast<size_t>(std::ranges::count_if(
      sessions_, [&](const Session* session) { return target && session->uses(*target); }));
}

Task<void> Server::remove_export(std::string name) {
  const std::shared_ptr<const Export> target = exports_.find(name);
  if (!target) co_await fail(Error(Errc::not_found, cat("no export ", byre::quoted(name))));
  exports_.remove(*target);
  const auto uses = [&](const Session& session) { return session.uses(*target); };
  stop_sessions(uses);
  while (std::ranges::any_of(sessions_, [&](const Session* one) { return uses(*one); })) {
    co_await session_ended_.wait();
  }
}

Task<void> Server::accept_from(Door& door) {
  while (!stopping_) {
    Result<Socket> socket = co_await door.listener.accept().result();
    if (stopping_) break;
    if (!socket) {
      // What passes by itself the listener has waited for; the other doors stay open.
      if (options_.report) options_.report(std::move(socket).error());
      break;
    }
    co_await wait_for_place();
    if (!stopping_) clients_.spawn(attend(*std::move(socket), door.options));
  }
}

Task<void> Server::wait_for_place() {
  if (!full()) co_return;
  ++statistics_.connections_waiting;
  for (Session* session : sessions_) session->hurry(options_.crowded_timeout_ns);
  while (full() && !stopping_) co_await place_free_.wait();
  --statistics_.connections_waiting;
}

Task<void> Server::admit(Socket socket, DoorOptions options) {
  co_await wait_for_place();
  if (!stopping_) co_await attend(std::move(socket), options);
}

Task<void> Server::attend(Socket socket, DoorOptions options) {
  ++statistics_.connections;
  ++statistics_.connections_open;
  const std::string peer = socket.peer();
  bool last = false;
  {
    Session session(reactor_, std::move(socket), shared_, options_.limits,
                    {.allow_list = options.allow_list,
                     .clients_max = options_.connections_max,
                     .agreed = options.agreed});
    sessions_.push_back(&session);
    session.leave_open_if(
        [this] { return options_.end_with_last_client && statistics_.connections_open == 1; });
    if (statistics_.connections_waiting != 0) session.hurry(options_.crowded_timeout_ns);
    Result<void> result = co_await session.run().result();
    std::erase(sessions_, &session);
    last = options_.end_with_last_client && session.attached() && statistics_.connections_open == 1;
    if (last) last_client_ = session.take_socket();
    if (!result) {
      ++statistics_.connections_failed;
      if (options_.report)
        options_.report(std::move(result).error().while_doing(cat("NBD client (", peer, ")")));
    }
  }
  --statistics_.connections_open;
  place_free_.notify();
  session_ended_.notify();
  if (last) stop();
}

}  // namespace byre::nbd
