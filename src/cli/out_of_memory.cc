// SPDX-License-Identifier: Apache-2.0
#include "cli/out_of_memory.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <new>

namespace byre {
namespace {

constexpr std::string_view kWords =
    ": out of memory: the process may not have as much as this needs; it was ended as by a kill "
    "(raise its memory limit and run it again)\n";

/// Nothing can be made when it is needed.
std::array<char, 512> message;
size_t message_size = 0;

[[noreturn]] void end() {
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, message.data(), message_size);
  _exit(1);
}

}  // namespace

void say_when_memory_runs_out(std::string_view program) {
  program = program.substr(0, message.size() - kWords.size());
  const auto behind = std::copy(program.begin(), program.end(), message.begin());
  message_size =
      static_cast<size_t>(std::copy(kWords.begin(), kWords.end(), behind) - message.begin());
  std::set_new_handler(end);
}

}  // namespace byre
