// SPDX-License-Identifier: Apache-2.0
#include "block/detect_zeroes.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "block/listening.h"
#include "io/reactor.h"

namespace byre {
namespace {

TEST(DetectZeroes, AWriteOfZerosBecomesOneToZeroAndOthersStay) {
  auto made = make_reactor();
  ASSERT_TRUE(made);
  Reactor& reactor = **made;
  const std::vector<std::byte> zeros(70'000);
  std::vector<std::byte> last = zeros;
  last.back() = std::byte{1};
  const auto run = [&](DetectZeroesMode mode) {
    std::vector<std::string> heard;
    DetectZeroes device(std::make_unique<Listening>(reactor, heard), mode);
    EXPECT_TRUE(reactor.run(device.write(512, zeros, {})));
    EXPECT_TRUE(reactor.run(device.write(0, zeros, {.fua = true})));
    EXPECT_TRUE(reactor.run(device.write(0, last, {.fua = true})));
    EXPECT_TRUE(reactor.run(device.write(7, Bytes(zeros).first(0), {})));
    EXPECT_TRUE(reactor.run(device.write(0, zeros, {.compressed = true})));
    return heard;
  };
  const std::vector<std::string> rest = {"write 0 70000 fua", "write 7 0",
                                         "write 0 70000 compressed"};
  const auto with_rest = [&](std::vector<std::string> first) {
    first.insert(first.end(), rest.begin(), rest.end());
    return first;
  };
  EXPECT_EQ(run(DetectZeroesMode::off), with_rest({"write 512 70000", "write 0 70000 fua"}));
  EXPECT_EQ(run(DetectZeroesMode::on), with_rest({"zero 512 70000", "zero 0 70000 fua"}));
  EXPECT_EQ(run(DetectZeroesMode::unmap),
            with_rest({"zero 512 70000 unmap", "zero 0 70000 unmap fua"}));
}

}  // namespace
}  // namespace byre
