// SPDX-License-Identifier: Apache-2.0
/// What the commands of `byre ctl` share: they talk to a daemon that runs, over the unix socket of
/// one of its monitors.
///
/// Each is a definition of its own, named "ctl commit" and so on; `byre ctl` itself (ctl.cc) finds
/// it by its first words.  They ask the daemon and print; a file for a target is made here, on the
/// same machine (ctl_target.h).
/// A monitor has one client at a time, so nothing here keeps a connection while it only waits.
/// Not here: the protocol (daemon/qmp_client.h), jobs (job/live).
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/session.h"
#include "daemon/qmp_client.h"

namespace byre {

/// Those of `byre ctl`, each with its whole name: "ctl bitmap add".
std::span<const AnyCommand* const> ctl_commands();

namespace ctl {

using qmp::Json;
using Client = std::unique_ptr<qmp::Client>;

struct Args {
  std::optional<std::string> socket;
};
template <class A>
Arguments socket_argument() {
  return option("-s, --socket", "PATH", static_cast<std::optional<std::string> A::*>(&Args::socket),
                "of the daemon's monitor; without it the environment variable BYRE_SOCKET says "
                "where");
}

/// Connected and greeted.  `place`, which may be null, has the client also while it is greeted, for
/// who may want to stop it.
Task<Client> connect(Session& session, Args args, qmp::Client** place = nullptr);
/// What the command returns; a refusal says what to do next.
Task<Json> ask(qmp::Client& client, std::string command, Json arguments = Json::object());
/// Asks for one thing that returns nothing.
Task<int> do_one(Session& session, Args args, std::string command, Json arguments);

/// Rows of cells under a first row of titles; empty when there are only titles.
std::string table(const std::vector<std::vector<std::string>>& rows);
/// To stdout, over several lines.
void print_json(Session& session, const Json& value);

// Members of what a daemon says; the daemon may be another program, so nothing is taken for sure.
std::string text_at(const Json& object, const char* key);
uint64_t number_at(const Json& object, const char* key);
bool truth_at(const Json& object, const char* key);
/// The element whose member `key` is `name`; null: none is.
const Json* find_by(const Json& list, const char* key, std::string_view name);

// The definitions, a file each kind.  Functions, since the help of `byre ctl` is made of them
// before main() begins.
using Definitions = std::vector<const AnyCommand*>;
Definitions show_commands();    ///< ctl_show.cc
Definitions start_commands();   ///< ctl_start.cc
Definitions steer_commands();   ///< ctl_steer.cc
Definitions change_commands();  ///< ctl_change.cc

}  // namespace ctl
}  // namespace byre
