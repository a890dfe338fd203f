// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/table_reader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "block/filter.h"
#include "block/memory.h"

namespace byre {
namespace {

constexpr Geometry kGeometry{.cluster_bits = 9};
constexpr uint64_t kCluster = 512;

/// Fails reads that touch one cluster, and counts.
class BadPlace final : public Forwarder {
 public:
  BadPlace(Device& below, uint64_t bad) : Forwarder(below), bad_(bad * kCluster) {}
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    ++reads;
    most = std::max(most, ++running_);
    const Result<void> yielded = co_await reactor().offload([] {}).result();
    co_await below().read(offset, data, options);
    --running_;
    if (offset <= bad_ && bad_ < offset + data.size()) {
      co_await fail(Error(Errc::io, "a bad place"));
    }
  }
  uint64_t reads = 0;
  uint64_t most = 0;  ///< At once.

 private:
  uint64_t bad_;
  uint64_t running_ = 0;
};

class TableReaderTest : public testing::Test {
 protected:
  /// Cluster i begins with the byte i.
  void fill(uint64_t clusters) {
    for (uint64_t i = 0; i < clusters; ++i) {
      const std::vector<std::byte> table(kCluster, static_cast<std::byte>(i));
      ASSERT_TRUE(reactor_->run(memory_.write(i * kCluster, table, {})));
    }
  }
  Result<void> read(Device& disk, const std::vector<uint64_t>& clusters,
                    TableReader::Pace pace = {}) {
    TableReader reader(disk, kGeometry, memory_.size());
    const auto cluster = [&](uint64_t i) { return HostCluster{clusters[i]}; };
    const auto visit = [&](uint64_t i, MutableBytes table) {
      EXPECT_EQ(table.size(), kCluster);
      visited_.push_back(i);
      first_bytes_.push_back(std::to_integer<uint8_t>(table[0]));
    };
    const auto failed = [&](uint64_t i, const Error&) { failed_.push_back(i); };
    return reactor_->run(
        reader.each({.count = clusters.size(), .cluster = cluster, .tag = IoTag::l2_load}, visit,
                    failed, std::move(pace)));
  }

  std::unique_ptr<Reactor> reactor_ = *make_reactor();
  MemoryDevice memory_{*reactor_};
  std::vector<uint64_t> visited_;
  std::vector<uint8_t> first_bytes_;
  std::vector<uint64_t> failed_;
};

TEST_F(TableReaderTest, VisitsEachTableInTheOrderOfTheCaller) {
  fill(20);
  ASSERT_TRUE(read(memory_, {3, 4, 5, 19, 0, 40}));
  EXPECT_EQ(visited_, (std::vector<uint64_t>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(first_bytes_, (std::vector<uint8_t>{3, 4, 5, 19, 0, 0}));  // 40 is behind the end.
  EXPECT_TRUE(failed_.empty());
}

TEST_F(TableReaderTest, ABadPlaceCostsOneTable) {
  fill(10);
  BadPlace disk(memory_, 6);
  ASSERT_TRUE(read(disk, {4, 5, 6, 7, 9}));
  EXPECT_EQ(visited_, (std::vector<uint64_t>{0, 1, 3, 4}));
  EXPECT_EQ(failed_, (std::vector<uint64_t>{2}));
  EXPECT_EQ(disk.reads, 6u);  // Two runs, and the four of the first one by one.
}

TEST_F(TableReaderTest, GoesThroughManyWindows) {
  constexpr uint64_t kCount = 5000;
  fill(kCount);
  std::vector<uint64_t> clusters;
  for (uint64_t i = 0; i < kCount; ++i) clusters.push_back(i);
  std::vector<uint64_t> told;
  BadPlace disk(memory_, UINT64_MAX / kCluster);
  ASSERT_TRUE(read(disk, clusters, {.progress = [&](uint64_t done) { told.push_back(done); }}));
  EXPECT_EQ(visited_, clusters);
  EXPECT_EQ(told, (std::vector<uint64_t>{1024, 2048, 3072, 4096, 5000}));
  EXPECT_EQ(disk.reads, 5u);
}

TEST_F(TableReaderTest, ReadsNoMoreAtOnceThanItMay) {
  fill(100);
  std::vector<uint64_t> clusters;
  for (uint64_t i = 0; i < 100; i += 2) clusters.push_back(i);  // Fifty runs.
  BadPlace disk(memory_, UINT64_MAX / kCluster);
  ASSERT_TRUE(read(disk, clusters));
  EXPECT_EQ(disk.most, 50u);
  disk.most = 0;
  ASSERT_TRUE(read(disk, clusters, {.reads_max = 3}));
  EXPECT_EQ(disk.most, 3u);
  EXPECT_EQ(visited_.size(), 100u);
}

TEST_F(TableReaderTest, EndsWhenItIsStopped) {
  fill(4);
  const Result<void> done =
      read(memory_, {0, 1, 2}, {.go_on = [] { return Error(Errc::cancelled, "stopped"); }});
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code(), Errc::cancelled);
  EXPECT_TRUE(visited_.empty());
}

TEST_F(TableReaderTest, WaitsBeforeEachWindow) {
  struct Counting final : TableReader::Throttle {
    Task<void> before_window() override {
      ++windows;
      co_return;
    }
    uint64_t windows = 0;
  };
  fill(8);
  Counting throttle;
  ASSERT_TRUE(read(memory_, {1, 2}, {.throttle = &throttle}));
  EXPECT_EQ(throttle.windows, 1u);
  EXPECT_EQ(first_bytes_, (std::vector<uint8_t>{1, 2}));
}

}  // namespace
}  // namespace byre
