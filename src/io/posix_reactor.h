// SPDX-License-Identifier: Apache-2.0
/// A Reactor of plain system calls, for where io_uring is missing or forbidden (old kernels,
/// containers, hardened hosts).
///
/// File Ops are carried out by worker threads, except reads that the page cache can answer at once;
/// sockets and polls wait in one ppoll(2) on the reactor's own thread.
/// Cost: a thread switch each way for a file Op; ppoll is linear in the sockets that wait.
#pragma once

#include <memory>

#include "io/reactor.h"

namespace byre {

std::unique_ptr<Reactor> make_posix_reactor();

}  // namespace byre
