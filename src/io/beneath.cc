// SPDX-License-Identifier: Apache-2.0
#include "io/beneath.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>

#include "base/cat.h"
#include "io/descriptor.h"

namespace byre {

std::string_view folder_of(std::string_view path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

int open_at(int folder, const std::string& name, int flags, uint64_t resolve) {
  constexpr uint64_t kMode = 0600;
  open_how how{};
  how.flags = static_cast<uint64_t>(flags);
  how.mode = (flags & O_CREAT) != 0 ? kMode : 0;
  how.resolve = resolve | RESOLVE_NO_MAGICLINKS;
  return static_cast<int>(syscall(SYS_openat2, folder, name.c_str(), &how, sizeof how));
}

std::string real_path(const std::string& path) {
  const Descriptor file(open_at(AT_FDCWD, path, O_PATH | O_CLOEXEC, 0));
  if (!file) return {};
  std::string target(PATH_MAX, '\0');
  const std::string link = cat("/proc/self/fd/", file.get());
  const ssize_t length = readlink(link.c_str(), target.data(), target.size());
  if (length <= 0 || target[0] != '/' || static_cast<size_t>(length) == target.size()) return {};
  target.resize(static_cast<size_t>(length));
  return target;
}

std::string real_path_of_new(const std::string& path) {
  std::string real = real_path(path);
  if (!real.empty()) return real;
  real = real_path(std::string(folder_of(path)));
  if (real.empty()) return {};
  const std::string_view last = std::string_view(path).substr(path.rfind('/') + 1);
  if (last.empty() || last == "." || last == "..") return {};
  return cat(real == "/" ? "" : real, "/", last);
}

std::optional<std::string> below(const std::string& folder, const std::string& path) {
  const std::string prefix = folder == "/" ? "/" : folder + "/";
  if (!path.starts_with(prefix) || path.size() == prefix.size()) return std::nullopt;
  return path.substr(prefix.size());
}

}  // namespace byre
