// SPDX-License-Identifier: Apache-2.0
#include "io/file_opener.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <optional>

#include "io/beneath.h"
#include "io/descriptor.h"

namespace byre {

namespace {

Error refused(OpenPolicy policy, std::string_view image_name, std::string_view name,
              std::string_view why) {
  return Error(Errc::denied,
               cat("image ", quoted(image_name), " names ", quoted(name), ", which the policy ",
                   name_of(policy), " does not allow: ", why),
               EACCES);
}

/// A file that the policy same_directory lets an image have: a name that stays beneath a folder,
/// whatever becomes of the links on the way.
struct Confined {
  Descriptor folder;
  std::string name;
};

Result<Confined> confine(std::string_view image_name, std::string_view name) {
  const auto denied = [&](std::string_view why) {
    return refused(OpenPolicy::same_directory, image_name, name, why);
  };
  const std::string folder_path(folder_of(image_name));
  Descriptor folder(::open(folder_path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!folder) return errno_error(errno, cat("open folder ", quoted(folder_path)));
  if (!name.starts_with('/')) {
    const Descriptor peek(
        open_at(folder.get(), std::string(name), O_PATH | O_CLOEXEC, RESOLVE_BENEATH));
    if (peek) return Confined{std::move(folder), std::string(name)};
    if (errno == ENOSYS) return denied("this kernel cannot confine it to the folder (openat2)");
    if (errno != EXDEV && errno != ELOOP) {
      return errno_error(errno, cat("open ", quoted(resolve_name(image_name, name))));
    }
  }

  // It leaves the folder on its way.  What counts is where it ends.
  const std::string real = real_path_of_new(resolve_name(image_name, name));
  const std::string beside = real_path(folder_path);
  // An image that was reached through a link lies somewhere else, too.
  const std::string real_image = real_path(std::string(image_name));
  for (const std::string& candidate :
       {beside, real_image.empty() ? std::string() : std::string(folder_of(real_image))}) {
    if (candidate.empty() || real.empty()) continue;
    const std::optional<std::string> inside = below(candidate, real);
    if (!inside) continue;
    Descriptor opened(::open(candidate.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!opened) continue;
    return Confined{std::move(opened), *inside};
  }
  // One sentence for what is there and for what is not: an image cannot ask which files exist.
  return denied(cat("it is not in or below the folder of the image, ",
                    quoted(beside.empty() ? folder_path : beside)));
}

Error cannot_open(int number, std::string_view image_name, std::string_view name) {
  if (number == EXDEV || number == ELOOP) {
    return refused(OpenPolicy::same_directory, image_name, name,
                   "it leads out of the folder of the image");
  }
  return errno_error(number, cat("open ", quoted(resolve_name(image_name, name))));
}

/// Without opening it: opening alone may do something when it is a device.
Result<void> check_confined(const Confined& file, std::string_view image_name,
                            std::string_view name) {
  const Descriptor peek(open_at(file.folder.get(), file.name, O_PATH | O_CLOEXEC, RESOLVE_BENEATH));
  struct stat status;
  if (!peek || fstat(peek.get(), &status) != 0) return cannot_open(errno, image_name, name);
  if (S_ISREG(status.st_mode)) return {};
  return refused(OpenPolicy::same_directory, image_name, name, "it is not a regular file");
}

Result<void> check_name(OpenPolicy policy, std::string_view image_name, std::string_view name) {
  if (name.empty() || name.find('\0') != std::string_view::npos) {
    return invalid("image ", quoted(image_name), " names ", quoted(name), ": not a file name");
  }
  if (policy != OpenPolicy::nothing) return {};
  return refused(policy, image_name, name, "no file that an image names is opened");
}

}  // namespace

std::string_view name_of(OpenPolicy policy) {
  switch (policy) {
    case OpenPolicy::nothing:
      return "nothing";
    case OpenPolicy::same_directory:
      return "same-directory";
    case OpenPolicy::any_file:
      break;
  }
  return "any";
}

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
  if (Result<void> checked = check_name(policy_, image_name, name); !checked) {
    return std::move(checked).error();
  }
  const std::string path = resolve_name(image_name, name);
  if (policy_ == OpenPolicy::any_file) return File::open(reactor_, path, options);
  BYRE_TRY(confined, confine(image_name, name));
  if (Result<void> checked = check_confined(confined, image_name, name); !checked) {
    return std::move(checked).error();
  }
  const int flags = (options.writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  const int fd = open_at(confined.folder.get(), confined.name, flags, RESOLVE_BENEATH);
  if (fd < 0) return cannot_open(errno, image_name, name);
  options.create = options.replace = false;
  return File::adopt(reactor_, fd, path, options);
}

Result<void> FileOpener::allows_devices(std::string_view image_name, std::string_view name) const {
  return unsupported("image ", quoted(image_name), " names ", quoted(name),
                     ": only files are opened here");
}

Result<void> SystemGate::allows_devices(std::string_view image_name, std::string_view name) const {
  if (policy_ == OpenPolicy::any_file) return {};
  return refused(policy_, image_name, name,
                 policy_ == OpenPolicy::nothing ? "no file that an image names is opened"
                                                : "its devices may be anywhere");
}

Result<void> SystemGate::allows(std::string_view image_name, std::string_view name) const {
  if (Result<void> checked = check_name(policy_, image_name, name); !checked) return checked;
  if (policy_ == OpenPolicy::any_file) return {};
  BYRE_TRY(confined, confine(image_name, name));
  return check_confined(confined, image_name, name);
}

}  // namespace byre
