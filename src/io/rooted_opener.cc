// SPDX-License-Identifier: Apache-2.0
#include "io/rooted_opener.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "io/beneath.h"

namespace byre {

Result<std::unique_ptr<RootedOpener>> RootedOpener::make(Reactor& reactor, const std::string& root,
                                                         OpenPolicy policy) {
  Descriptor folder(::open(root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!folder) return errno_error(errno, cat("open folder ", quoted(root)));
  std::string real = real_path(root);
  if (real.empty()) return errno_error(ENOENT, cat("find folder ", quoted(root)));
  // Is it there at all?  Else each open would fail, and not say why.
  const Descriptor probe(open_at(folder.get(), ".", O_PATH | O_CLOEXEC, RESOLVE_BENEATH));
  if (!probe && errno == ENOSYS) {
    return unsupported("this kernel cannot keep files beneath a folder (openat2)");
  }
  return std::unique_ptr<RootedOpener>(
      new RootedOpener(reactor, std::move(folder), std::move(real), policy));
}

Error RootedOpener::denied(std::string_view name) const {
  return Error(Errc::denied,
               cat("open ", quoted(name), ": it does not lie beneath ", quoted(root_),
                   ", and no other files are opened here (--root)"),
               EACCES);
}

Result<std::string> RootedOpener::inside(std::string_view name) const {
  if (name.empty() || name.find('\0') != std::string_view::npos) return denied(name);
  const std::string path(name);
  const std::string real = real_path_of_new(path);
  if (!real.empty()) {
    std::optional<std::string> rest = below(root_, real);
    if (rest) return *std::move(rest);
    return denied(name);
  }
  // A folder on the way is not there.  That may be said of what is beneath by its very name.
  const std::optional<std::string> rest = below(root_, path);
  if (!rest) return denied(name);
  const Descriptor peek(open_at(folder_.get(), *rest, O_PATH | O_CLOEXEC, RESOLVE_BENEATH));
  if (peek || errno == EXDEV || errno == ELOOP) return denied(name);
  return errno_error(errno, cat("open ", quoted(name)));
}

Result<std::string> RootedOpener::real_name(std::string_view name) const {
  BYRE_TRY(rest, inside(name));
  return cat(root_, root_ == "/" ? "" : "/", rest);
}

Result<std::unique_ptr<File>> RootedOpener::open_inside(const std::string& path,
                                                        std::string_view name,
                                                        FileOptions options) {
  const auto failed = [&](int number) -> Error {
    if (number == EXDEV || number == ELOOP) return denied(name);
    return errno_error(number, cat("open ", quoted(name)));
  };
  // Before it is opened: opening alone may do something when it is a device.
  const Descriptor peek(open_at(folder_.get(), path, O_PATH | O_CLOEXEC, RESOLVE_BENEATH));
  struct stat status;
  const bool there = peek && fstat(peek.get(), &status) == 0;
  if (!there && (errno != ENOENT || !options.create)) return failed(errno);
  if (there && !S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    return invalid("open ", quoted(name), ": neither a regular file nor a block device");
  }
  int flags = (options.writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  if (options.create) flags |= O_CREAT;
  if (options.create && !options.replace) flags |= O_EXCL;
  // A block device that is mounted or part of a volume is not ours to write.
  if (there && S_ISBLK(status.st_mode) && options.writable && options.lock && !options.share_lock) {
    flags |= O_EXCL;
  }
  const int fd = open_at(folder_.get(), path, flags, RESOLVE_BENEATH);
  if (fd < 0) return failed(errno);
  Result<std::unique_ptr<File>> file = File::adopt(reactor_, fd, std::string(name), options);
  if (!file && options.create && !options.replace) {
    const std::string folder(folder_of(path));
    const Descriptor parent(
        open_at(folder_.get(), folder, O_PATH | O_DIRECTORY | O_CLOEXEC, RESOLVE_BENEATH));
    if (parent) unlinkat(parent.get(), path.substr(path.rfind('/') + 1).c_str(), 0);
  }
  return file;
}

Result<std::unique_ptr<File>> RootedOpener::open(std::string_view name, FileOptions options) {
  BYRE_TRY(path, inside(name));
  return open_inside(path, name, options);
}

Result<std::unique_ptr<File>> RootedOpener::open_named_by_image(std::string_view image_name,
                                                                std::string_view name,
                                                                FileOptions options) {
  const std::string resolved = resolve_name(image_name, name);
  // First: what lies elsewhere is not even looked at.
  BYRE_TRY(path, inside(resolved));
  if (Result<void> allowed = gate_.allows(image_name, name); !allowed) {
    return std::move(allowed).error();
  }
  options.create = options.replace = false;
  return open_inside(path, resolved, options);
}

Result<void> RootedOpener::allows_devices(std::string_view image_name,
                                          std::string_view name) const {
  return gate_.allows_devices(image_name, name);
}

}  // namespace byre
