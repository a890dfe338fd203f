// SPDX-License-Identifier: Apache-2.0
/// Checks of a disk in use, on images in memory with damage planted in them: what is found, what is
/// freed, what is refused.  That nothing is found where nothing is wrong, at any interleaving, is
/// the simulator's (tests/sim, scenario `online`).
#include "qcow2/ops/online_check.h"

#include <algorithm>

#include "block/filter_fault.h"
#include "qcow2/image.h"
#include "qcow2/image_testing.h"
#include "qcow2/repair/check_testing.h"

namespace byre {
namespace {

class OnlineCheckTest : public CheckTest {
 protected:
  static constexpr uint64_t kCluster = 4096;

  /// 16 clusters of data in a disk of 1 MiB, clusters 4 to 19 of the file.
  OnlineCheckTest() {
    auto memory = std::make_unique<MemoryDevice>(*reactor_);
    memory_ = memory.get();
    small_image(*memory, {.size = MiB, .cluster_size = kCluster}, 16);
    below_ = std::move(memory);
    table_ = get(*memory_, get(*memory_, 40)) & kOffsetMask;
  }
  ~OnlineCheckTest() override { close(); }

  void open(bool writable = true) {
    Result<std::unique_ptr<Image>> image =
        reactor_->run(Image::open_over(std::move(below_), opener_, {.writable = writable}));
    ASSERT_TRUE(image) << image.error().message();
    image_ = *std::move(image);
  }
  void close() {
    if (image_) (void)reactor_->run(image_->close());
    image_.reset();
  }
  Result<CheckReport> check_online(CheckOptions options = {}) {
    return reactor_->run(image_->check_online(std::move(options)));
  }
  /// A check among writers that allocate, discard and make snapshots.
  Result<CheckReport> check_among_writers(CheckOptions options = {}) {
    return reactor_->run(among_writers(std::move(options)));
  }
  Task<CheckReport> among_writers(CheckOptions options) {
    Scope scope(reactor_->ready());
    for (uint64_t i = 0; i < 4; ++i) scope.spawn(write(i));
    Result<CheckReport> report = co_await image_->check_online(std::move(options)).result();
    co_await scope.join();
    co_return std::move(report);
  }
  Task<void> write(uint64_t number) {
    const std::vector<std::byte> data(3 * kCluster, std::byte{0x77});
    for (uint64_t i = 0; i < 20; ++i) {
      const uint64_t at = (32 + 8 * number + i % 5) * kCluster;
      co_await image_->write(at, data, {});
      if (i % 3 == 0) co_await image_->discard(at, 2 * kCluster, {});
      if (i % 4 == 0) co_await image_->flush();
    }
  }
  void leak(uint64_t cluster, uint64_t refcount = 1) {
    const std::vector<std::byte> data(kCluster, std::byte{0x11});
    memory_->poke(cluster * kCluster, data);
    count(*memory_, cluster, refcount);
  }

  ClosedGate opener_;
  MemoryDevice* memory_ = nullptr;
  std::unique_ptr<Device> below_;
  uint64_t table_ = 0;
  std::unique_ptr<Image> image_;
};

TEST_F(OnlineCheckTest, ASoundDiskHasNoFindings) {
  open();
  const Result<CheckReport> report = check_among_writers();
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(report->corruptions + report->leaks + report->check_errors, 0u) << words_of(*report);
  EXPECT_TRUE(report->findings.empty()) << words_of(*report);
}

TEST_F(OnlineCheckTest, LeaksAreFoundAndFreedOnlyWhenAskedFor) {
  leak(22);
  leak(23, 3);
  open();
  Result<CheckReport> report = check_among_writers();
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(report->leaks, 2u);
  EXPECT_EQ(report->corruptions, 0u);
  report = check_among_writers({.repair = Repair::leaks});
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(report->leaks, 0u);
  EXPECT_EQ(report->leaks_fixed, 2u);
  EXPECT_TRUE(std::all_of(report->findings.begin(), report->findings.end(),
                          [](const Finding& finding) { return finding.repaired; }));
  report = check_online();
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(report->leaks + report->leaks_fixed, 0u) << words_of(*report);
}

TEST_F(OnlineCheckTest, WhatBelongsToAnotherIsFoundInItsWordsAndKeepsLeaks) {
  // The second guest cluster leads to the first one's host: what was its own is an orphan.
  const uint64_t host = get(*memory_, table_) & kOffsetMask;
  put(*memory_, table_ + 8, host);
  put(*memory_, table_, host);
  count(*memory_, host / kCluster, 2);
  open();
  const Result<CheckReport> report =
      check_among_writers({.repair = Repair::leaks, .attribute = true});
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(report->corruptions, 1u) << words_of(*report);
  EXPECT_EQ(report->leaks, 1u) << words_of(*report);
  EXPECT_EQ(report->leaks_fixed, 0u);
  const auto alias =
      std::find_if(report->findings.begin(), report->findings.end(),
                   [](const Finding& finding) { return finding.kind == FindingKind::two_owners; });
  ASSERT_NE(alias, report->findings.end());
  EXPECT_EQ(alias->host_offset, host);
  EXPECT_EQ(alias->cause, Cause::reuse_race);
  ASSERT_EQ(alias->guests.size(), 2u);
  EXPECT_EQ(alias->guests[0].offset, 0u);
  EXPECT_EQ(alias->guests[1].offset, kCluster);
}

TEST_F(OnlineCheckTest, AReadOnlyDiskIsCheckedAsItLies) {
  leak(22);
  open(false);
  Result<CheckReport> report = check_online();
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(report->leaks, 1u);
  report = check_online({.repair = Repair::leaks});
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code(), Errc::read_only);
}

TEST_F(OnlineCheckTest, WhatNeedsADiskAtRestIsRefused) {
  open();
  for (const CheckOptions& options :
       {CheckOptions{.repair = Repair::all}, CheckOptions{.repair = Repair::refcounts},
        CheckOptions{.decode = true}}) {
    const Result<CheckReport> report = check_online(options);
    ASSERT_FALSE(report);
    EXPECT_EQ(report.error().code(), Errc::unsupported);
  }
}

TEST_F(OnlineCheckTest, ItStopsWhenItIsTold) {
  open();
  Progress progress;
  progress.stop();
  const Result<CheckReport> report = check_online({.progress = &progress});
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code(), Errc::cancelled);
}

// A disk that does not give the refcount table says nothing about refcounts.
TEST_F(OnlineCheckTest, ATableThatCannotBeReadIsNoCorruption) {
  FaultRules rules;
  rules.inject_errors.push_back({.event = FaultEvent::reftable_load});
  FaultFilter filter(std::move(below_), std::move(rules));
  const CheckReport report = check(filter);
  EXPECT_EQ(report.corruptions, 0u) << words_of(report);
  EXPECT_EQ(report.leaks, 0u);
  EXPECT_EQ(report.check_errors, 1u);
}

}  // namespace
}  // namespace byre
