// SPDX-License-Identifier: Apache-2.0
#include "export/background.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include "io/descriptor.h"

namespace byre {

namespace {

constexpr const char* kReadyVariable = "BYRE_READY_FD";

}  // namespace

Result<int> start_in_background(std::vector<std::string> words) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return errno_error(errno, "pipe");
  const Descriptor from_child(ends[0]);
  Descriptor to_parent(ends[1]);
  if (fcntl(to_parent.get(), F_SETFD, 0) != 0) return errno_error(errno, "fcntl");

  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  setenv(kReadyVariable, cat(to_parent.get()).c_str(), 1);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  pid_t child = 0;
  const int failed =
      posix_spawn(&child, "/proc/self/exe", nullptr, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  to_parent.reset();
  if (failed != 0) return errno_error(failed, "start the server");

  char byte;
  ssize_t got;
  do {
    got = read(from_child.get(), &byte, 1);
  } while (got < 0 && errno == EINTR);
  if (got == 1) return 0;
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : 1;
}

int take_ready_descriptor() {
  const char* text = getenv(kReadyVariable);
  if (text == nullptr) return -1;
  const std::string_view digits = text;
  int fd = -1;
  const auto [end, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), fd);
  const bool good = problem == std::errc() && end == digits.data() + digits.size() && fd >= 3;
  unsetenv(kReadyVariable);
  if (!good) return -1;
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  return fd;
}

Result<void> detach(int ready) {
  const Descriptor parent(ready);
  const Descriptor null(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (null) {
    for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(null.get(), fd);
  }
  const char byte = 0;
  if (write(parent.get(), &byte, 1) != 1) return errno_error(errno, "tell the parent process");
  return {};
}

Result<void> write_pid_file(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return errno_error(errno, cat("Failed to store PID in ", quoted(path)));
  const Descriptor file(fd);
  const std::string text = cat(getpid(), "\n");
  if (write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return errno_error(errno, cat("Failed to store PID in ", quoted(path)));
  }
  return {};
}

}  // namespace byre
