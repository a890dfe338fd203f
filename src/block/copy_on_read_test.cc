// SPDX-License-Identifier: Apache-2.0
#include "block/copy_on_read.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "block/filter_fault.h"
#include "block/memory.h"
#include "coro/scope.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

constexpr uint64_t kCluster = 4096;

/// A disk of clusters over another one, as an image is, that takes its time.
class Layered final : public Device {
 public:
  Layered(Reactor& reactor, std::vector<std::byte> base, bool slow)
      : reactor_(reactor),
        slow_(slow),
        base_(std::move(base)),
        own_(base_.size()),
        allocated_(div_ceil(base_.size(), kCluster)) {}
  uint64_t size() const override { return base_.size(); }
  bool writable() const override { return writable_; }
  uint32_t preferred_size() const override { return kCluster; }
  const std::string& name() const override { return name_; }
  Reactor& reactor() override { return reactor_; }
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions) override {
    const std::vector<std::byte> seen = contents();  // As it was when it began.
    ++reads_;
    co_await wait();
    copy(data, Bytes(seen).subspan(offset, data.size()));
    co_await wait();
  }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    co_await wait();
    if (options.tag == IoTag::copy_on_read) ++copies_;
    own(offset, data.size());
    copy(MutableBytes(own_).subspan(offset), data);
    co_await wait();
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions) override {
    co_await wait();
    ++zeros_;
    own(offset, length);
    fill_zero(MutableBytes(own_).subspan(offset, length));
    co_await wait();
  }
  Task<void> discard(uint64_t, uint64_t, DiscardOptions) override { co_return; }
  Task<void> flush(IoTag) override { co_return; }
  Task<Extent> status(uint64_t offset, uint64_t length) override {
    co_await wait();
    const auto cluster = offset / kCluster;
    uint64_t end = offset;
    while (end < offset + length && allocated_[end / kCluster] == allocated_[cluster] &&
           zero_below(end / kCluster) == zero_below(cluster) &&
           depth_of(end / kCluster) == depth_of(cluster)) {
      end = std::min(round_down(end, kCluster) + kCluster, offset + length);
    }
    Extent extent{.length = end - offset, .allocated = allocated_[cluster]};
    extent.zero = !extent.allocated && zero_below(cluster);
    extent.data = !extent.zero;
    if (!extent.allocated && !extent.zero) extent.depth = depth_of(cluster);
    co_return extent;
  }
  Task<void> close() override { co_return; }

  std::vector<std::byte> contents() const {
    std::vector<std::byte> all = base_;
    for (uint64_t n = 0; n < allocated_.size(); ++n) {
      if (!allocated_[n]) continue;
      const uint64_t end = std::min((n + 1) * kCluster, size());
      copy(MutableBytes(all).subspan(n * kCluster, end - n * kCluster),
           Bytes(own_).subspan(n * kCluster, end - n * kCluster));
    }
    return all;
  }
  /// Of what is not its own: how far down it is.
  uint32_t depth_of(uint64_t cluster) const {
    return zero_below(cluster) ? 0 : cluster % 3 == 0 ? 2 : 1;
  }
  bool allocated(uint64_t cluster) const { return allocated_[cluster]; }
  bool writable_ = true;
  int reads_ = 0;
  int copies_ = 0;
  int zeros_ = 0;

 private:
  Task<void> wait() {
    if (slow_) co_await reactor_.sleep(static_cast<int64_t>(reactor_.random() % 1000 + 1));
  }
  bool zero_below(uint64_t cluster) const {
    const uint64_t end = std::min((cluster + 1) * kCluster, size());
    return is_zero(Bytes(base_).subspan(cluster * kCluster, end - cluster * kCluster));
  }
  void own(uint64_t offset, uint64_t length) {
    for (uint64_t n = offset / kCluster; n * kCluster < offset + length; ++n) {
      if (allocated_[n]) continue;
      allocated_[n] = true;
      const uint64_t end = std::min((n + 1) * kCluster, size());
      copy(MutableBytes(own_).subspan(n * kCluster, end - n * kCluster),
           Bytes(base_).subspan(n * kCluster, end - n * kCluster));
    }
  }
  Reactor& reactor_;
  bool slow_;
  std::string name_ = "layered";
  std::vector<std::byte> base_;
  std::vector<std::byte> own_;
  std::vector<bool> allocated_;
};

class CopyOnReadTest : public testing::Test {
 protected:
  static constexpr uint64_t kSize = 20 * kCluster + 100;
  void make(bool slow = false, std::optional<uint32_t> bottom = {}) {
    std::vector<std::byte> base(kSize);
    for (size_t i = 0; i < base.size(); ++i) base[i] = static_cast<std::byte>(i % 251 + 1);
    std::fill_n(base.begin() + 8 * kCluster, 4 * kCluster, std::byte{0});
    base_ = base;
    auto layered = std::make_unique<Layered>(reactor_, std::move(base), slow);
    layered_ = layered.get();
    Result<std::unique_ptr<CopyOnRead>> made = CopyOnRead::make(std::move(layered), bottom);
    ASSERT_TRUE(made) << made.error().message();
    disk_ = *std::move(made);
  }
  std::vector<std::byte> read(uint64_t offset, size_t length) {
    std::vector<std::byte> data(length, std::byte{0xee});
    const Result<void> done = reactor_.run(disk_->read(offset, data, IoTag::read_guest));
    EXPECT_TRUE(done) << done.error().message();
    return data;
  }
  Bytes base(uint64_t offset, size_t length) const { return Bytes(base_).subspan(offset, length); }

  SimReactor reactor_{1};
  std::vector<std::byte> base_;
  Layered* layered_ = nullptr;
  std::unique_ptr<CopyOnRead> disk_;
};

TEST_F(CopyOnReadTest, WhatIsReadFromBelowIsThereAfterwardsInWholeClusters) {
  make();
  EXPECT_TRUE(equal(read(kCluster + 100, kCluster), base(kCluster + 100, kCluster)));
  EXPECT_FALSE(layered_->allocated(0));
  EXPECT_TRUE(layered_->allocated(1));
  EXPECT_TRUE(layered_->allocated(2));
  EXPECT_FALSE(layered_->allocated(3));
  EXPECT_EQ(disk_->bytes_copied(), 2 * kCluster);
  EXPECT_EQ(layered_->copies_, 1);
  EXPECT_TRUE(equal(read(kCluster, 2 * kCluster), base(kCluster, 2 * kCluster)));
  EXPECT_EQ(layered_->copies_, 1);
  EXPECT_EQ(layered_->contents(), base_);
}

TEST_F(CopyOnReadTest, ZerosAreWrittenBackAsZeros) {
  make();
  EXPECT_TRUE(equal(read(7 * kCluster, 6 * kCluster), base(7 * kCluster, 6 * kCluster)));
  EXPECT_EQ(layered_->zeros_, 1);
  EXPECT_EQ(layered_->copies_, 2);
  for (uint64_t n = 7; n < 13; ++n) EXPECT_TRUE(layered_->allocated(n));
}

TEST_F(CopyOnReadTest, TheLastClusterMayBeAPartOfOne) {
  make();
  EXPECT_TRUE(equal(read(kSize - 1, 1), base(kSize - 1, 1)));
  EXPECT_TRUE(layered_->allocated(20));
  EXPECT_EQ(disk_->bytes_copied(), 100u);
  std::vector<std::byte> data(2);
  EXPECT_FALSE(reactor_.run(disk_->read(kSize - 1, data, IoTag::none)));
}

TEST_F(CopyOnReadTest, WhatIsAllocatedIsLeftAlone) {
  make();
  const std::vector<std::byte> data(10, std::byte{0xaa});
  ASSERT_TRUE(reactor_.run(disk_->write(2 * kCluster, data, {})));
  std::vector<std::byte> want = base_;
  std::copy(data.begin(), data.end(), want.begin() + 2 * kCluster);
  EXPECT_EQ(read(0, kSize), want);
  EXPECT_EQ(layered_->contents(), want);
}

TEST_F(CopyOnReadTest, NothingIsCopiedFromBelowTheBottom) {
  make(/*slow=*/false, /*bottom=*/1);
  EXPECT_EQ(read(0, kSize), base_);
  for (uint64_t n = 0; n * kCluster < kSize; ++n) {
    const bool is_zero = n >= 8 && n < 12;  // No layer has those.
    EXPECT_EQ(layered_->allocated(n), !is_zero && n % 3 != 0) << n;
  }
  EXPECT_EQ(read(0, kSize), base_);
  make(/*slow=*/false, /*bottom=*/2);
  EXPECT_EQ(read(0, kSize), base_);
  EXPECT_TRUE(layered_->allocated(0));
  EXPECT_FALSE(layered_->allocated(9));
}

TEST_F(CopyOnReadTest, AWriteBackThatFailsFailsTheRead) {
  auto layered =
      std::make_unique<Layered>(reactor_, std::vector<std::byte>(8192, std::byte{1}), false);
  auto faults = std::make_unique<FaultFilter>(
      std::move(layered),
      FaultRules{
          .inject_errors = {{.event = FaultEvent::cor_write, .error = ENOSPC, .once = true}}});
  Result<std::unique_ptr<CopyOnRead>> made = CopyOnRead::make(std::move(faults));
  ASSERT_TRUE(made);
  std::vector<std::byte> data(512);
  const Result<void> failed = reactor_.run((*made)->read(0, data, IoTag::read_guest));
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().message(),
            "copy-on-read: write back 4096 bytes at 0x0: blkdebug: injected at cor_write: No "
            "space left on device");
  EXPECT_TRUE(reactor_.run((*made)->read(0, data, IoTag::read_guest)));
}

TEST_F(CopyOnReadTest, ADiskThatCannotBeWrittenIsRefused) {
  auto layered = std::make_unique<Layered>(reactor_, std::vector<std::byte>(8192), false);
  layered->writable_ = false;
  const Result<std::unique_ptr<CopyOnRead>> made = CopyOnRead::make(std::move(layered));
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().message(), "copy-on-read: 'layered' is read-only: open it for writing");
}

// Writers that know their own part of the disk, and readers everywhere: no copy brings old bytes
// back.
TEST_F(CopyOnReadTest, ANewerWriteWins) {
  for (int round = 0; round < 20; ++round) {
    make(/*slow=*/true);
    std::vector<std::byte> model = base_;
    constexpr uint64_t kPart = 5 * kCluster - 1000;  // Their edges share clusters.
    const auto writer = [&](uint64_t first) -> Task<void> {
      for (int i = 0; i < 25; ++i) {
        const uint64_t at = first + reactor_.random() % (kPart - 1);
        const uint64_t length = reactor_.random() % (first + kPart - at) + 1;
        if (reactor_.random() % 3 == 0) {
          co_await disk_->zero(at, length, {});
          std::fill_n(model.begin() + static_cast<ptrdiff_t>(at), length, std::byte{0});
        } else {
          const std::vector<std::byte> data(length, static_cast<std::byte>(reactor_.random()));
          co_await disk_->write(at, data, {});
          std::copy(data.begin(), data.end(), model.begin() + static_cast<ptrdiff_t>(at));
        }
        std::vector<std::byte> seen(kPart);
        co_await disk_->read(first, seen, IoTag::read_guest);
        EXPECT_TRUE(equal(seen, Bytes(model).subspan(first, kPart)));
      }
    };
    const auto reader = [&]() -> Task<void> {
      for (int i = 0; i < 30; ++i) {
        const uint64_t at = reactor_.random() % kSize;
        std::vector<std::byte> data(reactor_.random() % (kSize - at) + 1);
        co_await disk_->read(at, data, IoTag::read_guest);
      }
    };
    Scope scope(reactor_.ready());
    for (uint64_t part = 0; part < 4; ++part) scope.spawn(writer(part * kPart));
    for (int i = 0; i < 3; ++i) scope.spawn(reader());
    const Result<void> joined = reactor_.run(scope.join());
    ASSERT_TRUE(joined) << joined.error().message();
    ASSERT_EQ(layered_->contents(), model);
  }
}

}  // namespace
}  // namespace byre
