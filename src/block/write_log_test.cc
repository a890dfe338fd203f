// SPDX-License-Identifier: Apache-2.0
#include "block/write_log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "block/borrowed_testing.h"
#include "block/filter_fault.h"
#include "block/memory.h"
#include "block/raw.h"
#include "coro/scope.h"
#include "io/io_testing.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

std::vector<std::byte> bytes_with(size_t size, int value) {
  return std::vector<std::byte>(size, static_cast<std::byte>(value));
}

// The format.

TEST(WriteLogFormat, ASuperblockAndAnEntryComeBackTheSame) {
  std::vector<std::byte> sector = bytes_with(512, 0xff);
  const WriteLogSuper super{.entries = 0x1234567890, .sector_size = 4096};
  serialize_write_log_super(super, sector);
  const Result<WriteLogSuper> super_again = parse_write_log_super(sector);
  ASSERT_TRUE(super_again);
  EXPECT_EQ(*super_again, super);
  EXPECT_EQ(text_of(Bytes(sector).first(7)), "rhswfsj");  // The magic number, little-endian.
  EXPECT_TRUE(is_zero(Bytes(sector).subspan(kWriteLogSuperSize)));

  const WriteLogEntry entry{
      .sector = 7, .sectors = 0, .flags = WriteLogEntry::kMark, .text_size = 4};
  serialize_write_log_entry(entry, "here", sector);
  const Result<WriteLogEntry> entry_again = parse_write_log_entry(sector, 512);
  ASSERT_TRUE(entry_again);
  EXPECT_EQ(*entry_again, entry);
}

TEST(WriteLogFormat, WhatIsUnsoundIsRefused) {
  const auto log_of = [](WriteLogSuper super, std::vector<WriteLogEntry> entries) {
    std::vector<std::byte> log(512);
    serialize_write_log_super(super, log);
    for (const WriteLogEntry& entry : entries) {
      std::vector<std::byte> sector(512);
      const std::string text(std::min<uint64_t>(entry.text_size, 480), 'x');
      WriteLogEntry sound = entry;
      sound.text_size = text.size();
      serialize_write_log_entry(sound, text, sector);
      std::fill_n(sector.begin() + 24, 2, std::byte{0});
      sector[24] = static_cast<std::byte>(entry.text_size & 0xff);
      sector[25] = static_cast<std::byte>(entry.text_size >> 8);
      log.insert(log.end(), sector.begin(), sector.end());
    }
    return log;
  };
  const WriteLogEntry flush{.flags = WriteLogEntry::kFlush};
  EXPECT_TRUE(parse_write_log(log_of({.entries = 1}, {flush})));
  EXPECT_TRUE(parse_write_log(log_of({.entries = 0}, {flush})));
  EXPECT_FALSE(parse_write_log(log_of({.entries = 2}, {flush})));
  EXPECT_FALSE(parse_write_log(log_of({.entries = UINT64_MAX}, {flush})));
  EXPECT_FALSE(parse_write_log(log_of({.entries = 0, .sector_size = 0}, {})));
  EXPECT_FALSE(parse_write_log(log_of({.entries = 0, .sector_size = 513}, {})));
  EXPECT_FALSE(parse_write_log(log_of({.entries = 1}, {{.sectors = 1}})));
  EXPECT_FALSE(parse_write_log(log_of({.entries = 1}, {{.sectors = UINT64_MAX}})));
  EXPECT_FALSE(parse_write_log(log_of({.entries = 1}, {{.sector = UINT64_MAX, .sectors = 2}})));
  EXPECT_FALSE(parse_write_log(log_of({.entries = 1}, {{.flags = 32}})));
  EXPECT_FALSE(parse_write_log(log_of({.entries = 1}, {{.flags = 8, .text_size = 481}})));
  EXPECT_FALSE(parse_write_log(log_of({.entries = 1}, {{.flags = 1, .text_size = 1}})));
  EXPECT_FALSE(parse_write_log({}));
  EXPECT_FALSE(parse_write_log(bytes_with(512, 0)));
}

TEST(WriteLogFormat, WhatWouldGrowADiskTooFarIsNotApplied) {
  std::vector<std::byte> disk;
  const std::vector<std::byte> data(512);
  const WriteLogRecord record{.entry = {.sector = 8, .sectors = 1}, .data = data};
  EXPECT_FALSE(apply_write_log_record(record, 512, disk, 4096));
  EXPECT_TRUE(apply_write_log_record(record, 512, disk, 4608));
  EXPECT_EQ(disk.size(), 4608u);
}

// The filter.

/// Takes its time before and after each change, if it is to.
class Slow final : public Borrowed {
 public:
  Slow(MemoryDevice& memory, bool slow) : Borrowed(memory), slow_(slow) {}
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    co_await wait();
    co_await below().write(offset, data, options);
    co_await wait();
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override {
    co_await wait();
    co_await below().zero(offset, length, options);
    co_await wait();
  }
  Task<void> flush(IoTag tag) override {
    co_await wait();
    co_await below().flush(tag);
    co_await wait();
  }

 private:
  Task<void> wait() {
    if (slow_) co_await reactor().sleep(static_cast<int64_t>(reactor().random() % 1000 + 1));
  }
  bool slow_;
};

class WriteLogTest : public testing::Test {
 protected:
  static constexpr uint64_t kSize = 64 * KiB;
  void make(WriteLogOptions options = {}, bool slow = false) {
    Result<std::unique_ptr<WriteLog>> opened = reactor_.run(WriteLog::open(
        std::make_unique<Slow>(disk_, slow), std::make_unique<Borrowed>(log_), options));
    ASSERT_TRUE(opened) << opened.error().message();
    filter_ = *std::move(opened);
  }
  Error refused(WriteLogOptions options) {
    Result<std::unique_ptr<WriteLog>> opened = reactor_.run(WriteLog::open(
        std::make_unique<Borrowed>(disk_), std::make_unique<Borrowed>(log_), options));
    return opened ? Error() : std::move(opened).error();
  }
  void write(uint64_t offset, size_t length, int value, WriteOptions options = {}) {
    const Result<void> written =
        reactor_.run(filter_->write(offset, bytes_with(length, value), options));
    ASSERT_TRUE(written) << written.error().message();
  }
  void ok(Task<void> task) {
    const Result<void> done = reactor_.run(std::move(task));
    ASSERT_TRUE(done) << done.error().message();
  }
  /// The log as it would be read now; the bytes stay in `bytes_`.
  WriteLogRecords records() {
    bytes_ = log_.bytes();
    Result<WriteLogRecords> parsed = parse_write_log(bytes_);
    EXPECT_TRUE(parsed) << parsed.error().message();
    return parsed ? *std::move(parsed) : WriteLogRecords();
  }
  /// The disk after the first `count` entries.
  std::vector<std::byte> replayed(const WriteLogRecords& log, size_t count) {
    std::vector<std::byte> disk(kSize);
    for (size_t i = 0; i < count; ++i) {
      EXPECT_TRUE(apply_write_log_record(log.records[i], log.super.sector_size, disk, 16 * MiB));
    }
    return disk;
  }

  SimReactor reactor_{1};
  MemoryDevice disk_{reactor_, kSize, "disk"};
  MemoryDevice log_{reactor_, 0, "log"};
  std::unique_ptr<WriteLog> filter_;
  std::vector<std::byte> bytes_;
};

// Every prefix of the log is what the disk held then.
TEST_F(WriteLogTest, EveryStateOfTheDiskCanBeReplayed) {
  for (const uint32_t sector_size : {512u, 4096u}) {
    disk_.poke(0, bytes_with(kSize, 0));
    make({.sector_size = sector_size});
    std::vector<std::vector<std::byte>> states = {disk_.bytes()};
    const auto then = [&](Task<void> task) {
      ok(std::move(task));
      states.resize(filter_->entries(), states.back());
      states.push_back(disk_.bytes());
    };
    const std::vector<std::byte> data = bytes_with(10'000, 3);
    then(filter_->write(8192, Bytes(data).first(4096), {}));
    then(filter_->write(8193, Bytes(data).first(1), {.fua = true}));
    then(filter_->write(100, Bytes(data).first(9999), {}));
    then(filter_->zero(700, 9000, {}));
    then(filter_->zero(300, 10, {.fua = true}));
    then(filter_->flush(IoTag::flush));
    then(filter_->write(20'000, data, {}));
    then(filter_->discard(20'001, 9'000, {}));
    then(filter_->mark("here"));
    then(filter_->flush(IoTag::flush));
    ASSERT_EQ(filter_->entries() + 1, states.size());
    const WriteLogRecords log = records();
    ASSERT_EQ(log.records.size() + 1, states.size());
    for (size_t n = 0; n < states.size(); ++n) EXPECT_EQ(replayed(log, n), states[n]) << n;
    EXPECT_EQ(log.records[1].entry.flags, WriteLogEntry::kFua);
    EXPECT_EQ(log.records[5].entry.flags, WriteLogEntry::kFlush);
    EXPECT_EQ(log.records[7].entry.flags, WriteLogEntry::kDiscard);
    EXPECT_EQ(log.records[8].text, "here");
    ok(filter_->close());
  }
}

TEST_F(WriteLogTest, ADiscardIsCutToWholeSectors) {
  make();
  write(0, 4096, 1);
  ok(filter_->discard(100, 1500, {}));
  ok(filter_->discard(3000, 100, {}));  // Not one.
  ok(filter_->flush(IoTag::flush));
  const WriteLogRecords log = records();
  ASSERT_EQ(log.records.size(), 3u);
  EXPECT_EQ(log.records[1].entry,
            (WriteLogEntry{.sector = 1, .sectors = 2, .flags = WriteLogEntry::kDiscard}));
  EXPECT_EQ(disk_.bytes()[511], std::byte{1});
  EXPECT_EQ(disk_.bytes()[1536], std::byte{1});
}

TEST_F(WriteLogTest, ACutIsADiscardAndAMark) {
  make();
  write(0, 4096, 1);
  ok(filter_->resize(1000));
  ok(filter_->resize(kSize));
  ok(filter_->flush(IoTag::flush));
  const WriteLogRecords log = records();
  ASSERT_EQ(log.records.size(), 5u);
  EXPECT_EQ(log.records[1].entry,
            (WriteLogEntry{.sector = 2, .sectors = 126, .flags = WriteLogEntry::kDiscard}));
  EXPECT_EQ(log.records[2].text, "resize 1000");
  EXPECT_EQ(log.records[3].text, "resize 65536");
}

// A disk that answers in any order: the log ends in the state of the disk, and a flush covers
// nothing that completed after it was issued.
TEST_F(WriteLogTest, TheOrderIsOneInWhichTheWritesTookEffect) {
  make({.super_update_interval = 7}, /*slow=*/true);
  uint64_t completed = 0;
  const auto writer = [&](int value) -> Task<void> {
    for (int i = 0; i < 60; ++i) {
      const std::vector<std::byte> data(reactor_.random() % 3000 + 1,
                                        static_cast<std::byte>(value));
      const uint64_t offset = reactor_.random() % 6000;
      if (reactor_.random() % 4 == 0) {
        co_await filter_->zero(offset, data.size(), {});
      } else {
        co_await filter_->write(offset, data, {.fua = reactor_.random() % 8 == 0});
      }
      ++completed;
    }
  };
  const auto flusher = [&]() -> Task<void> {
    for (int i = 0; i < 30; ++i) {
      co_await reactor_.sleep(static_cast<int64_t>(reactor_.random() % 5000));
      const uint64_t before = completed;
      co_await filter_->flush(IoTag::flush);
      // What was answered before it lies before it, and the superblock counts all of it.
      const WriteLogRecords log = records();
      EXPECT_GE(log.records.size(), before + 1);
    }
  };
  Scope scope(reactor_.ready());
  for (int value = 1; value <= 5; ++value) scope.spawn(writer(value));
  scope.spawn(flusher());
  ok(scope.join());
  ok(filter_->close());
  const WriteLogRecords log = records();
  EXPECT_EQ(log.records.size(), 5u * 60 + 30);
  EXPECT_EQ(replayed(log, log.records.size()), disk_.bytes());
}

TEST_F(WriteLogTest, AWriteThatCompletesDuringAFlushComesBehindIt) {
  auto faults = std::make_unique<FaultFilter>(std::make_unique<Borrowed>(disk_), FaultRules());
  FaultFilter& held = *faults;
  Result<std::unique_ptr<WriteLog>> opened = reactor_.run(
      WriteLog::open(std::move(faults), std::make_unique<Borrowed>(log_), WriteLogOptions()));
  ASSERT_TRUE(opened);
  filter_ = *std::move(opened);
  write(0, 512, 1);
  held.set_break(FaultEvent::flush_to_disk, "flush");
  Scope scope(reactor_.ready());
  scope.spawn(filter_->flush(IoTag::flush));
  write(512, 512, 2);
  ASSERT_TRUE(held.resume("flush"));
  ok(scope.join());
  ok(filter_->close());
  const WriteLogRecords log = records();
  ASSERT_EQ(log.records.size(), 3u);
  EXPECT_EQ(log.records[0].entry.sector, 0u);
  EXPECT_EQ(log.records[1].entry.flags, WriteLogEntry::kFlush);
  EXPECT_EQ(log.records[2].entry.sector, 1u);
}

TEST_F(WriteLogTest, AFlushThatFailsIsAMark) {
  DiskScript script{.fail_flushes = true};
  Result<std::unique_ptr<WriteLog>> opened =
      reactor_.run(WriteLog::open(std::make_unique<ScriptedDisk>(disk_, script),
                                  std::make_unique<Borrowed>(log_), WriteLogOptions()));
  ASSERT_TRUE(opened);
  filter_ = *std::move(opened);
  EXPECT_FALSE(reactor_.run(filter_->flush(IoTag::flush)));
  ok(filter_->close());
  const WriteLogRecords log = records();
  ASSERT_EQ(log.records.size(), 1u);
  EXPECT_EQ(log.records[0].text, "flush failed");
}

TEST_F(WriteLogTest, AppendingGoesOnBehindWhatIsThere) {
  make({.sector_size = 1024});
  write(0, 3000, 1);
  ok(filter_->flush(IoTag::flush));
  ok(filter_->close());
  make({.append = true});
  EXPECT_EQ(filter_->sector_size(), 1024u);
  EXPECT_EQ(filter_->entries(), 2u);
  write(4096, 1024, 2);
  ok(filter_->close());
  const WriteLogRecords log = records();
  ASSERT_EQ(log.records.size(), 3u);
  EXPECT_EQ(replayed(log, 3), disk_.bytes());

  make();  // A new log begins at the start.
  EXPECT_EQ(records().records.size(), 0u);
}

TEST_F(WriteLogTest, OptionsThatCannotBeAreRefused) {
  EXPECT_EQ(
      refused({.sector_size = 1000}).message(),
      "blklogwrites: a log-sector-size of 1000: it must be a power of two from 512 to 8388608");
  EXPECT_EQ(refused({.sector_size = 16 * MiB}).code(), Errc::invalid);
  EXPECT_EQ(refused({.super_update_interval = 0}).code(), Errc::invalid);
  EXPECT_EQ(refused({.append = true, .sector_size = 512}).code(), Errc::invalid);
  EXPECT_EQ(refused({.append = true}).code(), Errc::corrupt);  // Nothing is there.
  log_.poke(0, bytes_with(4096, 1));
  EXPECT_EQ(refused({.append = true}).code(), Errc::corrupt);
}

TEST_F(WriteLogTest, TheSuperblockIsUpdatedByTheInterval) {
  make({.super_update_interval = 3});
  for (int i = 0; i < 5; ++i) write(0, 512, i);
  EXPECT_EQ(records().super.entries, 3u);
  ok(filter_->close());
  EXPECT_EQ(records().super.entries, 5u);
}

TEST_F(WriteLogTest, AfterAGapNothingMoreIsWritten) {
  DiskScript script;
  Result<std::unique_ptr<WriteLog>> opened =
      reactor_.run(WriteLog::open(std::make_unique<Borrowed>(disk_),
                                  std::make_unique<ScriptedDisk>(log_, script), WriteLogOptions()));
  ASSERT_TRUE(opened);
  filter_ = *std::move(opened);
  write(0, 512, 1);
  script.failing_write = script.writes + 1;
  EXPECT_FALSE(reactor_.run(filter_->write(512, bytes_with(512, 2), {})));
  const Result<void> later = reactor_.run(filter_->write(1024, bytes_with(512, 3), {}));
  ASSERT_FALSE(later);
  EXPECT_EQ(
      later.error().message(),
      "nothing more is written since the log 'log' has a gap: write log 'log': it was to fail");
  EXPECT_EQ(disk_.bytes()[1024], std::byte{0});
  EXPECT_FALSE(reactor_.run(filter_->flush(IoTag::flush)));
  std::vector<std::byte> seen(512);
  ok(filter_->read(0, seen, IoTag::none));
  ok(filter_->close());
  EXPECT_EQ(records().records.size(), 1u);
}

/// Logs shared with QEMU's blklogwrites.
class WriteLogInterop : public IoTest {
 protected:
  void SetUp() override {
    IoTest::SetUp();
    if (run_shell(folder_, "qemu-io --version").first != 0) {
      if (getenv("CI")) FAIL() << "qemu-io is missing";
      GTEST_SKIP() << "qemu-io is missing";
    }
  }
  void shell(const std::string& command) {
    const auto [code, out] = run_shell(folder_, "(" + command + ") 2>&1");
    ASSERT_EQ(code, 0) << command << "\n" << out;
  }
  std::vector<std::byte> load(const std::string& name) {
    RawDevice file(IoTest::open(name, {}));
    std::vector<std::byte> bytes(file.size());
    run(file.read(0, bytes, IoTag::none));
    return bytes;
  }
  std::unique_ptr<Device> raw(const std::string& name) {
    return std::make_unique<RawDevice>(IoTest::open(name, {.writable = true}),
                                       RawOptions{.growable = true});
  }
  void expect_replays(size_t entries_min) {
    const std::vector<std::byte> bytes = load("log");
    const Result<WriteLogRecords> log = parse_write_log(bytes);
    ASSERT_TRUE(log) << log.error().message();
    EXPECT_GE(log->records.size(), entries_min);
    std::vector<std::byte> disk(64 * KiB);
    for (const WriteLogRecord& record : log->records)
      ASSERT_TRUE(apply_write_log_record(record, log->super.sector_size, disk, 64 * KiB));
    EXPECT_TRUE(disk == load("disk"));
  }
  static constexpr const char* kQemuIo =
      "qemu-io -c 'write -P 1 4k 3k' -c 'write -z 5k 1k' -c 'flush' -c 'write -f -P 2 100 1000' "
      "-c 'discard 8k 1k' --image-opts driver=blklogwrites,file.driver=file,file.filename=disk,"
      "log.driver=file,log.filename=log";
};
ON_EVERY_REACTOR(WriteLogInterop);

TEST_P(WriteLogInterop, ALogOfQemuIsReplayed) {
  shell("truncate -s 64k disk && truncate -s 0 log && " + std::string(kQemuIo));
  expect_replays(5);
}

TEST_P(WriteLogInterop, EachGoesOnBehindTheOther) {
  shell("truncate -s 64k disk && truncate -s 0 log");
  const auto write = [&](WriteLogOptions options, int value) {
    std::unique_ptr<WriteLog> filter = run(WriteLog::open(raw("disk"), raw("log"), options));
    ASSERT_TRUE(filter);
    run(filter->write(20'000, bytes_with(3000, value), {}));
    run(filter->mark("byre"));
    run(filter->zero(21'000, 100, {}));
    run(filter->flush(IoTag::flush));
    run(filter->close());
  };
  write({}, 3);
  shell(std::string(kQemuIo) + ",log-append=on");
  expect_replays(9);
  write({.append = true}, 4);
  expect_replays(13);
}

}  // namespace
}  // namespace byre
