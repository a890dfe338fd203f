// SPDX-License-Identifier: Apache-2.0
#include "block/point_in_time.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/prng.h"
#include "base/units.h"
#include "block/memory.h"

namespace byre {
namespace {

class FrozenTest : public testing::Test {
 protected:
  static constexpr uint64_t kSize = 64 * KiB;

  FrozenTest() {
    Result<std::unique_ptr<Reactor>> made = make_reactor();
    if (!made) std::abort();
    reactor_ = *std::move(made);
    auto memory = std::make_unique<MemoryDevice>(*reactor_, kSize);
    memory_ = memory.get();
    Prng prng(1);
    std::vector<std::byte> bytes(kSize);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(prng.next());
    memory->poke(0, bytes);
    before_ = bytes;
    filter_ = std::make_unique<PointInTimeFilter>(std::move(memory));
  }
  void run(Task<void> task) {
    const Result<void> done = reactor_->run(std::move(task));
    ASSERT_TRUE(done) << done.error().message();
  }
  std::vector<std::byte> read(Device& device, uint64_t offset, uint64_t length) {
    std::vector<std::byte> data(length);
    run(device.read(offset, data, IoTag::none));
    return data;
  }
  std::vector<std::byte> part(uint64_t offset, uint64_t length) {
    const Bytes bytes = Bytes(before_).subspan(offset, length);
    return {bytes.begin(), bytes.end()};
  }
  /// Wants [from, end).
  static auto range(uint64_t from, uint64_t end) {
    return [=](uint64_t at) { return at >= end ? UINT64_MAX : std::max(at, from); };
  }

  std::unique_ptr<Reactor> reactor_;
  MemoryDevice* memory_ = nullptr;
  std::unique_ptr<PointInTimeFilter> filter_;
  std::vector<std::byte> before_;
};

TEST_F(FrozenTest, ItReadsWhatWasThereWhateverIsDoneSince) {
  PointInTimeFilter::View view(*filter_, MiB);
  view.keep(range(0, UINT64_MAX));
  const std::vector<std::byte> other(3000, std::byte{0x55});
  run(filter_->write(5000, other, {}));
  run(filter_->write(5001, other, {}));
  run(filter_->zero(20 * KiB, 10 * KiB, {.may_unmap = true}));
  run(filter_->discard(32 * KiB, 4 * KiB, {}));
  run(filter_->resize(50 * KiB));
  run(filter_->resize(kSize + 5));
  EXPECT_EQ(view.size(), kSize);
  EXPECT_EQ(read(view, 0, kSize), before_);
  EXPECT_EQ(read(view, 5555, 30'000), part(5555, 30'000));
  EXPECT_EQ(read(*filter_, 5001, 3000), other);
  EXPECT_EQ(read(*filter_, 60 * KiB, 100), std::vector<std::byte>(100));
}

TEST_F(FrozenTest, OnlyWhatIsWantedIsKept) {
  PointInTimeFilter::View view(*filter_, MiB);
  view.keep(range(16 * KiB, 20 * KiB));
  const std::vector<std::byte> other(kSize, std::byte{0x55});
  run(filter_->write(0, other, {}));
  EXPECT_EQ(view.kept_bytes(), 4 * KiB);
  EXPECT_EQ(read(view, 16 * KiB, 4 * KiB), part(16 * KiB, 4 * KiB));
  EXPECT_EQ(read(view, 0, 100), std::vector<std::byte>(100, std::byte{0x55}));
}

TEST_F(FrozenTest, BeyondItsBoundReadsFailAndWritesGoOn) {
  PointInTimeFilter::View view(*filter_, 8 * KiB);
  view.keep(range(0, UINT64_MAX));
  const std::vector<std::byte> other(kSize, std::byte{0x55});
  run(filter_->write(0, other, {}));
  EXPECT_EQ(read(*filter_, 0, kSize), other);
  EXPECT_EQ(view.kept_bytes(), 8 * KiB);
  EXPECT_EQ(read(view, 0, 8 * KiB), part(0, 8 * KiB));
  std::vector<std::byte> data(1);
  const Result<void> failed = reactor_->run(view.read(8 * KiB, data, IoTag::none));
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code(), Errc::busy);
}

TEST_F(FrozenTest, AViewCannotBeWrittenAndWhenItIsGoneNothingIsKept) {
  {
    PointInTimeFilter::View view(*filter_, MiB);
    view.keep(range(0, UINT64_MAX));
    const Result<void> failed = reactor_->run(view.write(0, Bytes(before_).first(1), {}));
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().code(), Errc::read_only);
  }
  const std::vector<std::byte> other(100, std::byte{0x55});
  run(filter_->write(0, other, {}));
  PointInTimeFilter::View view(*filter_, MiB);
  view.keep(range(0, UINT64_MAX));
  EXPECT_EQ(read(view, 0, 100), other);
}

}  // namespace
}  // namespace byre
