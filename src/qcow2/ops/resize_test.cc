// SPDX-License-Identifier: Apache-2.0
/// Disks that become smaller and larger: nothing old ever shows, nothing is lost that stays, and
/// the file gives back what was cut off.
#include <gtest/gtest.h>

#include "format/header.h"
#include "qcow2/memory_image_testing.h"

namespace byre {
namespace {

class Resize : public MemoryImageTest {
 protected:
  std::unique_ptr<Image> open() {
    Result<std::unique_ptr<Image>> image = try_open();
    EXPECT_TRUE(image) << image.error().message();
    return image ? *std::move(image) : nullptr;
  }
  void resize(Image& image, uint64_t size) {
    const Result<void> done = reactor_->run(image.resize(size));
    ASSERT_TRUE(done) << done.error().message();
  }
  void close_and_check(Image& image) {
    close(image);
    expect_sound();
  }
};

// Defect E2: the bytes behind the new end, in the cluster that stays, are zeros in the file, so
// that they are zeros whoever makes the disk grow again.
TEST_F(Resize, E2AShrunkDiskThatGrowsAgainShowsNoOldBytes) {
  for (const bool extended : {false, true}) {
    create({.size = 1 * MiB, .extended_l2 = extended});
    auto image = open();
    ASSERT_TRUE(image);
    write(*image, 0, 1 * MiB, 0x22);
    resize(*image, 98304);
    EXPECT_EQ(image->size(), 98304u);
    const Result<Extent> last = reactor_->run(image->status(65536, 98304 - 65536));
    ASSERT_TRUE(last && last->host_offset);
    std::byte tail[512];
    memory_.peek(*last->host_offset + 32768, tail);
    if (!extended) EXPECT_EQ(std::to_integer<int>(tail[0]), 0);
    resize(*image, 1 * MiB);
    EXPECT_EQ(value_at(*image, 0, 98304), 0x22);
    EXPECT_EQ(value_at(*image, 98304, 1 * MiB - 98304), 0);
    close_and_check(*image);
    ASSERT_TRUE(reactor_->run(memory_.resize(0)));
  }
}

TEST_F(Resize, TheFileEndsBehindTheLastClusterInUse) {
  create({.size = 64 * MiB});
  auto image = open();
  ASSERT_TRUE(image);
  write(*image, 0, 64 * MiB, 0x33);
  resize(*image, 1 * MiB);
  EXPECT_LT(memory_.size(), 2 * MiB);
  EXPECT_EQ(value_at(*image, 0, 1 * MiB), 0x33);
  // It goes on as ever.
  write(*image, 0, 1 * MiB, 0x44);
  resize(*image, 4 * MiB);
  write(*image, 3 * MiB, 1 * MiB, 0x55);
  EXPECT_EQ(value_at(*image, 1 * MiB, 2 * MiB), 0);
  close_and_check(*image);
  EXPECT_LT(memory_.size(), 3 * MiB);
}

// The new end lies inside one of many L2 tables; those behind it go whole.
TEST_F(Resize, AcrossManyL2Tables) {
  for (const uint64_t size :
       {512 * KiB, 512 * KiB + 512, 32 * KiB, 32 * KiB - 512, uint64_t{512}}) {
    create({.size = 1 * MiB, .cluster_size = 512});
    auto image = open();
    ASSERT_TRUE(image);
    write(*image, 0, 1 * MiB, 0x66);
    resize(*image, size);
    EXPECT_EQ(value_at(*image, 0, size), 0x66) << size;
    resize(*image, 2 * MiB);
    EXPECT_EQ(value_at(*image, size, 2 * MiB - size), 0) << size;
    write(*image, 1 * MiB, 4096, 0x77);
    close_and_check(*image);
    image = open();
    ASSERT_TRUE(image);
    EXPECT_EQ(image->size(), 2 * MiB);
    EXPECT_EQ(value_at(*image, 0, size), 0x66) << size;
    EXPECT_EQ(value_at(*image, 1 * MiB, 4096), 0x77) << size;
    close_and_check(*image);
    ASSERT_TRUE(reactor_->run(memory_.resize(0)));
  }
}

TEST_F(Resize, RequestsBehindTheNewEndAreRefused) {
  create({.size = 1 * MiB});
  auto image = open();
  ASSERT_TRUE(image);
  resize(*image, 512 * KiB);
  const std::vector<std::byte> data(4096);
  EXPECT_FALSE(reactor_->run(image->write(512 * KiB - 512, data, {})));
  EXPECT_FALSE(reactor_->run(image->discard(512 * KiB, 4096, {})));
  EXPECT_EQ(value_at(*image, 512 * KiB, 512), -2);
  close_and_check(*image);
}

// Trap 43: another writer left entries behind the end of the disk; they are no part of a larger
// one.
TEST_F(Resize, Trap43EntriesBehindTheEndDoNotBecomeContents) {
  create({.size = 1 * MiB});
  auto image = open();
  ASSERT_TRUE(image);
  write(*image, 0, 1 * MiB, 0x11);
  close_and_check(*image);
  std::byte size[8];
  store_be(size, 0, uint64_t{100 * KiB});
  memory_.poke(24, size);
  image = open();
  ASSERT_TRUE(image);
  resize(*image, 1 * MiB);
  EXPECT_EQ(value_at(*image, 0, 100 * KiB), 0x11);
  EXPECT_EQ(value_at(*image, 100 * KiB, 924 * KiB), 0);
  close_and_check(*image);
}

}  // namespace
}  // namespace byre
