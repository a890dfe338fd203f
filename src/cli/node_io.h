// SPDX-License-Identifier: Apache-2.0
/// `qemu-io NODE "..."` of human-monitor-command: a command of `byre io` on a node of a daemon.
/// Not here: what those commands are (io_shell.h).
#pragma once

#include <string>

#include "daemon/daemon.h"

namespace byre {

class NodeIo final : public IoRunner {
 public:
  NodeIo(Reactor& reactor, FileOpener& opener) : reactor_(reactor), opener_(opener) {}
  Task<std::string> run_io(NamedNode& node, std::string command) override;

 private:
  Reactor& reactor_;
  FileOpener& opener_;
};

}  // namespace byre
