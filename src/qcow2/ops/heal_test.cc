// SPDX-License-Identifier: Apache-2.0
/// Images that another program has damaged, opened for writing: nothing that can be read is lost
/// (docs/engine.md, V).
#include "qcow2/ops/heal.h"

#include <gtest/gtest.h>

#include "base/prng.h"
#include "format/header.h"
#include "format/l2.h"
#include "format/refcount.h"
#include "qcow2/memory_image_testing.h"

namespace byre {
namespace {

constexpr uint64_t kCluster = 64 * KiB;

class Healing : public MemoryImageTest {
 protected:
  /// Clusters 0 to `count` - 1 of the disk hold 1, 2, 3, ...
  void make(uint64_t count, CreateOptions options = {.size = 4 * MiB}) {
    create(options);
    auto writer = open();
    ASSERT_TRUE(writer);
    for (uint64_t i = 0; i < count; ++i)
      write(**writer, i * kCluster, kCluster, static_cast<int>(i + 1));
    close(**writer);
  }
  Result<std::unique_ptr<Image>> open(ImageOptions options = {.writable = true}) {
    script_ = {.discards = false};
    messages_.clear();
    options.message = [this](const std::string& text) { messages_ += text + "\n"; };
    return try_open(std::move(options));
  }
  void resize_file(uint64_t size) { ASSERT_TRUE(reactor_->run(memory_.resize(size))); }
  uint64_t table() { return word(word(40)) & kOffsetMask; }
  uint64_t host_of(uint64_t guest) { return word(table() + guest * 8) & kOffsetMask; }
  void set_count(uint64_t host, uint16_t count) { set_refcount16(host / kCluster, count); }
  CheckReport check() {
    auto report = reactor_->run(check_image(memory_, {}));
    EXPECT_TRUE(report);
    return *std::move(report);
  }
  /// Clusters may still have two owners, leaks, and entries without COPIED, which costs a copy.
  void expect_nothing_undercounted() {
    for (const Finding& finding : check().findings) {
      EXPECT_NE(finding.kind, FindingKind::refcount_too_small) << finding.text;
      if (finding.kind == FindingKind::copied) {
        EXPECT_EQ(finding.entry & kCopied, 0u) << finding.text;
      }
    }
  }
  /// Clusters from `first` on get new contents, so that whatever seems free is taken.
  void fill(Image& image, uint64_t first, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) write(image, (first + i) * kCluster, kCluster, 0xee);
  }

  std::string messages_;
};

TEST_F(Healing, DataWithoutARefcountAreNotHandedOut) {
  make(4);
  for (uint64_t i = 0; i < 4; ++i) set_count(host_of(i), 0);
  auto image = open();
  ASSERT_TRUE(image) << image.error().message();
  EXPECT_EQ((*image)->health().damage.undercounted.size(), 4u);
  EXPECT_NE(messages_.find("4 host clusters are used more often than counted"), std::string::npos)
      << messages_;
  fill(**image, 8, 20);
  for (uint64_t i = 0; i < 4; ++i)
    EXPECT_EQ(value_at(**image, i * kCluster, kCluster), static_cast<int>(i + 1));
  close(**image);
  expect_sound();
}

// R-J: two L1 entries on one table, both with COPIED.
TEST_F(Healing, TwoL1EntriesOnOneTableAreSharedFromThenOn) {
  make(4, {.size = 2 * GiB});
  const uint64_t l1 = word(40);
  set_word(l1 + 8, word(l1));
  auto image = open();
  ASSERT_TRUE(image) << image.error().message();
  EXPECT_EQ((*image)->health().damage.causes, std::vector{Cause::failed_l1_update});
  EXPECT_EQ((*image)->health().damage.in_doubt_count, 2u);
  const uint64_t second = 512 * MiB;
  EXPECT_EQ(value_at(**image, second, kCluster), 1);
  write(**image, second, kCluster, 77);
  write(**image, kCluster, 4096, 78);
  EXPECT_EQ(value_at(**image, 0, kCluster), 1);
  EXPECT_EQ(value_at(**image, second, kCluster), 77);
  EXPECT_EQ(value_at(**image, second + kCluster, kCluster), 2);
  EXPECT_EQ(value_at(**image, kCluster, 4096), 78);
  close(**image);
  // They still share what neither has written; every reference is counted.
  expect_nothing_undercounted();
}

// R-A, R-C: two guest ranges on one host cluster.
TEST_F(Healing, TwoGuestRangesOnOneClusterAreCopiedAtTheFirstWrite) {
  make(4);
  set_word(table() + 8, word(table()));
  auto image = open();
  ASSERT_TRUE(image) << image.error().message();
  EXPECT_EQ((*image)->health().damage.causes, std::vector{Cause::reuse_race});
  EXPECT_EQ(value_at(**image, kCluster, kCluster), 1);
  write(**image, 4096, 4096, 9);
  EXPECT_EQ(value_at(**image, kCluster, kCluster), 1);
  EXPECT_EQ(value_at(**image, 4096, 4096), 9);
  close(**image);
  expect_nothing_undercounted();
}

TEST_F(Healing, MetadataWithoutARefcountAreCounted) {
  for (const bool trust : {true, false}) {
    resize_file(0);
    make(2);
    const uint64_t block = word(word(48));
    for (const uint64_t at : {uint64_t{0}, word(40), word(48), block, table()}) set_count(at, 0);
    auto image = open({.writable = true,
                       .scan = trust ? ImageOptions::Scan::never : ImageOptions::Scan::at_open});
    ASSERT_EQ(image.has_value(), !trust);
    if (trust) continue;
    EXPECT_EQ((*image)->health().damage.undercounted.size(), 5u);
    fill(**image, 8, 20);
    EXPECT_EQ(value_at(**image, 0, kCluster), 1);
    close(**image);
    expect_sound();
  }
}

TEST_F(Healing, ARegionThatNoBlockCountsGetsOneWhereNothingIs) {
  make(4);
  set_word(word(48), 0);
  auto image = open();
  ASSERT_TRUE(image) << image.error().message();
  fill(**image, 8, 20);
  for (uint64_t i = 0; i < 4; ++i)
    EXPECT_EQ(value_at(**image, i * kCluster, kCluster), static_cast<int>(i + 1));
  close(**image);
  EXPECT_NE(word(word(48)), 0u);
  expect_sound();
}

// What QEMU leaves when it dies while it makes a snapshot: the references are known, so the cluster
// is alone, whatever its refcount says.
TEST_F(Healing, ARefcountThatIsTooLargeCostsNothing) {
  make(2);
  set_count(host_of(0), 2);
  auto image = open();
  ASSERT_TRUE(image);
  EXPECT_TRUE((*image)->health().damage.sound());
  write(**image, 0, 4096, 9);
  EXPECT_EQ(value_at(**image, 0, 4096), 9);
  EXPECT_EQ(value_at(**image, 4096, 4096), 1);
  EXPECT_EQ((*image)->stats().writes_allocating, 0u);
  close(**image);
}

TEST_F(Healing, CopiedIsNotBelievedWhereThereAreMoreReferences) {
  make(2);
  set_word(table() + 8, word(table()));
  set_count(host_of(0), 2);
  auto image = open();
  ASSERT_TRUE(image);
  EXPECT_EQ((*image)->health().damage.copied.size(), 2u);
  write(**image, 0, 4096, 9);
  EXPECT_EQ(value_at(**image, kCluster, 4096), 1);
  close(**image);
}

// Trap 31, with a table that a leak counts twice.
TEST_F(Healing, ATableThatIsCountedTwiceIsCopiedBeforeItIsChanged) {
  make(1);
  set_count(table(), 2);
  auto image = open();
  ASSERT_TRUE(image);
  write(**image, 2 * kCluster, kCluster, 9);
  EXPECT_EQ(value_at(**image, 0, kCluster), 1);
  close(**image);
  EXPECT_EQ(check().corruptions, 0u);
}

TEST_F(Healing, WhatTheFileHasLostFailsUntilItIsWrittenWhole) {
  make(4);
  const uint64_t lost = host_of(3);
  ASSERT_EQ(lost + kCluster, memory_.size());
  resize_file(lost);
  auto image = open();
  ASSERT_TRUE(image);
  EXPECT_EQ((*image)->health().damage.causes, std::vector{Cause::truncated_file});
  EXPECT_EQ(value_at(**image, 3 * kCluster, 512), -2);
  fill(**image, 8, 20);  // The file grows over the place.
  EXPECT_EQ(value_at(**image, 3 * kCluster, 512), -2);
  const std::vector<std::byte> part(4096);
  EXPECT_FALSE(reactor_->run((*image)->write(3 * kCluster, part, {})));
  write(**image, 3 * kCluster, kCluster, 5);
  EXPECT_EQ(value_at(**image, 3 * kCluster, kCluster), 5);
  for (uint64_t i = 8; i < 28; ++i) EXPECT_EQ(value_at(**image, i * kCluster, kCluster), 0xee);
  close(**image);
  EXPECT_EQ(check().corruptions, 0u);
}

TEST_F(Healing, AnEntryIntoMetadataFailsUntilItIsDiscarded) {
  for (const bool zero : {true, false}) {
    resize_file(0);
    make(4);
    set_word(table() + 3 * 8, table() | kCopied);
    auto image = open();
    ASSERT_TRUE(image);
    EXPECT_EQ(value_at(**image, 3 * kCluster, 512), -2);
    if (zero) {
      ASSERT_TRUE(reactor_->run((*image)->zero(3 * kCluster, kCluster, {.may_unmap = true})));
    } else {
      ASSERT_TRUE(reactor_->run((*image)->discard(3 * kCluster, kCluster, {})));
    }
    EXPECT_EQ(value_at(**image, 3 * kCluster, kCluster), 0);
    fill(**image, 8, 20);
    EXPECT_EQ(value_at(**image, 0, kCluster), 1);
    close(**image);
    EXPECT_EQ(check().corruptions, 0u);
  }
}

TEST_F(Healing, WhatCannotBeHealedIsReadAndNotChanged) {
  make(4);
  set_word(word(48), word(word(48)) + 512);  // No cluster begins there.
  const std::vector<std::byte> before = memory_.bytes();
  auto image = open();
  ASSERT_TRUE(image) << image.error().message();
  EXPECT_EQ(value_at(**image, 0, kCluster), 1);
  const std::vector<std::byte> data(kCluster, std::byte{9});
  const Result<void> done = reactor_->run((*image)->write(8 * kCluster, data, {}));
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code(), Errc::corrupt);
  EXPECT_NE(done.error().message().find("byre repair"), std::string::npos);
  EXPECT_FALSE(reactor_->run((*image)->create_snapshot({.name = "s"})));
  write(**image, 0, kCluster, 7);  // In place.
  EXPECT_EQ(value_at(**image, 0, kCluster), 7);
  write(**image, 0, kCluster, 1);
  close(**image);
  EXPECT_EQ(memory_.bytes(), before);
}

TEST_F(Healing, MoreReferencesThanARefcountHoldsAreNeverFreed) {
  make(4, {.size = 4 * MiB, .refcount_bits = 1});
  set_word(table() + 8, word(table()));
  auto image = open();
  ASSERT_TRUE(image) << image.error().message();
  write(**image, kCluster, kCluster, 9);
  ASSERT_TRUE(reactor_->run((*image)->flush()));
  fill(**image, 8, 20);
  EXPECT_EQ(value_at(**image, 0, kCluster), 1);
  close(**image);
  // The entry that is alone now still has no COPIED, which costs a copy and no more.
  expect_nothing_undercounted();
}

TEST_F(Healing, ADamagedImageIsRefusedBeforeAByteIsWritten) {
  make(4);
  set_count(host_of(0), 0);
  const std::vector<std::byte> before = memory_.bytes();
  const auto image = open({.writable = true, .refuse_damaged = true});
  ASSERT_FALSE(image);
  EXPECT_NE(image.error().message().find("byre repair"), std::string::npos);
  EXPECT_EQ(memory_.bytes(), before);
}

TEST_F(Healing, LeaksAreFreedOnlyWhenAsked) {
  for (const bool asked : {false, true}) {
    resize_file(0);
    make(4);
    const uint64_t leaked = memory_.size();
    resize_file(leaked + kCluster);
    set_count(leaked, 1);
    auto image = open({.writable = true, .free_leaks = asked});
    ASSERT_TRUE(image);
    EXPECT_EQ((*image)->health().damage.leaked_clusters, 1u);
    EXPECT_TRUE((*image)->health().damage.sound());
    EXPECT_EQ(messages_, "");
    close(**image);
    EXPECT_EQ(check().leaks, asked ? 0u : 1u);
  }
}

// Tables of snapshots and of bitmaps count as well.
TEST_F(Healing, WhatOnlySnapshotsAndBitmapsReferToIsCounted) {
  make(2);
  {
    auto image = open();
    ASSERT_TRUE(image);
    ASSERT_TRUE(reactor_->run((*image)->create_snapshot({.name = "s"})));
    ASSERT_TRUE(reactor_->run((*image)->add_bitmap({.name = "b"})));
    write(**image, 0, kCluster, 9);
    close(**image);
  }
  const uint64_t clusters = memory_.size() / kCluster;
  for (uint64_t i = 0; i < clusters; ++i) set_count(i * kCluster, 0);
  auto image = open();
  ASSERT_TRUE(image) << image.error().message();
  fill(**image, 8, 20);
  EXPECT_EQ(value_at(**image, 0, kCluster), 9);
  EXPECT_EQ(value_at(**image, kCluster, kCluster), 2);
  close(**image);
  EXPECT_EQ(check().corruptions, 0u);
  auto old = open({.snapshot = "s"});
  ASSERT_TRUE(old) << old.error().message();
  EXPECT_EQ(value_at(**old, 0, kCluster), 1);
  close(**old);
}

// Its last sectors lie in the cluster that begins where the file ends; there are zeros.
TEST_F(Healing, TheEndOfAStreamBehindTheEndOfTheFileIsCounted) {
  make(4);
  const uint64_t end = memory_.size();
  ASSERT_EQ(end % kCluster, 0u);
  const uint64_t at = end - 512;
  set_word(table() + 8 * 8, kCompressed | uint64_t{1} << 54 | at);  // 512 bytes, and 512 more.
  auto image = open();
  ASSERT_TRUE(image) << image.error().message();
  ASSERT_EQ((*image)->health().damage.undercounted.size(), 2u);
  EXPECT_EQ((*image)->health().damage.undercounted[1].cluster.value, end / kCluster);
  fill(**image, 16, 4);
  write(**image, 8 * kCluster, kCluster, 5);
  fill(**image, 20, 4);
  for (uint64_t i = 16; i < 24; ++i) EXPECT_EQ(value_at(**image, i * kCluster, kCluster), 0xee);
  close(**image);
  expect_nothing_undercounted();
}

// Counts that are written there would be written into a guest's data.
TEST_F(Healing, ARefcountBlockInAClusterOfGuestDataIsNotWritten) {
  make(4);
  set_word(word(48), host_of(1));
  const std::vector<std::byte> before = memory_.bytes();
  auto image = open();
  ASSERT_TRUE(image) << image.error().message();
  const std::vector<std::byte> bytes(kCluster, std::byte{9});
  EXPECT_FALSE(reactor_->run((*image)->write(8 * kCluster, bytes, {})));
  close(**image);
  EXPECT_EQ(memory_.bytes(), before);
}

TEST_F(Healing, ATableOfASnapshotIsNoPlaceForGuestData) {
  make(2);
  uint64_t kept = 0;
  {
    auto image = open();
    ASSERT_TRUE(image);
    ASSERT_TRUE(reactor_->run((*image)->create_snapshot({.name = "s"})));
    write(**image, 0, kCluster, 9);
    kept = word((*image)->snapshots()[0].l1_offset.value) & kOffsetMask;
    close(**image);
  }
  ASSERT_NE(kept, table());
  set_word(table() + 8, kept | kCopied);
  set_word(word(48) + 8 * 3, 0x7777);  // Beyond healing.
  auto image = open();
  ASSERT_TRUE(image) << image.error().message();
  const std::vector<std::byte> bytes(4096, std::byte{9});
  EXPECT_FALSE(reactor_->run((*image)->write(kCluster, bytes, {})));
  close(**image);
  auto old = open({.snapshot = "s"});
  ASSERT_TRUE(old) << old.error().message();
  EXPECT_EQ(value_at(**old, kCluster, kCluster), 2);
  close(**old);
}

// What is lost through a table that a snapshot has at another place is not lost for the disk there.
TEST_F(Healing, ASnapshotsPlaceOfATableSaysNothingOfTheDisks) {
  make(2, {.size = 2 * GiB});
  uint64_t l1_of_snapshot = 0;
  {
    auto image = open();
    ASSERT_TRUE(image);
    write(**image, 512 * MiB, kCluster, 7);
    ASSERT_TRUE(reactor_->run((*image)->create_snapshot({.name = "s"})));
    l1_of_snapshot = (*image)->snapshots()[0].l1_offset.value;
    close(**image);
  }
  const uint64_t second = word(word(40) + 8) & kOffsetMask;
  set_word(second, memory_.size() + 64 * kCluster);  // Lost at 512 MiB,
  set_word(l1_of_snapshot, second);                  // and, of the snapshot, at 0.
  auto image = open();
  ASSERT_TRUE(image) << image.error().message();
  EXPECT_EQ((*image)->health().damage.in_doubt_count, 0u);
  EXPECT_EQ(value_at(**image, 0, kCluster), 1);
  EXPECT_EQ(value_at(**image, 512 * MiB, 512), -2);
  close(**image);
}

TEST_F(Healing, AWriteOverALostClusterMayBeginBeforeIt) {
  make(4);
  resize_file(host_of(3));
  auto image = open();
  ASSERT_TRUE(image);
  write(**image, 2 * kCluster, 2 * kCluster, 5);
  EXPECT_EQ(value_at(**image, 2 * kCluster, 2 * kCluster), 5);
  close(**image);
}

TEST_F(Healing, WhatOnlyASnapshotLeadsToBehindTheEndIsKeptOutOfUse) {
  make(2);
  {
    auto image = open();
    ASSERT_TRUE(image);
    ASSERT_TRUE(reactor_->run((*image)->create_snapshot({.name = "s"})));
    write(**image, 0, kCluster, 9);
    const uint64_t kept = word((*image)->snapshots()[0].l1_offset.value) & kOffsetMask;
    close(**image);
    set_word(kept, memory_.size());
  }
  auto image = open();
  ASSERT_TRUE(image);
  fill(**image, 16, 8);
  close(**image);
  auto old = open({.snapshot = "s"});
  ASSERT_TRUE(old);
  EXPECT_LE(value_at(**old, 0, kCluster), 0);  // An error, or zeros.
  close(**old);
}

TEST_F(Healing, ATableThatIsNotAllThereIsLostAsAWhole) {
  make(2, {.size = 2 * GiB});
  {
    auto image = open();
    ASSERT_TRUE(image);
    write(**image, 512 * MiB, kCluster, 7);
    close(**image);
  }
  const uint64_t second = word(word(40) + 8) & kOffsetMask;
  set_word(second + 8 * 5, memory_.size() + 64 * kCluster);
  resize_file(second + 512);
  auto image = open();
  ASSERT_TRUE(image) << image.error().message();
  for (const uint64_t at : {0u, 5u, 100u})
    EXPECT_EQ(value_at(**image, 512 * MiB + at * kCluster, 512), -2) << at;
  fill(**image, 16, 8);
  for (const uint64_t at : {0u, 5u, 100u})
    EXPECT_EQ(value_at(**image, 512 * MiB + at * kCluster, 512), -2) << at;
  close(**image);
}

TEST_F(Healing, AFlippedBitDoesNotMakeTheFileGrow) {
  make(2);
  const uint64_t before = memory_.size();
  set_word(table() + 8, word(table() + 8) | uint64_t{1} << 45);
  auto image = open();
  ASSERT_TRUE(image);
  EXPECT_EQ(value_at(**image, kCluster, 512), -2);
  write(**image, 8 * kCluster, kCluster, 3);
  close(**image);
  EXPECT_LE(memory_.size(), before + 4 * kCluster);
}

TEST_F(Healing, ADamagedImageThatWasNotClosedIsRefusedBeforeItIsRebuilt) {
  make(4);
  set_word(table() + 8, memory_.size() + 64 * kCluster);
  set_word(72, word(72) | kDirty);
  const std::vector<std::byte> before = memory_.bytes();
  EXPECT_FALSE(open({.writable = true, .refuse_damaged = true}));
  EXPECT_EQ(memory_.bytes(), before);
}

TEST_F(Healing, MoreLostPartsThanCanBeListedAreNotWritten) {
  create({.size = 16 * GiB});
  auto writer = open();
  ASSERT_TRUE(writer);
  for (uint64_t table = 0; table < 9; ++table) write(**writer, table * 512 * MiB, kCluster, 1);
  close(**writer);
  const uint64_t nowhere = round_up(memory_.size(), kCluster) + 64 * MiB;
  const uint64_t l1 = word(40);
  const auto lose = [&](uint64_t table) {
    std::vector<std::byte> bytes(kCluster);
    for (uint64_t i = 0; i < kCluster / 8; ++i)
      store_be(MutableBytes(bytes), i * 8, (nowhere + i * kCluster) | kCopied);
    memory_.poke(word(l1 + table * 8) & kOffsetMask, bytes);
  };
  for (uint64_t table = 0; table < 8; ++table) lose(table);
  auto image = open();
  ASSERT_TRUE(image) << image.error().message();  // 65,536 of them.
  close(**image);
  lose(8);
  const std::vector<std::byte> before = memory_.bytes();
  image = open();
  ASSERT_FALSE(image);
  EXPECT_NE(image.error().message().find("more than 65536"), std::string::npos)
      << image.error().message();
  EXPECT_NE(image.error().message().find("byre repair"), std::string::npos);
  EXPECT_EQ(memory_.bytes(), before);
  image = open({.writable = false});
  ASSERT_TRUE(image);
  close(**image);
}

TEST_F(Healing, TablesThatTheScanHasReadAreNotReadAgain) {
  make(4, {.size = 4 * GiB});
  auto writer = open();
  ASSERT_TRUE(writer);
  write(**writer, 3 * GiB, kCluster, 9);
  close(**writer);
  for (const bool at_once : {true, false}) {
    auto image = open({.writable = true,
                       .scan = ImageOptions::Scan::beside_requests,
                       .scanned_at_once = at_once ? 16 * MiB : 0});
    ASSERT_TRUE(image);
    write(**image, 8 * kCluster, kCluster, 7);  // Waits for the scan.
    const uint64_t loads = (*image)->stats().table_loads;
    if (at_once) {
      EXPECT_EQ(loads, 0u);
    }
    EXPECT_EQ(value_at(**image, 3 * GiB, kCluster), 9);
    EXPECT_EQ(value_at(**image, 3 * kCluster, kCluster), 4);
    EXPECT_EQ((*image)->stats().table_loads, loads);
    close(**image);
  }
}

// 2^19 L2 tables, each in a region of its own.
TEST_F(Healing, ReferencesThatLieFarApartCostABoundedAmountOfMemory) {
  create({.size = 16 * GiB, .cluster_size = 512});
  const uint64_t entries = word(32) & UINT32_MAX;
  std::vector<std::byte> l1(entries * 8);
  for (uint64_t i = 0; i < entries; ++i)
    store_be(MutableBytes(l1), i * 8, (i * 1024 + 1024 * 1024) * 512);
  memory_.poke(word(40), l1);
  resize_file(entries * 1024 * 512 + 1 * GiB);
  auto image = open();
  ASSERT_TRUE(image) << image.error().message();
  EXPECT_LE((*image)->health().damage.memory_bytes, 160 * MiB);
  EXPECT_FALSE((*image)->health().damage.beyond_healing.empty());
  close(**image);
}

TEST_F(Healing, ASoundImageIsNotChanged) {
  make(4);
  const std::vector<std::byte> before = memory_.bytes();
  auto image = open();
  ASSERT_TRUE(image);
  EXPECT_TRUE((*image)->health().known);
  EXPECT_TRUE((*image)->health().damage.sound());
  close(**image);
  EXPECT_EQ(memory_.bytes(), before);
  EXPECT_EQ(messages_, "");
}

TEST(CompactCounts, KeepsWhatItWasTold) {
  CompactCounts counts;
  std::map<uint64_t, CompactCounts::Cell> model;
  Prng prng(7);
  for (int i = 0; i < 20000; ++i) {
    const HostCluster cluster{prng.below(5000) + (prng.one_in(9) ? uint64_t{1} << 40 : 0)};
    CompactCounts::Cell what{.references = prng.one_in(50) ? prng.between(1, 200) : 1,
                             .copied = prng.one_in(2),
                             .metadata = prng.one_in(200)};
    CompactCounts::Cell& cell = model[cluster.value];
    EXPECT_EQ(counts.add(cluster, what), cell.metadata);
    cell.references += what.references;
    cell.copied |= what.copied;
    cell.metadata |= what.metadata;
  }
  for (const auto& [cluster, cell] : model) EXPECT_EQ(counts.at({cluster}), cell) << cluster;
  EXPECT_EQ(counts.at({4999999}), CompactCounts::Cell{});
}

}  // namespace
}  // namespace byre
