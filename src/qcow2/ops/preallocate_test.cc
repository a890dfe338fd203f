// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/preallocate.h"

#include "qcow2/memory_image_testing.h"

namespace byre {
namespace {

class PreallocateTest : public MemoryImageTest {};

// A reservation whose request fails goes back as a whole (H6), so none of it may be in the map.
TEST_F(PreallocateTest, ClustersOfAPreallocationThatFailedHalfWayAreNotGivenOutTwice) {
  create({.size = 1 * MiB, .cluster_size = 4096});
  {
    const std::unique_ptr<Image> image = *try_open();
    write(*image, 0, 32 * KiB, 1);
    close(*image);
  }
  script_.holes = false;  // Freed clusters keep their old bytes, so they have to be zeroed.
  {
    const std::unique_ptr<Image> image = *try_open();
    ASSERT_TRUE(reactor_->run(image->discard(0, 32 * KiB, {})));
    close(*image);
  }
  script_.holes = true;
  script_.zeros = 0;
  script_.failing_zero = 2;
  const std::unique_ptr<Image> image = *try_open();
  EXPECT_FALSE(reactor_->run(image->preallocate(0, 32 * KiB, Preallocation::metadata)));
  EXPECT_EQ(script_.zeros, 2u);
  ASSERT_TRUE(reactor_->run(image->flush()));
  write(*image, 64 * KiB, 64 * KiB, 7);
  EXPECT_EQ(value_at(*image, 0, 32 * KiB), 0);
  close(*image);
  expect_sound();
}

}  // namespace
}  // namespace byre
