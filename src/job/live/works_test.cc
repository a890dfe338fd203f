// SPDX-License-Identifier: Apache-2.0
/// What jobs refuse before they touch anything; what they do is simulated
/// (tests/sim/live_scenario.cc).
#include <gtest/gtest.h>

#include "block/memory.h"
#include "job/live/backup.h"
#include "job/live/commit_below.h"
#include "job/live/mirror.h"
#include "job/live/stream.h"
#include "qcow2/memory_image_testing.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

class Works : public testing::Test {
 protected:
  Child memory(uint64_t size) { return std::make_unique<MemoryDevice>(reactor_, size); }
  template <class Work>
  static std::string refusal(const Result<std::unique_ptr<Work>>& made) {
    return made ? "" : made.error().message();
  }
  SimReactor reactor_{1};
};

TEST_F(Works, ACopyNeedsRoom) {
  const std::string why = refusal(Mirror::make(memory(2 * MiB), memory(1 * MiB), {}));
  EXPECT_NE(why.find("make the target as large"), std::string::npos) << why;
  const std::string backup = refusal(Backup::make(memory(2 * MiB), memory(1 * MiB), {}));
  EXPECT_NE(backup.find("make the target as large"), std::string::npos) << backup;
  EXPECT_EQ(refusal(Mirror::make(memory(1 * MiB), memory(2 * MiB), {})), "");
}

TEST_F(Works, ADiskIsNotItsOwnCopy) {
  const Child disk = memory(1 * MiB);
  EXPECT_NE(refusal(Mirror::make(disk.another(), disk.another(), {})), "");
  EXPECT_NE(refusal(Backup::make(disk.another(), disk.another(), {})), "");
}

TEST_F(Works, PiecesArePowersOfTwo) {
  MirrorOptions options;
  options.filter.granularity = 1000;
  EXPECT_NE(refusal(Mirror::make(memory(1 * MiB), memory(1 * MiB), options)), "");
}

TEST_F(Works, OnlyImagesAreStreamedInto) {
  EXPECT_NE(refusal(Stream::make(memory(1 * MiB), {})), "");
  EXPECT_NE(refusal(CommitBelow::make(memory(1 * MiB), {.base_name = {}, .filter = {}})), "");
}

TEST_F(Works, ThereIsNothingBelowToCommitInto) {
  EXPECT_NE(refusal(Mirror::commit_into(memory(1 * MiB), 1, {})), "");
}

TEST_F(Works, NotEveryTargetCompresses) {
  EXPECT_NE(refusal(Backup::make(memory(1 * MiB), memory(1 * MiB), {.compressed = true})), "");
}

/// A piece is clean again only when the target has it.
TEST_F(Works, WhatGuestsChangeIsDirty) {
  MirrorFilter filter(memory(1 * MiB), memory(1 * MiB), {.granularity = 64 * KiB});
  filter.forget_dirty();
  const std::vector<std::byte> data(512, std::byte{7});
  ASSERT_TRUE(reactor_.finish(filter.write(100 * KiB, data, {})));
  EXPECT_EQ(filter.dirty_bytes(), 64 * KiB);
  ASSERT_TRUE(reactor_.finish(filter.discard(192 * KiB, 128 * KiB, {})));
  EXPECT_EQ(filter.dirty_bytes(), 192 * KiB);
  const auto taken = reactor_.finish(filter.take(0));
  ASSERT_TRUE(taken && *taken);
  EXPECT_EQ((*taken)->first, 1u);
  const auto copied = reactor_.finish(filter.copy(**taken));
  ASSERT_TRUE(copied && !copied->error);
  EXPECT_EQ(filter.dirty_bytes(), 128 * KiB);
  std::vector<std::byte> found(512);
  ASSERT_TRUE(reactor_.finish(filter.target().read(100 * KiB, found)));
  EXPECT_EQ(found, data);

  filter.set_mode(MirrorMode::write_blocking);
  filter.forget_dirty();
  ASSERT_TRUE(reactor_.finish(filter.write(0, data, {})));
  EXPECT_EQ(filter.dirty_bytes(), 0u);
  ASSERT_TRUE(reactor_.finish(filter.target().read(0, found)));
  EXPECT_EQ(found, data);
  EXPECT_EQ(reactor_.finish(filter.resize(2 * MiB)).error().code(), Errc::busy);
  ASSERT_TRUE(reactor_.finish(filter.close()));
}

}  // namespace
}  // namespace byre
