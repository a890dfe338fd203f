// SPDX-License-Identifier: Apache-2.0
/// Disks that give up all that they have: what is below shows, snapshots stay, and the file gives
/// back its space.
#include "qcow2/ops/empty.h"

#include "qcow2/memory_image_testing.h"

namespace byre {
namespace {

class Empty : public MemoryImageTest {
 protected:
  /// Over a disk that is full of `value`.
  std::unique_ptr<Image> open_over(int value, uint64_t size) {
    below_ = std::make_unique<MemoryDevice>(*reactor_, size, "below");
    const std::vector<std::byte> bytes(size, static_cast<std::byte>(value));
    below_->poke(0, bytes);
    auto image = reactor_->run(Image::open_over(std::make_unique<ScriptedDisk>(memory_, script_),
                                                opener_, {.writable = true}, Child::to(*below_)));
    EXPECT_TRUE(image) << image.error().message();
    return image ? *std::move(image) : nullptr;
  }
  void empty(Image& image) {
    const Result<void> done = reactor_->run(image.empty());
    ASSERT_TRUE(done) << done.error().message();
  }
  std::unique_ptr<MemoryDevice> below_;
};

TEST_F(Empty, WhatIsBelowShowsInImagesOfEveryShape) {
  for (const CreateOptions& options :
       {CreateOptions{.size = 1 * MiB}, CreateOptions{.size = 1 * MiB, .version = 2},
        CreateOptions{.size = 1 * MiB, .cluster_size = 512, .refcount_bits = 1},
        CreateOptions{.size = 1 * MiB, .extended_l2 = true},
        CreateOptions{.size = 1 * MiB, .lazy_refcounts = true}}) {
    create(options);
    const uint64_t before = memory_.size();
    auto image = open_over(7, 1 * MiB);
    ASSERT_TRUE(image);
    write(*image, 0, 600 * KiB, 0x22);
    const std::vector<std::byte> cluster(options.cluster_size, std::byte{0x33});
    ASSERT_TRUE(reactor_->run(image->write(704 * KiB, cluster, {.compressed = true})));
    ASSERT_TRUE(reactor_->run(image->zero(900 * KiB, 64 * KiB, {})));
    empty(*image);
    EXPECT_EQ(value_at(*image, 0, 1 * MiB), 7);
    EXPECT_LE(memory_.size(), before + 64 * KiB);
    write(*image, 64 * KiB, 4096, 0x44);
    EXPECT_EQ(value_at(*image, 64 * KiB, 4096), 0x44);
    EXPECT_EQ(value_at(*image, 0, 64 * KiB), 7);
    close(*image);
    expect_sound();
    ASSERT_TRUE(reactor_->run(memory_.resize(0)));
  }
}

TEST_F(Empty, SnapshotsKeepWhatTheyHave) {
  create({.size = 1 * MiB, .cluster_size = 4096});
  auto image = open_over(7, 1 * MiB);
  ASSERT_TRUE(image);
  write(*image, 0, 256 * KiB, 0x22);
  ASSERT_TRUE(reactor_->run(image->create_snapshot({.name = "s"})));
  write(*image, 0, 64 * KiB, 0x33);
  empty(*image);
  EXPECT_EQ(value_at(*image, 0, 1 * MiB), 7);
  ASSERT_TRUE(reactor_->run(image->apply_snapshot({"s"})));
  EXPECT_EQ(value_at(*image, 0, 256 * KiB), 0x22);
  close(*image);
  expect_sound();
}

// The header is written last: before that nothing of the disk has changed.
TEST_F(Empty, AFailureBeforeTheSwitchLeavesTheDiskAsItWas) {
  create({.size = 1 * MiB, .cluster_size = 4096});
  auto image = open_over(7, 1 * MiB);
  ASSERT_TRUE(image);
  write(*image, 0, 256 * KiB, 0x22);
  script_.failing_writes_of = IoTag::l1_shrink;
  EXPECT_FALSE(reactor_->run(image->empty()));
  script_.failing_writes_of = IoTag::none;
  EXPECT_EQ(value_at(*image, 0, 256 * KiB), 0x22);
  empty(*image);
  EXPECT_EQ(value_at(*image, 0, 256 * KiB), 7);
  close(*image);
  expect_sound();
}

}  // namespace
}  // namespace byre
