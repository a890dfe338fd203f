// SPDX-License-Identifier: Apache-2.0
/// Ways to get qcow2 wrong that only an engine can fall into, one test each; and what the simulator
/// has found, kept as short histories.
#include <gtest/gtest.h>

#include "base/prng.h"
#include "format/header.h"
#include "format/l2.h"
#include "format/refcount.h"
#include "qcow2/memory_image_testing.h"

namespace byre {
namespace {

/// Refcounts are believed, so what they say is what there is to go by (else: ops/heal_test.cc).
const ImageOptions kTrusting{.writable = true, .scan = ImageOptions::Scan::never};

class Traps : public MemoryImageTest {
 protected:
  Result<std::unique_ptr<Image>> open(ImageOptions options = {.writable = true}) {
    script_ = {.discards = false};
    return try_open(std::move(options));
  }
};

TEST_F(Traps, Trap8UnknownAutoclearBitsGoAtAWritableOpenOnly) {
  create();
  set_word(88, uint64_t{1} << 40);
  auto reader = open({.writable = false});
  ASSERT_TRUE(reader);
  close(**reader);
  EXPECT_EQ(word(88), uint64_t{1} << 40);
  auto writer = open();
  ASSERT_TRUE(writer);
  EXPECT_EQ(word(88), 0u);
  close(**writer);
}

TEST_F(Traps, Trap11ACorruptImageIsReadButNotWritten) {
  create();
  set_word(72, kCorrupt);
  const std::vector<std::byte> before = memory_.bytes();
  EXPECT_FALSE(open());
  auto reader = open({.writable = false});
  ASSERT_TRUE(reader);
  EXPECT_EQ(value_at(**reader, 0, 4096), 0);
  close(**reader);
  EXPECT_EQ(memory_.bytes(), before);
}

TEST_F(Traps, Trap11ADirtyImageIsRebuiltWithAMessageAndReadWithoutOne) {
  create();
  auto writer = open();
  ASSERT_TRUE(writer);
  write(**writer, 0, 64 * KiB, 1);
  close(**writer);
  set_word(72, kDirty);
  set_refcount16(5, 0);
  auto reader = open({.writable = false});
  ASSERT_TRUE(reader);
  EXPECT_EQ(value_at(**reader, 0, 64 * KiB), 1);
  close(**reader);
  EXPECT_EQ(word(72), kDirty);

  std::string told;
  auto again = open({.writable = true, .message = [&](const std::string& text) { told = text; }});
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_NE(told.find("not closed cleanly"), std::string::npos) << told;
  write(**again, 64 * KiB, 64 * KiB, 2);
  EXPECT_EQ(value_at(**again, 0, 64 * KiB), 1);
  close(**again);
  EXPECT_EQ(word(72), 0u);
}

// A table that a snapshot shares: its entries may say COPIED, the L1 entry does not.
TEST_F(Traps, Trap32ASharedL2TableIsCopiedBeforeItIsChanged) {
  create();
  auto writer = open();
  ASSERT_TRUE(writer);
  write(**writer, 0, 64 * KiB, 1);
  close(**writer);
  const uint64_t l1 = word(40);
  const uint64_t table = word(l1) & 0x00fffffffffffe00;
  const uint64_t data = word(table) & 0x00fffffffffffe00;
  set_word(l1, table);  // COPIED off, as if a snapshot had the other reference.
  set_refcount16(table / (64 * KiB), 2);
  set_refcount16(data / (64 * KiB), 2);

  auto again = open();
  ASSERT_TRUE(again);
  write(**again, 4096, 4096, 2);
  EXPECT_EQ(value_at(**again, 0, 4096), 1);
  EXPECT_EQ(value_at(**again, 4096, 4096), 2);
  close(**again);
  std::vector<std::byte> old(64 * KiB);
  memory_.peek(data, old);
  EXPECT_EQ(old, std::vector<std::byte>(64 * KiB, std::byte{1}));
  EXPECT_NE(word(l1) & 0x00fffffffffffe00, table);
  EXPECT_EQ(word(table) & 0x00fffffffffffe00, data);
}

TEST_F(Traps, Trap31ACopiedTableWithTwoReferencesIsNotWritten) {
  create();
  auto writer = open();
  ASSERT_TRUE(writer);
  write(**writer, 0, 64 * KiB, 1);
  close(**writer);
  const uint64_t table = word(word(40)) & 0x00fffffffffffe00;
  set_refcount16(table / (64 * KiB), 2);
  auto again = open(kTrusting);
  ASSERT_TRUE(again);
  const std::vector<std::byte> data(512);
  const Result<void> done = reactor_->run((*again)->write(128 * KiB, data, {}));
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code(), Errc::corrupt);
  close(**again);
}

TEST_F(Traps, Trap42TwoL1EntriesOnOneTableAreRefused) {
  create({.size = 64 * MiB, .cluster_size = 512});
  auto writer = open();
  ASSERT_TRUE(writer);
  write(**writer, 0, 512, 1);
  close(**writer);
  const uint64_t l1 = word(40);
  set_word(l1 + 8, word(l1));
  const auto again = open(kTrusting);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code(), Errc::corrupt);
}

TEST_F(Traps, Trap42AnL2TableBehindTheEndIsAnErrorWhereItIsUsed) {
  create({.size = 64 * MiB, .cluster_size = 512});
  set_word(word(40) + 8, 0x8000000000000000 | (1 * GiB));
  auto reader = open({.writable = false});
  ASSERT_TRUE(reader);
  EXPECT_EQ(value_at(**reader, 0, 512), 0);
  EXPECT_EQ(value_at(**reader, 64 * 512, 512), -2);
  close(**reader);
}

// Stale by design: tables of a snapshot say COPIED of clusters that are shared by now, or were.
TEST_F(Traps, Trap30CopiedInATableOfASnapshotMeansNothing) {
  create();
  auto writer = open();
  ASSERT_TRUE(writer);
  write(**writer, 0, 64 * KiB, 1);
  ASSERT_TRUE(reactor_->run((*writer)->create_snapshot({.name = "s"})));
  write(**writer, 0, 64 * KiB, 2);
  const uint64_t l1 = (*writer)->snapshots().at(0).l1_offset.value;
  close(**writer);
  const uint64_t table = word(l1);
  set_word(l1, table ^ (uint64_t{1} << 63));
  const uint64_t entry = word(table & 0x00fffffffffffe00);
  set_word(table & 0x00fffffffffffe00, entry ^ (uint64_t{1} << 63));
  expect_sound();
  auto reader = open({.snapshot = "s"});
  ASSERT_TRUE(reader) << reader.error().message();
  EXPECT_EQ(value_at(**reader, 0, 64 * KiB), 1);
  close(**reader);
}

/// Data that become a stream of some 2000 bytes, so that at 4 KiB clusters the second of two lies
/// in two host clusters.
std::vector<std::byte> half_random(int seed) {
  std::vector<std::byte> data(4 * KiB);
  Prng prng(static_cast<uint64_t>(seed));
  for (size_t i = 0; i < 2700; ++i) data[i] = static_cast<std::byte>(prng.below(256));
  return data;
}

// Three streams one behind the other: the second shares a host cluster with each of the others.
TEST_F(Traps, Trap56And57AStreamGivesUpEachOfItsClustersAndNoneOfItsNeighbours) {
  create({.size = 1 * MiB, .cluster_size = 4 * KiB});
  auto writer = open();
  ASSERT_TRUE(writer);
  for (uint64_t i = 0; i < 3; ++i) {
    const auto data = half_random(static_cast<int>(i));
    const Result<void> done =
        reactor_->run((*writer)->write(i * 4 * KiB, data, {.compressed = true}));
    ASSERT_TRUE(done) << done.error().message();
  }
  close(**writer);
  expect_sound();

  for (const bool discard : {false, true}) {
    auto again = open();
    ASSERT_TRUE(again);
    if (discard) {
      ASSERT_TRUE(reactor_->run((*again)->discard(0, 4 * KiB, {})));
    } else {
      write(**again, 4 * KiB, 512, 7);  // Trap 56: the stream becomes an ordinary cluster.
    }
    close(**again);
    expect_sound();
    auto reader = open({});
    ASSERT_TRUE(reader);
    std::vector<std::byte> data(4 * KiB);
    ASSERT_TRUE(reactor_->run((*reader)->read(8 * KiB, data, IoTag::none)));
    EXPECT_EQ(data, half_random(2));  // Trap 57: what it shared a cluster with is still there.
    ASSERT_TRUE(reactor_->run((*reader)->read(4 * KiB, data, IoTag::none)));
    EXPECT_TRUE(std::equal(data.begin() + 512, data.end(), half_random(1).begin() + 512));
    close(**reader);
  }
}

// Trap 58: the entry follows the stream, not the other way round.
TEST_F(Traps, Trap58AStreamThatCouldNotBeWrittenIsNotPointedTo) {
  create();
  auto writer = open();
  ASSERT_TRUE(writer);
  write(**writer, 0, 64 * KiB, 1);
  script_.failing_writes_of = IoTag::write_compressed;
  const std::vector<std::byte> data(64 * KiB, std::byte{2});
  EXPECT_FALSE(reactor_->run((*writer)->write(0, data, {.compressed = true})));
  EXPECT_EQ(value_at(**writer, 0, 64 * KiB), 1);
  script_.failing_writes_of = IoTag::none;
  close(**writer);
  expect_sound();
}

// The refcount block that nobody counted: a writer that goes on hands it out and overwrites it.
TEST_F(Traps, Trap62AnUncountedRefcountBlockIsNotWrittenOver) {
  create();
  const uint64_t block = word(word(48));
  set_refcount16(block / (64 * KiB), 0);
  const auto writer = open(kTrusting);
  ASSERT_FALSE(writer);
  EXPECT_NE(writer.error().message().find("check -r all"), std::string::npos)
      << writer.error().message();
}

TEST_F(Traps, Trap97DataBehindATruncatedFileAreAnError) {
  create();
  auto writer = open();
  ASSERT_TRUE(writer);
  write(**writer, 0, 128 * KiB, 1);
  close(**writer);
  const Result<void> cut = reactor_->run(memory_.resize(memory_.size() - 64 * KiB));
  ASSERT_TRUE(cut);
  auto reader = open({.writable = false});
  ASSERT_TRUE(reader);
  EXPECT_EQ(value_at(**reader, 0, 64 * KiB), 1);
  EXPECT_EQ(value_at(**reader, 64 * KiB, 64 * KiB), -2);
  close(**reader);
}

// Simulation, no-space 25: a freed cluster counts as zeros only when the disk has said that it made
// a hole.
TEST_F(Traps, ARecycledClusterOnADiskWithoutHolesIsFilled) {
  create();
  auto image = open();
  ASSERT_TRUE(image);
  script_.holes = false;
  write(**image, 0, 64 * KiB, 0x77);
  ASSERT_TRUE(reactor_->run((*image)->discard(0, 64 * KiB, {})));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(reactor_->run((*image)->flush()));
  write(**image, 512 * KiB, 512, 1);  // Gets the freed cluster.
  EXPECT_EQ(value_at(**image, 512 * KiB, 512), 1);
  EXPECT_EQ(value_at(**image, 512 * KiB + 512, 63 * KiB), 0);
  close(**image);
}

// Simulation, kth-fault 36: after a failed sync nobody knows what a fresh cluster holds.
TEST_F(Traps, AfterAFailedSyncFreshDataAreAnErrorAndOldDataAreRead) {
  create();
  auto image = open();
  ASSERT_TRUE(image);
  write(**image, 0, 64 * KiB, 1);
  ASSERT_TRUE(reactor_->run((*image)->flush()));
  write(**image, 64 * KiB, 64 * KiB, 2);
  EXPECT_EQ(value_at(**image, 64 * KiB, 64 * KiB), 2);
  script_.fail_flushes = true;
  EXPECT_FALSE(reactor_->run((*image)->flush()));
  script_.fail_flushes = false;
  EXPECT_FALSE(reactor_->run((*image)->flush())) << "the error latches";
  EXPECT_EQ(value_at(**image, 0, 64 * KiB), 1);
  EXPECT_EQ(value_at(**image, 64 * KiB, 64 * KiB), -2);
  const std::vector<std::byte> data(512);
  EXPECT_FALSE(reactor_->run((*image)->write(0, data, {})));
  EXPECT_FALSE(reactor_->run((*image)->close()));

  auto again = open();
  ASSERT_TRUE(again);
  EXPECT_EQ(value_at(**again, 0, 64 * KiB), 1);
  close(**again);
}

// A shorter backing file, or none: what a grown disk gains reads as zeros, the tail of its last
// cluster too.
TEST_F(Traps, Trap120GrowingShowsNothingOld) {
  create({.size = 96 * KiB});
  auto image = open();
  ASSERT_TRUE(image);
  write(**image, 0, 96 * KiB, 3);
  close(**image);
  const uint64_t table = word(word(40)) & 0x00fffffffffffe00;
  const uint64_t last = word(table + 8) & 0x00fffffffffffe00;
  memory_.poke(last + 32 * KiB,
               std::vector<std::byte>(32 * KiB, std::byte{0x22}));  // Behind the end.
  auto again = open();
  ASSERT_TRUE(again);
  const Result<void> grown = reactor_->run((*again)->resize(1 * MiB));
  ASSERT_TRUE(grown) << grown.error().message();
  EXPECT_EQ(value_at(**again, 0, 96 * KiB), 3);
  EXPECT_EQ(value_at(**again, 96 * KiB, 1 * MiB - 96 * KiB), 0);
  close(**again);
}

// The old L1 table is given up by a header write, not by a staged entry; it must not leak for that.
TEST_F(Traps, GrowingTheL1TableLeavesNoLeak) {
  for (const bool lazy : {false, true}) {
    ASSERT_TRUE(reactor_->run(memory_.resize(0)));
    create({.size = 1 * GiB, .lazy_refcounts = lazy});
    auto image = open();
    ASSERT_TRUE(image);
    ASSERT_TRUE(reactor_->run((*image)->resize(1 * TiB)));
    close(**image);
    expect_sound();
  }
}

// A table that a snapshot shares shares its clusters, even once our copy of it is committed.
TEST_F(Traps, Trap32TheCopyOfASharedTableHasNoCopiedEntries) {
  create();
  auto writer = open();
  ASSERT_TRUE(writer);
  write(**writer, 0, 128 * KiB, 1);
  close(**writer);
  const uint64_t l1 = word(40);
  const uint64_t table = word(l1) & 0x00fffffffffffe00;
  const uint64_t second = word(table + 8) & 0x00fffffffffffe00;
  set_word(l1, table);
  for (const uint64_t at : {table, word(table) & 0x00fffffffffffe00, second}) {
    set_refcount16(at / (64 * KiB), 2);
  }
  auto again = open();
  ASSERT_TRUE(again);
  write(**again, 0, 4096, 2);
  ASSERT_TRUE(reactor_->run((*again)->flush()));
  write(**again, 64 * KiB, 4096, 2);
  close(**again);
  std::vector<std::byte> old(64 * KiB);
  memory_.peek(second, old);
  EXPECT_EQ(old, std::vector<std::byte>(64 * KiB, std::byte{1}));
}

TEST_F(Traps, ADiscardDoesNotFreeMetadataThatAnEntryPointsTo) {
  create();
  auto writer = open();
  ASSERT_TRUE(writer);
  write(**writer, 0, 64 * KiB, 1);
  close(**writer);
  const uint64_t table = word(word(40)) & 0x00fffffffffffe00;
  set_word(table + 8, kCopied | word(40));
  auto again = open(kTrusting);
  ASSERT_TRUE(again);
  const Result<void> done = reactor_->run((*again)->discard(64 * KiB, 64 * KiB, {}));
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code(), Errc::corrupt);
  close(**again);
  EXPECT_NE(word(word(40)), 0u);
}

// Found by the simulator (mix 1452): a process was killed between writing its L2 entries and
// syncing them; the next one read them from the page cache, took the mapping for durable, and a FUA
// write in place was answered that a power loss then unmapped.
TEST_F(Traps, WhatAKilledProcessWroteIsSyncedBeforeItCounts) {
  create();
  {
    auto image = open();
    ASSERT_TRUE(image);
    write(**image, 0, 64 * KiB, 1);
    (*image)->abandon();
  }
  auto image = open();
  ASSERT_TRUE(image);
  EXPECT_EQ(script_.flushes, 1u);
  EXPECT_FALSE(script_.written_before_flush);
  close(**image);

  auto reader = open({});
  ASSERT_TRUE(reader);
  EXPECT_EQ(script_.flushes, 0u);  // Who only reads does not make others wait for the disk.
  close(**reader);
}

}  // namespace
}  // namespace byre
