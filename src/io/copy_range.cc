// SPDX-License-Identifier: Apache-2.0
#include "io/copy_range.h"

#include <unistd.h>

#include <cerrno>
#include <functional>

namespace byre {

static bool copy_now(int from, off_t from_offset, int to, off_t to_offset, uint64_t length) {
  while (length > 0) {
    const ssize_t copied = copy_file_range(from, &from_offset, to, &to_offset, length, 0);
    if (copied < 0 && errno == EINTR) continue;
    if (copied <= 0) return false;  // It cannot do that here, or the file ends before.
    length -= static_cast<uint64_t>(copied);
  }
  return true;
}

Task<bool> copy_range(FileRange from, FileRange to, uint64_t length) {
  bool copied = false;
  const int from_fd = from.file.properties().fd;
  const int to_fd = to.file.properties().fd;
  const auto work = [&] {
    copied = copy_now(from_fd, static_cast<off_t>(from.offset), to_fd,
                      static_cast<off_t>(to.offset), length);
  };
  co_await to.file.reactor().offload(std::cref(work));
  co_return copied;
}

}  // namespace byre
