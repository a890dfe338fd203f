// SPDX-License-Identifier: Apache-2.0
/// What the commands of `byre ctl` do alike: connect, ask, and show what comes back.
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "cli/ctl.h"
#include "cli/text.h"
#include "io/socket.h"

namespace byre::ctl {

namespace {

Error cannot_reach(const std::string& socket, Error error) {
  std::string why =
      cat("no daemon can be reached at ", byre::quoted(socket), ": ", error.message());
  const int number = error.sys_errno();
  if (number == ENOENT || number == ECONNREFUSED) {
    why += cat("; start one: `byre daemon --chardev socket,id=qmp,path=", socket,
               ",server=on,wait=off --monitor chardev=qmp`");
  } else if (number == EACCES || number == EPERM) {
    why += "; its socket is for the user who runs it";
  }
  return Error(error.code(), std::move(why), number, error.where());
}

/// What a refusal means, and what to do about it.  QMP's classes tell few apart, so the daemon's
/// own words have to.
Error explained(Error error, const std::string& refusal, const std::string& command) {
  const std::string& said = error.message();
  if (refusal == "CommandNotFound") {
    return Error(Errc::unsupported, cat(said, "; the daemon has no command ", command,
                                        ": it is another program or version"));
  }
  if (refusal == "DeviceNotActive" || said == "Job not found") {
    return Error(Errc::not_found, cat(said, "; `byre ctl jobs` shows the jobs there are"));
  }
  if (refusal == "DeviceNotFound" || said.starts_with("Cannot find device=")) {
    return Error(Errc::not_found, cat(said, "; `byre ctl nodes` shows the nodes there are"));
  }
  if (said.find("x-byre-") != std::string::npos && said.ends_with("is unexpected")) {
    return Error(Errc::unsupported,
                 cat(said, ": only a daemon that runs as `byre daemon` or `byre serve` has that"));
  }
  if (command == "block-export-del") {
    return Error(error.code(), cat(said, "; `byre ctl exports` shows the exports there are"));
  }
  return error;
}

}  // namespace

Task<Client> connect(Session& session, Args args, qmp::Client** place) {
  if (!args.socket) {
    const char* const set = std::getenv("BYRE_SOCKET");
    if (!set || *set == 0) {
      co_return invalid(
          "which daemon? Give --socket PATH, or set BYRE_SOCKET: the unix socket of "
          "one of its monitors");
    }
    args.socket = set;
  }
  Result<Socket> socket = co_await Socket::connect_unix(session.reactor(), *args.socket).result();
  if (!socket) co_return cannot_reach(*args.socket, std::move(socket).error());
  auto client =
      std::make_unique<qmp::Client>(session.reactor(), *std::move(socket), qmp::Client::Options());
  if (place) *place = client.get();
  Result<void> greeted = co_await client->negotiate().result();
  if (!greeted) {
    if (place) *place = nullptr;
    co_return std::move(greeted).error().while_doing(byre::quoted(*args.socket));
  }
  co_return std::move(client);
}

Task<Json> ask(qmp::Client& client, std::string command, Json arguments) {
  Result<Json> answer = co_await client.ask(command, std::move(arguments)).result();
  if (answer || client.refusal().empty()) co_return std::move(answer);
  co_return explained(std::move(answer).error(), client.refusal(), command);
}

Task<int> do_one(Session& session, Args args, std::string command, Json arguments) {
  const Client client = co_await connect(session, std::move(args));
  (void)co_await ask(*client, std::move(command), std::move(arguments));
  co_return 0;
}

std::string table(const std::vector<std::vector<std::string>>& rows) {
  if (rows.size() < 2) return {};
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], printable(row[i]).size());
    }
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      std::string cell = printable(row[i]);
      cell.resize(widths[i] + 2, ' ');
      line += cell;
    }
    line.resize(line.find_last_not_of(' ') + 1);
    out += line + '\n';
  }
  return out;
}

void print_json(Session& session, const Json& value) {
  session.print(cat(qmp::text_of_json(value, true), "\n"));
}

std::string text_at(const Json& object, const char* key) {
  if (!object.is_object()) return {};
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? qmp::text_in(*found) : std::string();
}

uint64_t number_at(const Json& object, const char* key) {
  if (!object.is_object()) return 0;
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number_integer()) return 0;
  if (!found->is_number_unsigned() && found->get<int64_t>() < 0) return 0;
  return found->get<uint64_t>();
}

bool truth_at(const Json& object, const char* key) {
  if (!object.is_object()) return false;
  const auto found = object.find(key);
  return found != object.end() && found->is_boolean() && found->get<bool>();
}

const Json* find_by(const Json& list, const char* key, std::string_view name) {
  if (!list.is_array()) return nullptr;
  for (const Json& one : list) {
    if (text_at(one, key) == name) return &one;
  }
  return nullptr;
}

}  // namespace byre::ctl
