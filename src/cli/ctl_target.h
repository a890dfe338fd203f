// SPDX-License-Identifier: Apache-2.0
/// Where a mirror or a backup goes: a node of the daemon, or a qcow2 image that is made here.
///
/// A word that is the name of a node means that node; another one with a slash or a dot in it is a
/// file.  The file is made on this machine, by this process, with the size of the source, and the
/// daemon is told to open it as the node target_node_of(job).  Without `force` no file is
/// overwritten.
/// Invariant: when the job does not begin, take_back() closes the node, and removes the file if it
/// was made here.
/// Not here: the job (ctl_start.cc).
#pragma once

#include <string>

#include "cli/ctl.h"

namespace byre::ctl {

struct TargetWanted {
  std::string word;    ///< As the user gave it.
  std::string source;  ///< A node.
  std::string job;
  std::string sync;  ///< "full", "top", "none", "incremental"
  bool force = false;
};

struct Target {
  std::string node;
  std::string file;  ///< Empty: the node was there.
  bool existed = false;
};

Task<Target> take_target(Session& session, qmp::Client& client, TargetWanted wanted);
Task<void> take_back(qmp::Client& client, Target target);

}  // namespace byre::ctl
