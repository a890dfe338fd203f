// SPDX-License-Identifier: Apache-2.0
#include "block/whole_sectors.h"

#include <gtest/gtest.h>

#include "block/memory.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

class WholeSectorsTest : public testing::Test {
 protected:
  WholeSectorsTest() {
    auto memory = std::make_unique<MemoryDevice>(reactor_, 1000);
    memory_ = memory.get();
    memory_->poke(0, std::vector<std::byte>(1000, std::byte{1}));
    disk_ = std::make_unique<WholeSectors>(std::move(memory));
  }
  std::vector<std::byte> read(uint64_t offset, uint64_t length) {
    std::vector<std::byte> data(length, std::byte{9});
    EXPECT_TRUE(reactor_.run(disk_->read(offset, data, IoTag::none)));
    return data;
  }
  std::vector<std::byte> expected(uint64_t ones, uint64_t zeros) {
    std::vector<std::byte> data(ones, std::byte{1});
    data.resize(ones + zeros);
    return data;
  }

  SimReactor reactor_{1};
  MemoryDevice* memory_;
  std::unique_ptr<WholeSectors> disk_;
};

TEST_F(WholeSectorsTest, TheRestOfTheLastSectorIsZeros) {
  EXPECT_EQ(disk_->size(), 1024u);
  EXPECT_EQ(read(0, 1024), expected(1000, 24));
  EXPECT_EQ(read(990, 34), expected(10, 24));
  EXPECT_EQ(read(1000, 24), expected(0, 24));
  EXPECT_EQ(read(1010, 10), expected(0, 10));
  EXPECT_EQ(read(0, 1000), expected(1000, 0));
  std::vector<std::byte> more(1025);
  EXPECT_FALSE(reactor_.run(disk_->read(0, more, IoTag::none)));
}

TEST_F(WholeSectorsTest, TheMapSaysWhereItBegins) {
  const Result<Extent> own = reactor_.run(disk_->status(0, 1024));
  ASSERT_TRUE(own);
  EXPECT_LE(own->length, 1000u);
  const Result<Extent> rest = reactor_.run(disk_->status(1000, 24));
  ASSERT_TRUE(rest);
  EXPECT_EQ(rest->length, 24u);
  EXPECT_TRUE(rest->zero && !rest->data);
}

TEST_F(WholeSectorsTest, OnlyAWriteMakesItLonger) {
  EXPECT_TRUE(reactor_.run(disk_->zero(0, 1024, {})));
  EXPECT_TRUE(reactor_.run(disk_->discard(512, 512, {})));
  EXPECT_TRUE(reactor_.run(disk_->write(0, std::vector<std::byte>(1000, std::byte{1}), {})));
  EXPECT_EQ(memory_->size(), 1000u);
  EXPECT_TRUE(reactor_.run(disk_->write(1010, std::vector<std::byte>(4, std::byte{1}), {})));
  EXPECT_EQ(memory_->size(), 1024u);
  auto data = expected(1000, 24);
  std::fill(data.begin() + 1010, data.begin() + 1014, std::byte{1});
  EXPECT_EQ(read(0, 1024), data);
  EXPECT_EQ(disk_->size(), 1024u);
}

}  // namespace
}  // namespace byre
