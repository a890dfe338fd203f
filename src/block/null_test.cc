// SPDX-License-Identifier: Apache-2.0
#include "block/null.h"

#include <gtest/gtest.h>

#include <vector>

#include "sim/sim_reactor.h"

namespace byre {
namespace {

class NullTest : public testing::Test {
 protected:
  SimReactor reactor_{1};
  std::vector<std::byte> data_ = std::vector<std::byte>(4096, std::byte{7});
};

TEST_F(NullTest, ItsDefaultIsAGibibyteOfZerosAtOnce) {
  NullDevice disk(reactor_, NullOptions{});
  EXPECT_EQ(disk.size(), 1 * GiB);
  EXPECT_TRUE(reactor_.run(disk.read(512, data_, IoTag::none)));
  EXPECT_TRUE(is_zero(data_));
  const Result<Extent> extent = reactor_.run(disk.status(0, 1 * GiB));
  ASSERT_TRUE(extent);
  EXPECT_TRUE(extent->zero && !extent->data);
  EXPECT_EQ(reactor_.now().ns, 0);
}

TEST_F(NullTest, WithoutReadZeroesNothingIsSaidOfItsContentsYetNoOldBufferIsShown) {
  NullDevice disk(reactor_, NullOptions{.read_zeroes = false});
  EXPECT_TRUE(reactor_.run(disk.read(512, data_, IoTag::none)));
  EXPECT_TRUE(is_zero(data_));
  const Result<Extent> extent = reactor_.run(disk.status(0, 4096));
  ASSERT_TRUE(extent);
  EXPECT_TRUE(extent->data && !extent->zero);
  EXPECT_FALSE(disk.new_space_is_zero());
}

TEST_F(NullTest, AFixedOneFailsWhatPassesItsEnd) {
  NullDevice disk(reactor_, NullOptions{.size = 8192, .fixed = true});
  EXPECT_FALSE(disk.can_grow());
  EXPECT_TRUE(reactor_.run(disk.write(4096, data_, {})));
  const auto refused = [](const Result<void>& result) {
    return !result && (result.error().code() == Errc::invalid);
  };
  EXPECT_TRUE(refused(reactor_.run(disk.write(4097, data_, {}))));
  EXPECT_TRUE(refused(reactor_.run(disk.read(UINT64_MAX, data_, IoTag::none))));
  EXPECT_TRUE(refused(reactor_.run(disk.zero(0, 8193, {}))));
  EXPECT_TRUE(refused(reactor_.run(disk.discard(8192, 1, {}))));
  EXPECT_FALSE(reactor_.run(disk.status(8192, 1)));
  EXPECT_FALSE(reactor_.run(disk.resize(4096)));
  EXPECT_EQ(disk.size(), 8192u);
}

TEST_F(NullTest, AnyOtherGrowsUpToTheLargestFile) {
  NullDevice disk(reactor_, 100);
  EXPECT_TRUE(disk.can_grow());
  EXPECT_TRUE(reactor_.run(disk.write(1000, data_, {})));
  EXPECT_EQ(disk.size(), 5096u);
  EXPECT_TRUE(reactor_.run(disk.resize(10)));
  EXPECT_EQ(disk.size(), 10u);
  EXPECT_FALSE(reactor_.run(disk.zero(INT64_MAX, 1, {})));
}

TEST_F(NullTest, EachRequestTakesTheLatencySideBySide) {
  NullDevice disk(reactor_, NullOptions{.latency_ns = kSecond});
  const auto took = [&](Task<void> task) {
    const Instant start = reactor_.now();
    EXPECT_TRUE(reactor_.run(std::move(task)));
    return reactor_.now() - start;
  };
  EXPECT_GE(took(disk.read(0, data_, IoTag::none)), kSecond);
  EXPECT_GE(took(disk.write(0, data_, {})), kSecond);
  EXPECT_GE(took(disk.zero(0, 512, {})), kSecond);
  EXPECT_GE(took(disk.discard(0, 512, {})), kSecond);
  EXPECT_GE(took(disk.flush(IoTag::flush)), kSecond);

  Scope scope(reactor_.ready());
  for (int i = 0; i < 8; ++i)
    scope.spawn(disk.read(0, MutableBytes(data_).first(512), IoTag::none));
  EXPECT_LT(took(scope.join()), 2 * kSecond);
}

TEST_F(NullTest, ItCannotCompress) {
  NullDevice disk(reactor_, NullOptions{});
  const Result<void> written = reactor_.run(disk.write(0, data_, {.compressed = true}));
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code(), Errc::unsupported);
}

}  // namespace
}  // namespace byre
