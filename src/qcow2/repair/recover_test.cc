// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/recover.h"

#include "qcow2/repair/check_testing.h"
#include "qcow2/repair/undo.h"

namespace byre {
namespace {

class RecoverTest : public CheckTest {
 protected:
  Recovery plan(Device& file, RecoverOptions options = {}) {
    return must_be(reactor_->run(plan_recovery(file, std::move(options))));
  }
  Recovery repair(Device& file, RecoverOptions options = {}) {
    return must_be(reactor_->run(recover(file, std::move(options))));
  }
  static Recovery must_be(Result<Recovery> recovery) {
    if (recovery) return *std::move(recovery);
    ADD_FAILURE() << recovery.error().message();
    return {};
  }
  CheckReport findings(Device& file) {
    Result<CheckReport> report = reactor_->run(check_image(file, {.attribute = true}));
    if (report) return *std::move(report);
    ADD_FAILURE() << report.error().message();
    return {};
  }
  static const Finding* find(const CheckReport& report, FindingKind kind) {
    for (const Finding& finding : report.findings) {
      if (finding.kind == kind) return &finding;
    }
    return nullptr;
  }
  uint64_t l2_of(MemoryDevice& file, uint64_t index = 0) {
    return get(file, get(file, 40) + 8 * index) & kOffsetMask;
  }
  static std::byte first_byte(const MemoryDevice& file, uint64_t at) {
    std::byte byte{};
    file.peek(at & kOffsetMask, MutableBytes(&byte, 1));
    return byte;
  }
  /// A small image in which two entries lead to one cluster (peer defect j).
  void cross_link(MemoryDevice& file) {
    small_image(file, {.size = MiB, .cluster_size = 4096}, 4);
    const uint64_t l2 = l2_of(file);
    put(file, l2 + 8, get(file, l2));
  }
};

// Peer defect j: qemu-img check -r all raises the shared refcount to 2, frees the orphan, which is
// the only copy of the victim's data, and says "No errors".
TEST_F(RecoverTest, ACrossLinkIsSeparatedAndItsOrphanIsKept) {
  MemoryDevice file(*reactor_);
  cross_link(file);
  const uint64_t orphan = l2_of(file) + 2 * 4096;
  ASSERT_EQ(first_byte(file, orphan), std::byte{2});

  const Recovery repaired = repair(file);
  EXPECT_EQ(repaired.refused, "");
  EXPECT_EQ(repaired.left.corruptions, 0u);
  EXPECT_EQ(repaired.left.leaks, 1u);
  ASSERT_EQ(repaired.orphans.size(), 1u);
  EXPECT_EQ(repaired.orphans[0].at.value, orphan);
  EXPECT_EQ(repaired.orphans[0].looks, Orphan::Looks::data);
  EXPECT_EQ(repaired.orphans[0].start[0], std::byte{2});
  EXPECT_FALSE(repaired.orphans_freed);
  EXPECT_EQ(first_byte(file, orphan), std::byte{2});

  const uint64_t l2 = l2_of(file);
  EXPECT_NE(get(file, l2) & kOffsetMask, get(file, l2 + 8) & kOffsetMask);
  EXPECT_EQ(first_byte(file, get(file, l2)), std::byte{1});
  EXPECT_EQ(first_byte(file, get(file, l2 + 8)), std::byte{1});
  EXPECT_NE(get(file, l2 + 8) & kCopied, 0u);
  ASSERT_EQ(repaired.log.in_doubt.size(), 1u);
  EXPECT_EQ(repaired.log.in_doubt[0].offset, 0u);
  EXPECT_EQ(repaired.log.in_doubt[0].length, 2u * 4096);
  EXPECT_TRUE(repaired.log.in_doubt[0].active);
  const Counts qemu = qemu_counts(file.bytes());
  EXPECT_EQ(qemu.corruptions, 0u);
  EXPECT_EQ(qemu.leaks, 1u);
}

// R1: the promise holds for whoever repairs next.
TEST_F(RecoverTest, WhatWasKeptStaysKept) {
  MemoryDevice file(*reactor_);
  cross_link(file);
  const uint64_t orphan = l2_of(file) + 2 * 4096;
  repair(file);
  for (const Repair mode : {Repair::leaks, Repair::refcounts, Repair::all}) {
    const CheckReport report = check(file, mode);
    EXPECT_EQ(report.leaks, 1u);
    EXPECT_EQ(report.orphans_kept, 1u);
  }
  const ImageBytes before = file.bytes();
  const Recovery again = repair(file);
  EXPECT_FALSE(again.needed);
  EXPECT_EQ(again.left.leaks, 1u);
  EXPECT_TRUE(file.bytes() == before);
  EXPECT_EQ(first_byte(file, orphan), std::byte{2});

  const Recovery freed = repair(file, {.free_orphans = true});
  EXPECT_TRUE(freed.orphans_freed);
  EXPECT_EQ(qemu_counts(file.bytes()).code, 0);
  EXPECT_FALSE(repair(file).needed);
}

TEST_F(RecoverTest, AnOrphanThatWasSavedIsFreed) {
  MemoryDevice file(*reactor_);
  cross_link(file);
  const uint64_t orphan = l2_of(file) + 2 * 4096;
  MemoryDevice saved(*reactor_);
  const Recovery repaired = repair(file, {.save_orphans_to = &saved});
  EXPECT_EQ(repaired.orphans_saved, 1u);
  EXPECT_TRUE(repaired.orphans_freed);
  EXPECT_EQ(repaired.left.leaks, 0u);
  ImageBytes content(4096);
  saved.peek(orphan, content);
  EXPECT_TRUE(content == ImageBytes(4096, std::byte{2}));
  EXPECT_EQ(qemu_counts(file.bytes()).code, 0);
}

TEST_F(RecoverTest, TheFindingOfACrossLinkNamesBothGuestRangesAndTheLikelyCause) {
  MemoryDevice file(*reactor_);
  cross_link(file);
  const CheckReport report = findings(file);
  const Finding* finding = find(report, FindingKind::two_owners);
  ASSERT_TRUE(finding) << words_of(report);
  EXPECT_EQ(finding->severity, Severity::corruption);
  EXPECT_EQ(finding->cause, Cause::reuse_race);
  EXPECT_EQ(finding->repair, RepairKind::unshare);
  EXPECT_EQ(finding->host_offset, l2_of(file) + 4096);
  EXPECT_EQ(finding->host_length, 4096u);
  ASSERT_EQ(finding->guests_count, 2u);
  EXPECT_EQ(finding->guests[0], (Finding::Guest{0, 4096, true, {}}));
  EXPECT_EQ(finding->guests[1], (Finding::Guest{4096, 4096, true, {}}));
  const Finding* leak = find(report, FindingKind::refcount_too_large);
  ASSERT_TRUE(leak);
  EXPECT_EQ(leak->repair, RepairKind::set_aside);
}

TEST_F(RecoverTest, APlanWritesNothingAndSaysWhatTheRepairThenDoes) {
  MemoryDevice file(*reactor_);
  cross_link(file);
  const ImageBytes before = file.bytes();
  const Recovery planned = plan(file);
  EXPECT_TRUE(file.bytes() == before);
  EXPECT_TRUE(planned.needed);
  EXPECT_EQ(planned.refused, "");
  const Recovery done = repair(file);
  ASSERT_EQ(planned.log.actions.size(), done.log.actions.size());
  for (size_t i = 0; i < done.log.actions.size(); ++i) {
    EXPECT_EQ(planned.log.actions[i].text, done.log.actions[i].text);
  }
  EXPECT_EQ(planned.left.leaks, done.left.leaks);
  // Without the damage nobody knows that the orphan was one; it is listed, at least.
  const Recovery next = plan(file);
  EXPECT_EQ(next.found.corruptions, 0u);
  EXPECT_EQ(next.orphans.size(), 1u);
}

// The L1 entry was written, its sync failed, and the L2 table was freed and reused.
TEST_F(RecoverTest, TwoL1EntriesOnOneTableGetATableEach) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = 64 * MiB, .cluster_size = 4096}, 4);
  const uint64_t l1 = get(file, 40);
  put(file, l1 + 8, get(file, l1));
  const CheckReport report = findings(file);
  const Finding* finding = find(report, FindingKind::shared_table);
  ASSERT_TRUE(finding) << words_of(report);
  EXPECT_EQ(finding->cause, Cause::failed_l1_update);
  EXPECT_EQ(finding->guests_count, 2u);

  const Recovery repaired = repair(file);
  EXPECT_EQ(repaired.refused, "");
  EXPECT_EQ(repaired.left.corruptions + repaired.left.leaks, 0u) << words_of(repaired.left);
  EXPECT_NE(l2_of(file, 0), l2_of(file, 1));
  for (uint64_t i = 0; i < 4; ++i) {
    const uint64_t one = get(file, l2_of(file, 0) + 8 * i);
    const uint64_t other = get(file, l2_of(file, 1) + 8 * i);
    EXPECT_NE(one & kOffsetMask, other & kOffsetMask);
    EXPECT_EQ(first_byte(file, one), first_byte(file, other));
  }
  EXPECT_EQ(qemu_counts(file.bytes()).code, 0);
}

// A stale packing cursor; data and compressed data in one cluster.
TEST_F(RecoverTest, DataInAClusterOfCompressedDataMovesAway) {
  ImageBytes image =
      make("-o cluster_size=4k", "4M", {"write -q -c -P 2 0 64k", "write -q -P 3 128k 64k"});
  MemoryDevice file(*reactor_, image);
  const uint64_t l2 = l2_of(file);
  const uint64_t stream = get(file, l2) & ((uint64_t{1} << 58) - 1) & ~uint64_t{4095};
  put(file, l2 + 8 * 32, stream | kCopied);
  const CheckReport report = findings(file);
  const Finding* finding = find(report, FindingKind::two_owners);
  ASSERT_TRUE(finding) << words_of(report);
  EXPECT_EQ(finding->cause, Cause::stale_packing);
  const Recovery repaired = repair(file, {.free_orphans = true});
  EXPECT_EQ(repaired.refused, "");
  EXPECT_EQ(repaired.left.corruptions + repaired.left.leaks, 0u) << words_of(repaired.left);
  save(file.bytes(), "after");
  must("qemu-img check -q after");
  must("qemu-io -f qcow2 -c 'read -q -P 2 0 64k' -c 'read -q -P 3 132k 60k' after");
}

// Two streams that overlap: the second begins in the middle of the first.
TEST_F(RecoverTest, CrossedStreamsGetAPlaceEachAndAreNamed) {
  std::string noise(512 * 1024, 0);
  Prng prng(7);
  for (char& c : noise) c = static_cast<char>('a' + prng.below(16));
  std::ofstream(folder_ / "noise", std::ios::binary) << noise;
  must("qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k noise made");
  ImageBytes image = load("made");
  MemoryDevice file(*reactor_, image);
  const uint64_t l2 = l2_of(file);
  EXPECT_EQ(reactor_->run(check_image(file, {.decode = true}))->corruptions, 0u);
  // Each is more than two sectors long.
  put(file, l2 + 8, get(file, l2) + 512);
  const Result<CheckReport> report =
      reactor_->run(check_image(file, {.attribute = true, .decode = true}));
  ASSERT_TRUE(report);
  const Finding* overlapping = find(*report, FindingKind::overlapping_streams);
  ASSERT_TRUE(overlapping) << words_of(*report);
  EXPECT_EQ(overlapping->cause, Cause::stale_packing);
  EXPECT_EQ(overlapping->guests[0].offset, 4096u);
  const Finding* bad = find(*report, FindingKind::bad_stream);
  ASSERT_TRUE(bad) << words_of(*report);
  EXPECT_EQ(bad->guests[0].offset, 4096u);

  const Recovery repaired = repair(file, {.free_orphans = true});
  EXPECT_EQ(repaired.refused, "");
  EXPECT_EQ(repaired.left.corruptions + repaired.left.leaks, 0u) << words_of(repaired.left);
  EXPECT_NE(repaired.log.in_doubt.size(), 0u);
  const Result<CheckReport> after = reactor_->run(check_image(file, {.decode = true}));
  EXPECT_EQ(find(*after, FindingKind::overlapping_streams), nullptr) << words_of(*after);
  EXPECT_EQ(qemu_counts(file.bytes()).code, 0);
}

// The OpenBSD report of 2026: a refcount block in the second cluster of its region is not counted.
TEST_F(RecoverTest, AnUncountedRefcountBlockIsKnownByItsPlace) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = 64 * MiB, .cluster_size = 512});
  // 256 clusters a block: the data cluster at 256 brought the block at 257.
  const uint64_t block = 257 * 512;
  put(file, get(file, 48) + 8, block);
  file.poke(block, ImageBytes(512));
  const CheckReport report = findings(file);
  const Finding* finding = find(report, FindingKind::refcount_too_small);
  ASSERT_TRUE(finding) << words_of(report);
  EXPECT_EQ(finding->cause, Cause::vmd_refcount_block);
  EXPECT_EQ(finding->host_offset, block);
  const Recovery repaired = repair(file);
  EXPECT_EQ(repaired.left.corruptions + repaired.left.leaks, 0u) << words_of(repaired.left);
  EXPECT_EQ(qemu_counts(file.bytes()).code, 0);
}

TEST_F(RecoverTest, APointerWithOneWrongBitIsKnownByTheOrphanItMissed) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = MiB, .cluster_size = 4096}, 4);
  const uint64_t l2 = l2_of(file);
  const uint64_t entry = get(file, l2 + 16);
  put(file, l2 + 16, entry ^ uint64_t{1} << 40);
  const CheckReport report = findings(file);
  const Finding* finding = find(report, FindingKind::behind_end);
  ASSERT_TRUE(finding) << words_of(report);
  EXPECT_EQ(finding->cause, Cause::bit_flip);
  EXPECT_EQ(finding->intended, entry & kOffsetMask);
}

TEST_F(RecoverTest, AnImageThatMissesDataIsRefusedAndUntouched) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = MiB, .cluster_size = 4096}, 8);
  ASSERT_TRUE(reactor_->run(file.resize(file.size() - 3 * 4096)));
  count(file, 6, 0);  // This much could be repaired.
  const ImageBytes before = file.bytes();
  const Recovery refused = repair(file);
  EXPECT_NE(refused.refused, "");
  EXPECT_TRUE(file.bytes() == before);
  EXPECT_NE(refused.log.in_doubt.size(), 0u);
}

TEST_F(RecoverTest, CopiesThatWouldOutgrowTheImageAreRefused) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = uint64_t{1} << 40, .cluster_size = 2 * MiB}, 1);
  const uint64_t l2 = l2_of(file);
  for (uint64_t i = 1; i < 262144; ++i) put(file, l2 + 8 * i, get(file, l2));
  const Recovery refused = repair(file);
  EXPECT_NE(refused.refused.find("more than the image has"), std::string::npos) << refused.refused;
}

TEST_F(RecoverTest, FindingsNameTheSnapshotsThatSeeThem) {
  const ImageBytes image =
      make("-o cluster_size=4k", "4M", {"write -q -P 1 0 16k"},
           {"qemu-img snapshot -c monday made", "qemu-io -f qcow2 -c 'write -q -P 4 0 4k' made"});
  MemoryDevice file(*reactor_, image);
  // Of the snapshot's table: its second cluster leads to its first.
  const uint64_t table = get(file, 64);
  const uint64_t l2 = get(file, get(file, table)) & kOffsetMask;
  put(file, l2 + 8, get(file, l2));
  const CheckReport report = findings(file);
  bool named = false;
  for (const Finding& finding : report.findings) {
    if (finding.kind != FindingKind::two_owners) continue;
    for (const Finding::Guest& guest : finding.guests) {
      named |= !guest.active && guest.snapshots == std::vector<std::string>{"monday"};
    }
  }
  EXPECT_TRUE(named) << words_of(report);
  const Recovery repaired = repair(file, {.free_orphans = true});
  EXPECT_EQ(repaired.refused, "");
  EXPECT_EQ(repaired.left.corruptions + repaired.left.leaks, 0u) << words_of(repaired.left);
  EXPECT_EQ(qemu_counts(file.bytes()).code, 0);
}

// Whatever the damage: what is accepted is clean for QEMU, and every guest cluster that was not in
// doubt reads as before; what is refused is not touched.  And undo restores every byte.
TEST_F(RecoverTest, RandomDamageIsRepairedWholeOrNotTouched) {
  const std::vector<ImageBytes> images = small_images();
  int accepted = 0;
  int refused = 0;
  for (uint64_t seed = 5000; seed < 5160; ++seed) {
    Prng prng(seed);
    ImageBytes image = images[prng.below(images.size())];
    std::string what = cat("seed ", seed, ":");
    for (uint64_t n = prng.between(1, 3); n != 0; --n) {
      const Damage damaged = damage(image, prng);
      what += cat(" ", damaged.kind, " at ", hex(damaged.at), " = ", hex(damaged.value));
    }
    SCOPED_TRACE(what);
    MemoryDevice file(*reactor_, image);
    MemoryDevice kept(*reactor_, 0, "journal");
    MemoryDevice orphans(*reactor_);
    const Recovery planned = plan(file);
    EXPECT_TRUE(file.bytes() == image);
    if (!planned.refused.empty()) {
      ++refused;
      continue;
    }
    Result<UndoJournal> journal = reactor_->run(UndoJournal::begin(file, kept));
    ASSERT_TRUE(journal) << journal.error().message();
    UndoDevice device(file, *journal);
    const Recovery done = repair(device, {.save_orphans_to = &orphans});
    EXPECT_EQ(done.refused, "");
    EXPECT_EQ(done.left.corruptions + done.left.leaks, 0u) << words_of(done.left);
    EXPECT_EQ(qemu_counts(file.bytes()).code, 0) << words_of(done.found);
    ++accepted;

    const Result<void> undone = reactor_->run(undo_repair(file, kept));
    ASSERT_TRUE(undone) << undone.error().message();
    EXPECT_TRUE(file.bytes() == image);
  }
  EXPECT_GT(accepted, 60);
  EXPECT_GT(refused, 20);
}

// ---- Undo.

class UndoTest : public RecoverTest {
 protected:
  /// A cross-linked image, repaired, and its journal.
  void repaired_pair(MemoryDevice& file, MemoryDevice& kept) {
    cross_link(file);
    Result<UndoJournal> journal = reactor_->run(UndoJournal::begin(file, kept));
    ASSERT_TRUE(journal) << journal.error().message();
    UndoDevice device(file, *journal);
    const Recovery done = repair(device);
    ASSERT_EQ(done.refused, "");
    ASSERT_EQ(done.left.corruptions, 0u);
  }
  void expect_refused(MemoryDevice& file, MemoryDevice& kept, std::string_view why) {
    const ImageBytes before = file.bytes();
    const Result<void> undone = reactor_->run(undo_repair(file, kept));
    ASSERT_FALSE(undone);
    EXPECT_NE(undone.error().message().find(why), std::string::npos) << undone.error().message();
    EXPECT_TRUE(file.bytes() == before);
  }
};

TEST_F(UndoTest, ItRestoresEveryByteAndTheLengthAndCanBeRunAgain) {
  MemoryDevice made(*reactor_);
  cross_link(made);
  MemoryDevice file(*reactor_);
  MemoryDevice kept(*reactor_);
  repaired_pair(file, kept);
  EXPECT_GT(file.size(), made.size());
  for (int i = 0; i < 2; ++i) {
    const Result<void> undone = reactor_->run(undo_repair(file, kept));
    ASSERT_TRUE(undone) << undone.error().message();
    EXPECT_TRUE(file.bytes() == made.bytes());
  }
}

TEST_F(UndoTest, AnImageThatWasWrittenToSinceIsRefused) {
  {
    MemoryDevice file(*reactor_), kept(*reactor_);
    repaired_pair(file, kept);
    put(file, l2_of(file) + 8 * 9, get(file, l2_of(file) + 16));  // A sector that was changed.
    expect_refused(file, kept, "was written by somebody else");
  }
  {
    MemoryDevice file(*reactor_), kept(*reactor_);
    repaired_pair(file, kept);
    put(file, l2_of(file) + 8 * 300, uint64_t{1} << 20);  // Metadata that was not.
    expect_refused(file, kept, "metadata");
  }
  {
    MemoryDevice file(*reactor_), kept(*reactor_);
    repaired_pair(file, kept);
    const uint64_t copy = get(file, l2_of(file) + 8) & kOffsetMask;
    put(file, copy + 512, 1);  // Data in a copy: the guest went on with it.
    expect_refused(file, kept, "guest offset 0x1000 (4096 bytes)");
  }
  {
    MemoryDevice file(*reactor_), kept(*reactor_);
    repaired_pair(file, kept);
    put(file, (get(file, l2_of(file)) & kOffsetMask) + 512, 1);  // Data in what was copied.
    expect_refused(file, kept, "guest offset 0x0 (8192 bytes)");
  }
  {
    MemoryDevice file(*reactor_), kept(*reactor_);
    repaired_pair(file, kept);
    put(file, (get(file, l2_of(file) + 16) & kOffsetMask) + 512, 1);  // Data of nobody else.
    const Result<void> undone = reactor_->run(undo_repair(file, kept));
    EXPECT_TRUE(undone) << undone.error().message();
    EXPECT_EQ(get(file, (get(file, l2_of(file) + 16) & kOffsetMask) + 512), 1u);
  }
}

TEST_F(UndoTest, AJournalOfAnotherImageIsRefused) {
  MemoryDevice file(*reactor_), kept(*reactor_);
  repaired_pair(file, kept);
  MemoryDevice other(*reactor_);
  small_image(other, {.size = MiB, .cluster_size = 4096}, 4);
  expect_refused(other, kept, "nothing was changed");
  MemoryDevice no_journal(*reactor_, ImageBytes(4096, std::byte{1}));
  expect_refused(file, no_journal, "no undo journal");
  MemoryDevice later = MemoryDevice(*reactor_, kept.bytes());
  const std::byte three[] = {std::byte{3}};
  later.poke(11, three);
  expect_refused(file, later, "version 3");
}

TEST_F(UndoTest, AJournalThatIsDamagedInTheMiddleIsRefused) {
  MemoryDevice file(*reactor_), kept(*reactor_);
  repaired_pair(file, kept);
  put(kept, 512 + 40, 7);
  expect_refused(file, kept, "is damaged");
}

TEST_F(UndoTest, AWriteThatChangesNothingIsNotKept) {
  MemoryDevice file(*reactor_), kept(*reactor_);
  cross_link(file);
  Result<UndoJournal> journal = reactor_->run(UndoJournal::begin(file, kept));
  ASSERT_TRUE(journal);
  UndoDevice device(file, *journal);
  ImageBytes same(1000);
  file.peek(700, same);
  ASSERT_TRUE(reactor_->run(device.write(700, same, {})));
  EXPECT_EQ(journal->sectors().size(), 0u);
  same[0] ^= std::byte{1};
  ASSERT_TRUE(reactor_->run(device.write(700, same, {})));
  EXPECT_EQ(journal->sectors().size(), 3u);
  EXPECT_EQ(journal->bytes_kept(), 3u * 512);
}

// A power loss at any moment of a repair: image and journal undo to the image as it was, and the
// repair can be run again on top, and then undone.
TEST_F(UndoTest, ARepairThatIsCutShortAnywhereCanBeUndoneAndRunAgain) {
  MemoryDevice made(*reactor_);
  cross_link(made);
  count(made, 8, 0);
  count(made, 60, 1);
  made.poke(60 * 4096, ImageBytes(4096, std::byte{0x60}));
  const ImageBytes before = made.bytes();

  const auto device_on = [](SimReactor& reactor, SimDisk& disk, const char* name) {
    return std::make_unique<RawDevice>(
        std::make_unique<File>(reactor, File::Properties{.name = name,
                                                         .fd = disk.open(reactor, true),
                                                         .size = disk.size(),
                                                         .writable = true}),
        RawOptions{.growable = true});
  };
  /// One process: opens or goes on with the journal, and repairs.
  const auto repair_once = [&](SimDisk& disk, SimDisk& kept, uint64_t seed,
                               std::function<void()> at_each_step) -> Result<Recovery> {
    SimReactor reactor(seed);
    reactor.after_delivery = std::move(at_each_step);
    const auto image = device_on(reactor, disk, "disk");
    const auto file = device_on(reactor, kept, "journal");
    const auto work = [](Device& on, Device& journal_file) -> Task<Recovery> {
      std::optional<UndoJournal> journal;
      if (journal_file.size() == 0) {
        journal = co_await UndoJournal::begin(on, journal_file);
      } else {
        journal = co_await UndoJournal::load(journal_file);
        co_await journal->check(on);
        co_await journal->trim();
      }
      UndoDevice device(on, *journal);
      co_return co_await recover(device, {.free_orphans = true});
    };
    return reactor.finish(work(*image, *file));
  };
  const auto undo_once = [&](SimDisk& disk, SimDisk& kept, uint64_t seed,
                             std::function<void()> at_each_step) -> Result<void> {
    SimReactor reactor(seed);
    reactor.after_delivery = std::move(at_each_step);
    const auto image = device_on(reactor, disk, "disk");
    const auto file = device_on(reactor, kept, "journal");
    return reactor.finish(undo_repair(*image, *file));
  };
  const auto content = [](const SimDisk& disk) { return disk.read(0, disk.size()); };

  SimDisk disk;
  disk.put(0, before);
  SimDisk kept;
  std::vector<std::pair<SimDisk, SimDisk>> left;
  uint64_t draws = 0;
  const auto collect = [&](std::vector<std::pair<SimDisk, SimDisk>>& to, SimDisk& image,
                           SimDisk& journal) {
    if (image.log().empty() && journal.log().empty()) return;
    to.emplace_back(image.cut(CutChoice::none()), journal.cut(CutChoice::none()));
    to.emplace_back(image.cut(CutChoice::all()), journal.cut(CutChoice::all()));
    to.emplace_back(image.cut(CutChoice::all()), journal.cut(CutChoice::none()));
    for (int i = 0; i < 3; ++i) {
      ++draws;
      to.emplace_back(image.cut(CutChoice::random(draws)), journal.cut(CutChoice::random(~draws)));
    }
  };
  const Result<Recovery> whole = repair_once(disk, kept, 1, [&] { collect(left, disk, kept); });
  ASSERT_TRUE(whole) << whole.error().message();
  ASSERT_EQ(whole->left.corruptions + whole->left.leaks, 0u);
  left.emplace_back(disk, kept);
  ASSERT_GT(left.size(), 60u);

  uint64_t number = 0;
  for (auto& [image, journal] : left) {
    SCOPED_TRACE(cat("cut ", ++number));
    // The journal's first sector may not be there, whole; then the image was not touched.
    SimDisk image_alone = image;
    SimDisk journal_alone = journal;
    {
      SimReactor probe(1);
      const auto file = device_on(probe, journal_alone, "journal");
      if (!probe.finish(UndoJournal::load(*file))) {
        EXPECT_TRUE(content(image) == before);
        continue;
      }
    }
    const Result<void> undone = undo_once(image_alone, journal_alone, number, nullptr);
    ASSERT_TRUE(undone) << undone.error().message();
    ASSERT_TRUE(content(image_alone) == before);

    const Result<Recovery> again = repair_once(image, journal, number, nullptr);
    ASSERT_TRUE(again) << again.error().message();
    ASSERT_EQ(again->left.corruptions + again->left.leaks, 0u) << words_of(again->left);
    const Result<void> undone_after = undo_once(image, journal, number, nullptr);
    ASSERT_TRUE(undone_after) << undone_after.error().message();
    ASSERT_TRUE(content(image) == before);
  }

  // And cuts of the undo itself.
  std::vector<std::pair<SimDisk, SimDisk>> half_undone;
  const Result<void> undone = undo_once(disk, kept, 2, [&] { collect(half_undone, disk, kept); });
  ASSERT_TRUE(undone);
  ASSERT_GT(half_undone.size(), 6u);
  for (auto& [image, journal] : half_undone) {
    SCOPED_TRACE(cat("cut of the undo ", ++number));
    const Result<void> again = undo_once(image, journal, number, nullptr);
    ASSERT_TRUE(again) << again.error().message();
    ASSERT_TRUE(content(image) == before);
  }
}

}  // namespace
}  // namespace byre
