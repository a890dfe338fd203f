// SPDX-License-Identifier: Apache-2.0
#include "io/gate.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "io/descriptor.h"

namespace byre {

namespace {

std::string_view folder_of(std::string_view path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Error denied(std::string_view image_name, std::string_view name, std::string_view why) {
  return Error(Errc::denied, cat("image ", quoted(image_name), " names ", quoted(name), ": ", why),
               EACCES);
}

int open_beneath(int folder, const std::string& name, int flags) {
  open_how how{};
  how.flags = static_cast<uint64_t>(flags);
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  return static_cast<int>(syscall(SYS_openat2, folder, name.c_str(), &how, sizeof how));
}

}  // namespace

std::string resolve_name(std::string_view image_name, std::string_view name) {
  const size_t slash = image_name.rfind('/');
  if (name.starts_with('/') || slash == std::string_view::npos) return std::string(name);
  return cat(image_name.substr(0, slash + 1), name);
}

Result<std::unique_ptr<File>> SystemGate::open(std::string_view name, FileOptions options) {
  return File::open(reactor_, std::string(name), options);
}

Result<std::unique_ptr<File>> SystemGate::open_named_by_image(std::string_view image_name,
                                                              std::string_view name,
                                                              FileOptions options) {
  if (name.empty() || name.find('\0') != std::string_view::npos) {
    return invalid("image ", quoted(image_name), " names ", quoted(name), ": not a file name");
  }
  const std::string path = resolve_name(image_name, name);
  switch (policy_) {
    case OpenPolicy::nothing:
      return denied(image_name, name, "opening what an image names is not allowed here");
    case OpenPolicy::any_file:
      return File::open(reactor_, path, options);
    case OpenPolicy::same_directory:
      break;
  }

  const std::string folder_path(folder_of(image_name));
  const Descriptor folder(::open(folder_path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!folder) return errno_error(errno, cat("open folder ", quoted(folder_path)));
  // An absolute name inside the folder, as qemu-img writes it when it is told one, is fine, too.
  std::string_view inside = name;
  if (inside.starts_with('/')) {
    const std::string prefix = folder_path == "/" ? "/" : folder_path + "/";
    if (!inside.starts_with(prefix)) {
      return denied(image_name, name, "only files beside the image may be opened");
    }
    inside.remove_prefix(prefix.size());
    while (inside.starts_with('/')) inside.remove_prefix(1);
  }
  const std::string relative(inside);
  const auto problem = [&](int number) {
    if (number == EXDEV || number == ELOOP) {
      return denied(image_name, name, "it leads out of the folder of the image");
    }
    if (number == ENOSYS) {
      return denied(image_name, name, "this kernel cannot confine it to the folder (openat2)");
    }
    return errno_error(number, cat("open ", quoted(path)));
  };
  // First without opening it: opening alone may do something when it is a device.
  {
    const Descriptor peek(open_beneath(folder.get(), relative, O_PATH | O_CLOEXEC));
    if (!peek) return problem(errno);
    struct stat status;
    if (fstat(peek.get(), &status) != 0) return problem(errno);
    if (!S_ISREG(status.st_mode)) return denied(image_name, name, "it is not a regular file");
  }
  const int flags = (options.writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  const int fd = open_beneath(folder.get(), relative, flags);
  if (fd < 0) return problem(errno);
  options.create = options.replace = false;
  return File::adopt(reactor_, fd, path, options);
}

}  // namespace byre
