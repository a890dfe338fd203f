// SPDX-License-Identifier: Apache-2.0
#include "block/compress.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "block/listening.h"
#include "io/reactor.h"

namespace byre {
namespace {

TEST(Compress, WholeClustersAreCompressedAndEdgesAreNot) {
  auto made = make_reactor();
  ASSERT_TRUE(made);
  constexpr uint64_t kSize = 10'500;  // The last cluster is a part of one.
  const auto write = [&](uint64_t offset, size_t length, WriteOptions options = {}) {
    std::vector<std::string> heard;
    Compress device(std::make_unique<Listening>(**made, heard, kSize), 1000);
    const std::vector<std::byte> data(length, std::byte{1});
    EXPECT_TRUE((*made)->run(device.write(offset, data, options)));
    return heard;
  };
  using Heard = std::vector<std::string>;
  EXPECT_EQ(write(1000, 2000), (Heard{"write 1000 2000 compressed"}));
  EXPECT_EQ(write(1000, 999), (Heard{"write 1000 999"}));
  EXPECT_EQ(write(1001, 999), (Heard{"write 1001 999"}));
  EXPECT_EQ(write(1001, 1998), (Heard{"write 1001 1998"}));
  EXPECT_EQ(write(999, 1001), (Heard{"write 999 1", "write 1000 1000 compressed"}));
  EXPECT_EQ(write(1000, 1001), (Heard{"write 1000 1000 compressed", "write 2000 1"}));
  EXPECT_EQ(write(500, 3000, {.fua = true}),
            (Heard{"write 500 500 fua", "write 1000 2000 compressed fua", "write 3000 500 fua"}));
  EXPECT_EQ(write(10'000, 500), (Heard{"write 10000 500 compressed"}));
  EXPECT_EQ(write(9'999, 501), (Heard{"write 9999 1", "write 10000 500 compressed"}));
  EXPECT_EQ(write(10'000, 499), (Heard{"write 10000 499"}));
  EXPECT_EQ(write(10'001, 499), (Heard{"write 10001 499"}));
  EXPECT_EQ(write(0, 0), (Heard{"write 0 0"}));
}

}  // namespace
}  // namespace byre
