// SPDX-License-Identifier: Apache-2.0
#include "daemon/metrics_page.h"

#include <gtest/gtest.h>

namespace byre {
namespace {

bool has_line(const std::string& page, const std::string& line) {
  return ("\n" + page).find("\n" + line + "\n") != std::string::npos;
}

TEST(MetricsPage, EachCountHasItsName) {
  nbd::Statistics server{.connections = 7,
                         .connections_open = 2,
                         .connections_waiting = 1,
                         .connections_failed = 3,
                         .requests = 100,
                         .requests_running = 4,
                         .requests_failed = 5,
                         .reads = 60,
                         .writes = 20,
                         .flushes = 10,
                         .bytes_read = 1ull << 40,
                         .bytes_written = 4096,
                         .bytes_zeroed = 512,
                         .bytes_trimmed = 1024};
  const std::string page =
      metrics_page({.version = "1.2.3", .export_name = "a \"b\"\n\\", .server = &server});
  EXPECT_TRUE(has_line(page, R"(byre_build_info{version="1.2.3"} 1)")) << page;
  const std::string name = R"(export="a \"b\"\n\\")";
  for (const auto& [metric, labels, value] :
       {std::tuple("connections", ",state=\"open\"", "2"),
        std::tuple("connections", ",state=\"waiting\"", "1"),
        std::tuple("connections_total", ",result=\"accepted\"", "7"),
        std::tuple("connections_total", ",result=\"failed\"", "3"),
        std::tuple("requests_running", "", "4"),
        std::tuple("requests_total", ",operation=\"read\"", "60"),
        std::tuple("requests_total", ",operation=\"write\"", "20"),
        std::tuple("requests_total", ",operation=\"flush\"", "10"),
        std::tuple("requests_total", ",operation=\"other\"", "10"),
        std::tuple("requests_failed_total", "", "5"),
        std::tuple("bytes_total", ",operation=\"read\"", "1099511627776"),
        std::tuple("bytes_total", ",operation=\"write\"", "4096"),
        std::tuple("bytes_total", ",operation=\"zero\"", "512"),
        std::tuple("bytes_total", ",operation=\"trim\"", "1024")}) {
    EXPECT_TRUE(has_line(page, cat("byre_export_", metric, "{", name, labels, "} ", value)))
        << metric << labels << "\n"
        << page;
  }
  EXPECT_TRUE(has_line(page, "# TYPE byre_export_bytes_total counter")) << page;
  EXPECT_TRUE(has_line(page, "# TYPE byre_export_connections gauge")) << page;
  EXPECT_EQ(page.find("byre_image"), std::string::npos);  // A raw disk.
}

}  // namespace
}  // namespace byre
