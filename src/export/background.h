// SPDX-License-Identifier: Apache-2.0
/// A server's process: in the background or not, and how others learn of it.
///
///   1. The parent starts the same program once more, in a session of its own, and waits.
///   2. The child listens, and calls detach(): the terminal is no longer its own, and the parent
///      is told.
///   3. The parent ends, so whoever started it finds a server that listens; or it ends with the
///      exit code of a child that failed.
/// (Not fork(2): the reactor's ring and threads belong to this process.)
///
/// Not here: words and options.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"

namespace byre {

/// In the parent: starts this program with `words` (argv[0] first).  The exit code of the parent: 0
/// once the child has called detach().
Result<int> start_in_background(std::vector<std::string> words);

/// In the child: where the parent waits; -1 when this process was not started that way.  Asked for
/// once, it is nobody else's any more.
int take_ready_descriptor();

/// In the child: standard input, output and error go to /dev/null, and the parent is told.  Closes
/// `ready`.
Result<void> detach(int ready);

/// Writes the number of this process.
Result<void> write_pid_file(const std::string& path);

}  // namespace byre
