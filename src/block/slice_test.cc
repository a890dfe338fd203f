// SPDX-License-Identifier: Apache-2.0
#include "block/slice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/units.h"
#include "block/memory.h"

namespace byre {
namespace {

TEST(Slice, SeesItsPartAndNothingElse) {
  auto made = make_reactor();
  ASSERT_TRUE(made);
  Reactor& reactor = **made;
  std::vector<std::byte> want(100'000, std::byte{7});
  auto memory = std::make_unique<MemoryDevice>(reactor, want);
  const MemoryDevice& below = *memory;
  constexpr uint64_t kAt = 1000, kSize = 50'000;
  Slice slice(std::move(memory), kAt, kSize);
  EXPECT_EQ(slice.size(), kSize);
  EXPECT_FALSE(slice.can_grow());

  constexpr size_t kLength = 500;
  const std::vector<std::byte> data(kLength, std::byte{1});
  EXPECT_TRUE(reactor.run(slice.write(0, data, {})));
  EXPECT_TRUE(reactor.run(slice.write(kSize - kLength, data, {})));
  EXPECT_TRUE(reactor.run(slice.zero(10'000, 600, {})));
  std::fill_n(want.begin() + kAt, kLength, std::byte{1});
  std::fill_n(want.begin() + kAt + kSize - kLength, kLength, std::byte{1});
  std::fill_n(want.begin() + kAt + 10'000, 600, std::byte{0});
  EXPECT_EQ(below.bytes(), want);

  std::vector<std::byte> read(kSize);
  EXPECT_TRUE(reactor.run(slice.read(0, read, IoTag::read_guest)));
  EXPECT_TRUE(std::equal(read.begin(), read.end(), want.begin() + kAt));
  const Result<Extent> extent = reactor.run(slice.status(0, kSize));
  ASSERT_TRUE(extent);
  EXPECT_GT(extent->length, 0u);
  EXPECT_LE(extent->length, kSize);

  // One byte too far, from either side of the end.
  for (const auto& [offset, length] :
       {std::pair<uint64_t, uint64_t>{kSize, 1}, {kSize - 499, 500}, {UINT64_MAX, 1}}) {
    std::vector<std::byte> bytes(length);
    EXPECT_FALSE(reactor.run(slice.read(offset, bytes, IoTag::read_guest)));
    EXPECT_FALSE(reactor.run(slice.write(offset, bytes, {})));
    EXPECT_FALSE(reactor.run(slice.zero(offset, length, {})));
    EXPECT_FALSE(reactor.run(slice.discard(offset, length, {})));
    EXPECT_FALSE(reactor.run(slice.allocate(offset, length)));
    EXPECT_FALSE(reactor.run(slice.status(offset, length)));
  }
  EXPECT_FALSE(reactor.run(slice.resize(kSize + 1)));
  EXPECT_EQ(below.bytes(), want);
  EXPECT_TRUE(reactor.run(slice.close()));
}

}  // namespace
}  // namespace byre
