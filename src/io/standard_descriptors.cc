// SPDX-License-Identifier: Apache-2.0
#include "io/standard_descriptors.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace byre {

namespace {

/// Gets the lowest number that is free.  Without O_CLOEXEC: a program that this one starts needs
/// them, too.
int open_nothing() {
  const int null = ::open("/dev/null", O_RDWR | O_NOCTTY);
  if (null >= 0) return null;
  return ::open("/", O_PATH | O_DIRECTORY);  // Reading and writing it fails with EBADF.
}

}  // namespace

bool open_standard_descriptors() {
  for (int wanted = STDIN_FILENO; wanted <= STDERR_FILENO; ++wanted) {
    if (::fcntl(wanted, F_GETFD) >= 0) continue;
    if (errno != EBADF) return false;
    // Those below `wanted` are open, so this is the lowest number that is free.
    const int got = open_nothing();
    if (got == wanted) continue;
    if (got >= 0) ::close(got);
    return false;
  }
  return true;
}

}  // namespace byre
