// SPDX-License-Identifier: Apache-2.0
/// For tests of io: each test body runs on both real reactors, with a folder of its own.
#pragma once

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/prng.h"
#include "coro/scope.h"
#include "io/file.h"
#include "io/reactor.h"

namespace byre {

/// A folder that goes away with the test.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(std::string pattern = "") {
    if (pattern.empty()) pattern = std::filesystem::temp_directory_path() / "byre-XXXXXX";
    BYRE_ASSERT(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// What a shell command that runs in `folder` prints, and its exit code; -1 when it has none.
inline std::pair<int, std::string> run_shell(const TemporaryFolder& folder,
                                             const std::string& command) {
  std::FILE* pipe = popen(cat("cd ", folder.path(), " && ", command).c_str(), "r");
  if (!pipe) return {-1, "popen failed"};
  std::string out;
  char buffer[4096];
  while (const size_t n = std::fread(buffer, 1, sizeof buffer, pipe)) out.append(buffer, n);
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, out};
}

class IoTest : public testing::TestWithParam<ReactorKind> {
 protected:
  void SetUp() override {
    Result<std::unique_ptr<Reactor>> made = make_reactor(GetParam());
    if (!made) GTEST_SKIP() << made.error().message();
    reactor_ = *std::move(made);
  }
  Reactor& reactor() { return *reactor_; }
  /// Runs it to its end and expects no error.
  template <class T>
  auto run(Task<T> task) {
    Result<T> result = reactor_->run(std::move(task));
    if (!result) ADD_FAILURE() << result.error().message();
    if constexpr (!std::is_void_v<T>) return *std::move(result);
  }
  /// Runs it to its end and gives its error.
  template <class T>
  Error error_of(Task<T> task) {
    Result<T> result = reactor_->run(std::move(task));
    if (result) {
      ADD_FAILURE() << "no error";
      return Error(Errc::io, "no error");
    }
    return std::move(result).error();
  }
  std::unique_ptr<File> open(const std::string& name, FileOptions options) {
    Result<std::unique_ptr<File>> file = File::open(reactor(), folder_ / name, options);
    if (!file) ADD_FAILURE() << file.error().message();
    return file ? *std::move(file) : nullptr;
  }

  TemporaryFolder folder_;

 private:
  std::unique_ptr<Reactor> reactor_;
};

inline std::string reactor_name(const testing::TestParamInfo<ReactorKind>& info) {
  return info.param == ReactorKind::uring ? "io_uring" : "threads";
}

#define ON_EVERY_REACTOR(Suite)                                                                  \
  INSTANTIATE_TEST_SUITE_P(Real, Suite, testing::Values(ReactorKind::uring, ReactorKind::posix), \
                           reactor_name)

/// From here on the kernel answers the system call `number` (when its second argument is
/// `argument`, if given) with `error`: what a sandbox or an old file system does.  For a child of a
/// test; it cannot be undone.
inline void forbid_system_call(int number, int error, std::optional<uint32_t> argument = {}) {
  const auto load = [](size_t offset) {
    return sock_filter{BPF_LD | BPF_W | BPF_ABS, 0, 0, static_cast<uint32_t>(offset)};
  };
  const auto unless = [](uint32_t value, uint8_t skip) {
    return sock_filter{BPF_JMP | BPF_JEQ | BPF_K, 0, skip, value};
  };
  std::vector<sock_filter> filter = {load(offsetof(seccomp_data, nr)),
                                     unless(static_cast<uint32_t>(number), argument ? 3 : 1)};
  if (argument) {
    filter.push_back(load(offsetof(seccomp_data, args[1])));
    filter.push_back(unless(*argument, 1));
  }
  filter.push_back({BPF_RET, 0, 0, SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)});
  filter.push_back({BPF_RET, 0, 0, SECCOMP_RET_ALLOW});
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  BYRE_ASSERT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  BYRE_ASSERT(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

/// `size` bytes that depend on `seed`.
inline std::vector<std::byte> noise(size_t size, uint64_t seed = 1) {
  Prng prng(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(prng.next());
  return bytes;
}

}  // namespace byre
