// SPDX-License-Identifier: Apache-2.0
#include "format/snapshot.h"

#include <gtest/gtest.h>

namespace byre {
namespace {

Snapshot snapshot(std::string id, std::string name) {
  return {.l1_offset = {0x50000},
          .l1_entries = 3,
          .id = std::move(id),
          .name = std::move(name),
          .date_seconds = 1700000000,
          .date_nanoseconds = 123456789,
          .vm_clock_nanoseconds = 42,
          .vm_state_size = 4096,
          .disk_size = MiB,
          .icount = UINT64_MAX};
}
/// As it is after a round trip: with its extra data.
Snapshot as_read(Snapshot one) {
  const auto table = serialize_snapshots({one});
  EXPECT_TRUE(table);
  const auto read = parse_snapshots(*table, 1);
  EXPECT_TRUE(read);
  one.extra_data = (*read)[0].extra_data;
  EXPECT_EQ((*read)[0], one);
  return (*read)[0];
}

// Trap 99: names are any bytes of any length, entries start on multiples of 8.
TEST(Snapshots, WhatWasWrittenIsRead) {
  std::vector<Snapshot> all;
  for (size_t length = 0; length < 20; ++length)
    all.push_back(as_read(snapshot(std::to_string(length), std::string(length, 'n'))));
  all.push_back(as_read(snapshot(std::string("\0\n\xff", 3), std::string("1\0", 2))));
  all.push_back(as_read(snapshot("1", "1")));
  all.push_back(as_read(snapshot(std::string(65535, 'i'), std::string(65535, 'n'))));
  const auto table = serialize_snapshots(all);
  ASSERT_TRUE(table);
  EXPECT_EQ(table->size() % 8, 0u);
  const auto read = parse_snapshots(*table, static_cast<uint32_t>(all.size()));
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(*read, all);
  EXPECT_EQ(*snapshot_table_size(*table, static_cast<uint32_t>(all.size())), table->size());
}

// Trap 99: extra data of every length; each field counts once it is there in full.
TEST(Snapshots, ExtraDataGrowAndSurvive) {
  for (size_t size = 0; size < 40; ++size) {
    std::vector<std::byte> table(128);
    store_be<uint32_t>(table, 32, 77);
    store_be<uint32_t>(table, 36, static_cast<uint32_t>(size));
    for (size_t i = 0; i < size; ++i) table[40 + i] = static_cast<std::byte>(i + 1);
    const auto read = parse_snapshots(table, 1);
    ASSERT_TRUE(read);
    const Snapshot& one = (*read)[0];
    EXPECT_EQ(one.vm_state_size, size >= 8 ? 0x0102030405060708u : 77u);
    EXPECT_EQ(one.disk_size.has_value(), size >= 16);
    EXPECT_EQ(one.icount.has_value(), size >= 24);
    EXPECT_EQ(one.extra_data.size(), size);
    const auto again = serialize_snapshots(*read);
    ASSERT_TRUE(again);
    EXPECT_TRUE(equal(Bytes(*again).subspan(40, size), Bytes(table).subspan(40, size)));
    EXPECT_EQ(*parse_snapshots(*again, 1), *read);
  }
}

TEST(Snapshots, AFieldThatIsChangedIsWrittenOverTheOldOne) {
  Snapshot one = as_read(snapshot("1", "a"));
  one.extra_data.resize(48, std::byte{0xee});
  one.vm_state_size = uint64_t{5} << 32;
  one.disk_size = 7 * MiB;
  const Snapshot read = as_read(one);
  EXPECT_EQ(read.vm_state_size, uint64_t{5} << 32);
  EXPECT_EQ(read.disk_size, 7 * MiB);
  EXPECT_EQ(read.extra_data[47], std::byte{0xee});
}

TEST(Snapshots, ALargeVmStateNeedsTheExtraData) {
  Snapshot one = snapshot("1", "a");
  one.icount = {};
  one.disk_size = {};
  EXPECT_EQ(as_read(one).extra_data.size(), 0u);
  one.vm_state_size = uint64_t{1} << 32;
  EXPECT_EQ(as_read(one).extra_data.size(), 8u);
}

// Every prefix: a size, or "read more", and no read behind it.
TEST(Snapshots, ATableTellsItsSizeOnceEnoughOfItIsThere) {
  std::vector<Snapshot> all = {snapshot("1", "monday"), snapshot("2", "")};
  all[1].extra_data.resize(33);
  const auto table = serialize_snapshots(all);
  ASSERT_TRUE(table);
  const size_t last = table->size();
  for (size_t size = 0; size <= last; ++size) {
    const std::vector<std::byte> prefix(table->begin(),
                                        table->begin() + static_cast<ptrdiff_t>(size));
    const auto told = snapshot_table_size(prefix, 2);
    ASSERT_TRUE(told);
    if (*told) {
      EXPECT_EQ(**told, last);
    }
    const auto read = parse_snapshots(prefix, 2);
    if (read) {
      EXPECT_GT(size + 8, last);  // Only padding is missing.
    }
  }
  EXPECT_EQ(*snapshot_table_size({}, 0), 0u);
  EXPECT_TRUE(parse_snapshots({}, 0)->empty());
}

TEST(Snapshots, TablesBeyondTheLimitsAreRefused) {
  EXPECT_FALSE(snapshot_table_size({}, kSnapshotsMax + 1));
  EXPECT_FALSE(parse_snapshots({}, kSnapshotsMax + 1));
  std::vector<std::byte> table(40);
  store_be<uint32_t>(table, 36, UINT32_MAX);
  EXPECT_FALSE(snapshot_table_size(table, 1));
  EXPECT_FALSE(parse_snapshots(table, 1));
  Snapshot large;
  large.extra_data.resize(kSnapshotTableSizeMax);
  EXPECT_FALSE(serialize_snapshots({large}));
  EXPECT_FALSE(serialize_snapshots({snapshot(std::string(65536, 'i'), "")}));
}

TEST(Snapshots, TheL1TableOfEachIsCheckedByItself) {
  const Geometry geometry;
  Snapshot one = snapshot("1", "a");
  EXPECT_TRUE(check_l1_table(one, geometry));
  EXPECT_EQ(hosts(one, geometry), (HostSpan{{5}, 1}));
  one.l1_entries = 8193;
  EXPECT_EQ(hosts(one, geometry), (HostSpan{{5}, 2}));
  one.l1_entries = kL1EntriesMax + 1;
  EXPECT_FALSE(check_l1_table(one, geometry));
  one.l1_entries = 1;
  for (const uint64_t bad : {uint64_t{0}, uint64_t{0x50200}, uint64_t{1} << 56, UINT64_MAX << 16}) {
    one.l1_offset = {bad};
    EXPECT_FALSE(check_l1_table(one, geometry)) << bad;
  }
  EXPECT_TRUE(check_l1_table(Snapshot{}, geometry));  // An empty disk has an empty table.
}

}  // namespace
}  // namespace byre
