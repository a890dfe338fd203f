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
      clients_(reactor.ready()) {}

void Server::add_listener(Listener listener, DoorOptions options) {
  doors_.push_back(std::make_unique<Door>(std::move(listener), options));
}

void Server::add_client(Socket socket, DoorOptions options) { admit(std::move(socket), options); }

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
  for (const auto& door : doors_) door->listener.cancel();
  // A session that ends at once leaves the list while we walk it.
  const std::vector<Session*> sessions = sessions_;
  for (Session* session : sessions) {
    if (std::ranges::find(sessions_, session) != sessions_.end()) session->stop();
  }
}

Task<void> Server::accept_from(Door& door) {
  while (!stopping_) {
    Result<Socket> socket = co_await door.listener.accept().result();
    if (stopping_) break;
    if (socket) {
      admit(*std::move(socket), door.options);
      continue;
    }
    // What passes by itself the listener has waited for; the other doors stay open.
    if (options_.report) options_.report(std::move(socket).error());
    break;
  }
}

void Server::admit(Socket socket, DoorOptions options) {
  const bool full = statistics_.connections_open >= options_.connections_max;
  if (!full && !stopping_) {
    clients_.spawn(attend(std::move(socket), options));
    return;
  }
  ++statistics_.connections_refused;
  if (refused_now_ < kRefusedMax) clients_.spawn(turn_away(std::move(socket), options));
}

Task<void> Server::attend(Socket socket, DoorOptions options) {
  ++statistics_.connections;
  ++statistics_.connections_open;
  const std::string peer = socket.peer();
  Session session(reactor_, std::move(socket), shared_, options_.limits,
                  {.allow_list = options.allow_list});
  co_await run_session(session, peer);
  --statistics_.connections_open;
}

Task<void> Server::turn_away(Socket socket, DoorOptions options) {
  ++refused_now_;
  SessionLimits limits = options_.limits;
  if (limits.handshake_timeout_ns <= 0 || limits.handshake_timeout_ns > kRefusedTimeout)
    limits.handshake_timeout_ns = kRefusedTimeout;
  const std::string peer = socket.peer();
  Session session(reactor_, std::move(socket), shared_, limits, {.allow_list = options.allow_list});
  if (stopping_) {
    session.refuse(OptionReply::shutdown, "the server is shutting down");
  } else {
    session.refuse(OptionReply::policy, "the server has too many connections");
  }
  co_await run_session(session, peer);
  --refused_now_;
}

Task<void> Server::run_session(Session& session, const std::string& peer) {
  sessions_.push_back(&session);
  Result<void> result = co_await session.run().result();
  std::erase(sessions_, &session);
  if (result) co_return;
  ++statistics_.connections_failed;
  if (options_.report)
    options_.report(std::move(result).error().while_doing(cat("NBD client (", peer, ")")));
}

}  // namespace byre::nbd
