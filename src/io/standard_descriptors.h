// SPDX-License-Identifier: Apache-2.0
/// Descriptors 0, 1 and 2, for main().
///
/// A program that was started without one of them (by a daemon, a container or cron) gives its
/// number to the next file that it opens.  If that is a disk, a message to stderr overwrites the
/// start of the disk; if it is the ring or an event descriptor, the program stops working.
///
/// Invariant: when this has returned true, 0, 1 and 2 are open, and no later open gets one of these
/// numbers unless somebody closes it.
/// Cost: three system calls when all are open.
/// Not here: who writes to them (cli/session.h).
#pragma once

namespace byre {

/// Opens each of the descriptors 0 to 2 that is closed: on /dev/null, where that can be opened,
/// else on something that refuses to be read or written.  Call it before anything else is opened.
/// False when a descriptor cannot be opened; then nothing may be opened, and nothing can be said.
[[nodiscard]] bool open_standard_descriptors();

}  // namespace byre
