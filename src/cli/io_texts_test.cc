// SPDX-License-Identifier: Apache-2.0
#include "cli/io_texts.h"

#include <gtest/gtest.h>

#include <array>

#include "base/units.h"
#include "io/reactor.h"

namespace byre {
namespace {

TEST(IoTexts, SizesHaveThreeDecimalsOrNone) {
  EXPECT_EQ(io_size_text(0), "0 bytes");
  EXPECT_EQ(io_size_text(40), "40 bytes");
  EXPECT_EQ(io_size_text(41.310146), "41.310146 bytes");
  EXPECT_EQ(io_size_text(1e-9), "0 bytes");
  EXPECT_EQ(io_size_text(1536), "1.500 KiB");
  EXPECT_EQ(io_size_text(64.0 * KiB), "64 KiB");
  EXPECT_EQ(io_size_text(2.0 * KiB * MiB), "2 GiB");
  EXPECT_EQ(io_size_text(3.0 * GiB * GiB), "3 EiB");
}

TEST(IoTexts, AReportHasTwoLines) {
  EXPECT_EQ(
      io_report_text(
          {.verb = "wrote", .offset = 4096, .length = 65536, .nanoseconds = 20 * kMillisecond}),
      "wrote 65536/65536 bytes at offset 4096\n"
      "64 KiB, 1 ops; 00.02 sec (3.125 MiB/sec and 50.0000 ops/sec)\n");
  EXPECT_EQ(io_report_text({.verb = "read",
                            .offset = 0,
                            .length = 512,
                            .nanoseconds = 3723 * kSecond + 450 * kMillisecond}),
            "read 512/512 bytes at offset 0\n"
            "512 bytes, 1 ops; 1:02:03.45 (0.137507 bytes/sec and 0.0003 ops/sec)\n");
  EXPECT_EQ(io_report_text({.verb = "read",
                            .offset = 0,
                            .length = 512,
                            .nanoseconds = 10 * kMillisecond,
                            .machine = true}),
            "512,1,0:00:00.01,51200.000,100.000\n");
}

TEST(IoTexts, ADumpShowsBytesAndLettersAndDigits) {
  std::array<std::byte, 18> bytes{std::byte{0x20}, std::byte{0x41}, std::byte{0x7e},
                                  std::byte{0x39}};
  EXPECT_EQ(io_dump_text(65500, bytes),
            "0000ffdc:  20 41 7e 39 00 00 00 00 00 00 00 00 00 00 00 00  .A.9............\n"
            "0000ffec:  00 00  ..\n");
  EXPECT_EQ(io_dump_text(0, {}), "");
}

TEST(IoTexts, MapLines) {
  EXPECT_EQ(io_map_text(0, 65536, true),
            "64 KiB (0x10000) bytes     allocated at offset 0 bytes (0x0)\n");
  EXPECT_EQ(io_map_text(65536, 983040, false),
            "960 KiB (0xf0000) bytes not allocated at offset 64 KiB (0x10000)\n");
}

}  // namespace
}  // namespace byre
