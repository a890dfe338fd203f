// SPDX-License-Identifier: Apache-2.0
/// ServeControl: `byre serve --control`: the disk that is served is a node of a daemon, whose
/// monitor lets clients run jobs on it while it is used.
///
///     ServeControl control(session, opener, plan);
///     control.adopt(disk);                          // as it was opened, before anything lies over
///     it
///     ... nbd::ServerRun run(...), run.listen(...) ...
///     co_await control.open(run);                   // clients may connect
///     run.beside(control.run(), [&] { control.stop(); });
///     co_await run.serve();
///     co_await control.end(run);                    // in the place of run.end(); always
///
/// The disk is the node `disk`, or the name of the export where a node can have that; the disks
/// below it are NAME-1, NAME-2 and so on.  Clients of the export follow when a job leads the users
/// of the disk to another one; what is said of "the image" then means that one.
/// The end: requests are answered, and no command begins any more; jobs are cancelled, and the user
/// is told which; the disk is flushed and closed, and all nodes; monitors and their socket go.
/// Invariant: the server ends when it is told to, not by what a client of a monitor does, but for
/// the command quit.
/// Not here: commands, jobs and nodes (daemon/daemon.h).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/node_io.h"
#include "cli/serve_plan.h"
#include "daemon/daemon.h"
#include "export/nbd_server_run.h"

namespace byre {

class ServeControl final : public NodeUser {
 public:
  ServeControl(Session& session, FileOpener& opener, const ServePlan& plan);
  ServeControl(const ServeControl&) = delete;

  void adopt(Disk& disk);
  /// Of bitmaps of the disk, which count as used from here on.
  Task<std::vector<nbd::ExportContext>> contexts();
  Task<void> open(nbd::ServerRun& run);
  /// Until stop(), or until a client has asked the server to quit.
  Task<void> run();
  /// The server is about to end.
  void stop();
  /// What clients use now; null: no image.
  Image* image(nbd::ServerRun& run) const { return image_of(run.disk()); }
  Task<void> end(nbd::ServerRun& run);
  std::string waiting_for(const nbd::ServerRun& run);

 private:
  /// Of the export, once no command runs.
  Task<void> end() override;
  void tell_cut_jobs();

  Session& session_;
  const ServePlan& plan_;
  const std::string name_;
  NodeIo io_;
  Daemon daemon_;
  nbd::ServerRun* run_ = nullptr;
  Result<void> ended_;
};

}  // namespace byre
