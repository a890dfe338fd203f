// SPDX-License-Identifier: Apache-2.0
#include "cli/live_line.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "io/descriptor.h"

namespace byre {
namespace {

TEST(LiveLine, IsNeverAsWideAsTheTerminal) {
  const std::vector<std::string> parts = {"12 clients", "3 failed", "123456 requests (1200/s)",
                                          "read 12.5 MiB/s"};
  std::string before;
  for (size_t width = 0; width < 120; ++width) {
    const std::string line = fit_line(parts, width);
    EXPECT_TRUE(width == 0 ? line.empty() : line.size() < width) << width << " " << line;
    EXPECT_LE(before.size(), line.size());
    before = line;
  }
  EXPECT_EQ(before, "12 clients, 3 failed, 123456 requests (1200/s), read 12.5 MiB/s");
}

TEST(LiveLine, APartThatIsTooLongLeavesItsPlaceToTheNext) {
  EXPECT_EQ(fit_line({"1 client", "", "a part that does not fit", "short"}, 20), "1 client, short");
  EXPECT_EQ(fit_line({"1234567890"}, 5), "1234");
  EXPECT_EQ(fit_line({}, 5), "");
}

TEST(LiveLine, WithoutATerminalTheWidthIsTheUsualOne) {
  const Descriptor null(open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_EQ(terminal_width(null.get()), 80u);
}

}  // namespace
}  // namespace byre
