// SPDX-License-Identifier: Apache-2.0
#include "cli/live_line.h"

#include <sys/ioctl.h>

namespace byre {

size_t terminal_columns(int fd) {
  winsize size{};
  return ioctl(fd, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

size_t terminal_width(int fd) {
  constexpr size_t kUsual = 80;
  const size_t columns = terminal_columns(fd);
  return columns == 0 ? kUsual : columns;
}

std::string fit_line(const std::vector<std::string>& parts, size_t width) {
  const size_t most = width > 1 ? width - 1 : 0;
  std::string line;
  for (const std::string& part : parts) {
    if (part.empty()) continue;
    const std::string longer = line.empty() ? part : line + ", " + part;
    if (longer.size() <= most) line = longer;
    if (line.empty()) return part.substr(0, most);
  }
  return line;
}

}  // namespace byre
