// SPDX-License-Identifier: Apache-2.0
#include "io/temporary_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "base/cat.h"

namespace byre {

namespace {

constexpr mode_t kOnlyMine = 0600;

/// For file systems that make no file without a name.
int make_with_a_name(const std::string& folder) {
  std::string path = folder + "/byre-XXXXXX";
  const int fd = mkostemp(path.data(), O_CLOEXEC);
  if (fd < 0) return -1;
  if (unlink(path.c_str()) == 0) return fd;
  const int error = errno;
  ::close(fd);
  errno = error;
  return -1;
}

}  // namespace

Result<TemporaryFile> TemporaryFile::make(std::string folder) {
  int fd = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL, kOnlyMine);
  if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
    fd = make_with_a_name(folder);
  }
  if (fd < 0) {
    return errno_error(errno, cat("make a temporary file in ", quoted(folder),
                                  " (TMPDIR chooses another folder)"));
  }
  return TemporaryFile(Descriptor(fd), cat("temporary file in ", folder));
}

Result<std::unique_ptr<File>> TemporaryFile::open(Reactor& reactor, bool writable) const {
  const int fd = fcntl(file_.get(), F_DUPFD_CLOEXEC, 3);
  if (fd < 0) return errno_error(errno, cat("open ", quoted(name_)));
  return File::adopt(reactor, fd, name_, {.writable = writable, .lock = false});
}

}  // namespace byre
