// SPDX-License-Identifier: Apache-2.0
#include "qcow1/image.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "block/memory.h"
#include "block/raw.h"
#include "format/codec.h"
#include "format/limits.h"
#include "io/io_testing.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

/// An image of 512-byte clusters, with L2 tables of 64 entries: 32 KiB of the disk each.
class Builder {
 public:
  static constexpr uint64_t kCluster = 512;
  static constexpr uint64_t kL1At = 48;

  explicit Builder(uint64_t size) : bytes_(4096) {
    store_be<uint32_t>(bytes_, 0, kMagic);
    store_be<uint32_t>(bytes_, 4, 1);
    store_be<uint64_t>(bytes_, 24, size);
    bytes_[32] = std::byte{9};
    bytes_[33] = std::byte{6};
    store_be<uint64_t>(bytes_, 40, kL1At);
  }
  void l1(uint64_t index, uint64_t entry) { store_be(bytes_, kL1At + index * 8, entry); }
  void entry(uint64_t table, uint64_t index, uint64_t value) {
    store_be(bytes_, table + index * 8, value);
  }
  uint64_t append(Bytes data, uint64_t alignment = 512) {
    bytes_.resize(round_up(bytes_.size(), alignment));
    const uint64_t at = bytes_.size();
    bytes_.insert(bytes_.end(), data.begin(), data.end());
    return at;
  }
  uint64_t table() { return append(std::vector<std::byte>(512)); }
  static uint64_t compressed(uint64_t at, uint64_t size) {
    return uint64_t{1} << 63 | size << (63 - 9) | at;
  }
  std::vector<std::byte>& bytes() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

std::vector<std::byte> cluster_of(int value) {
  return std::vector<std::byte>(Builder::kCluster, static_cast<std::byte>(value));
}

class Qcow1Test : public testing::Test {
 protected:
  void open(Bytes file, Bytes backing = {}) {
    Result<std::unique_ptr<Qcow1Image>> opened = reactor_.run(Qcow1Image::open(
        std::make_unique<MemoryDevice>(reactor_, file, "old.qcow"),
        backing.empty() ? nullptr : std::make_unique<MemoryDevice>(reactor_, backing, "base")));
    ASSERT_TRUE(opened) << opened.error().message();
    image_ = *std::move(opened);
  }
  Result<void> read(uint64_t offset, uint64_t length) {
    data_.assign(length, std::byte{0xee});
    return reactor_.run(image_->read(offset, data_, IoTag::read_guest));
  }
  std::string error(uint64_t offset, uint64_t length) {
    const Result<void> result = read(offset, length);
    return result ? "" : result.error().message();
  }
  Extent status(uint64_t offset, uint64_t length) {
    const Result<Extent> extent = reactor_.run(image_->status(offset, length));
    EXPECT_TRUE(extent) << extent.error().message();
    return extent ? *extent : Extent();
  }

  SimReactor reactor_{1};
  std::unique_ptr<Qcow1Image> image_;
  std::vector<std::byte> data_;
};

/// Cluster 1 and 2 plain and in a row, 3 compressed, 5 plain elsewhere; the second table is
/// missing.
Builder small_image() {
  Builder image(50'000);
  const uint64_t table = image.table();
  image.l1(0, table);
  std::vector<std::byte> two = cluster_of(1);
  const std::vector<std::byte> second = cluster_of(2);
  two.insert(two.end(), second.begin(), second.end());
  const uint64_t at = image.append(two);
  image.entry(table, 1, at);
  image.entry(table, 2, at + 512);
  const auto stream = compress(Compression::deflate, cluster_of(3));
  const uint64_t stream_at = image.append(**stream, 1);
  image.entry(table, 3, Builder::compressed(stream_at, (*stream)->size()));
  image.entry(table, 5, image.append(cluster_of(5)));
  return image;
}

TEST_F(Qcow1Test, ReadsPlainAndCompressedClustersAndZeros) {
  Builder built = small_image();
  open(built.bytes());
  EXPECT_EQ(image_->size(), 50'000u);
  EXPECT_FALSE(image_->writable());
  ASSERT_TRUE(read(0, 50'000));
  std::vector<std::byte> want(50'000);
  for (const int n : {1, 2, 3, 5})
    std::fill_n(want.begin() + n * 512, 512, static_cast<std::byte>(n));
  EXPECT_EQ(data_, want);
  // Every range that begins and ends anywhere.
  for (uint64_t offset = 0; offset < 3500; offset += 97) {
    for (uint64_t length = 0; offset + length < 3500; length += 101) {
      ASSERT_TRUE(read(offset, length));
      ASSERT_TRUE(equal(data_, Bytes(want).subspan(offset, length)));
    }
  }
  EXPECT_FALSE(read(49'999, 2));
  EXPECT_TRUE(reactor_.run(image_->close()));
}

TEST_F(Qcow1Test, StatusSaysWhereEachPartIs) {
  Builder built = small_image();
  open(built.bytes());
  const Extent nowhere = status(0, 50'000);
  EXPECT_EQ(nowhere.length, 512u);
  EXPECT_TRUE(nowhere.zero && !nowhere.data && !nowhere.allocated);
  const Extent plain = status(600, 40'000);
  EXPECT_EQ(plain.length, 2 * 512u - 88);
  EXPECT_EQ(plain.host_offset, 4608u + 88);
  EXPECT_TRUE(plain.data && plain.allocated && !plain.compressed);
  const Extent stream = status(3 * 512, 40'000);
  EXPECT_EQ(stream.length, 512u);
  EXPECT_TRUE(stream.data && stream.compressed && !stream.host_offset);
  EXPECT_EQ(status(40'000, 10'000).length, 10'000u);
}

TEST_F(Qcow1Test, WhatIsNotAllocatedIsReadFromBelowAsFarAsThatReaches) {
  Builder built = small_image();
  const std::vector<std::byte> below(1000, std::byte{9});
  open(built.bytes(), below);
  ASSERT_TRUE(read(0, 4096));
  std::vector<std::byte> want(4096);
  std::fill_n(want.begin(), 512, std::byte{9});
  for (const int n : {1, 2, 3, 5})
    std::fill_n(want.begin() + n * 512, 512, static_cast<std::byte>(n));
  EXPECT_EQ(data_, want);
  const Extent extent = status(100, 4096);
  EXPECT_EQ(extent.length, 412u);
  EXPECT_EQ(extent.depth, 1u);
  EXPECT_TRUE(extent.data && !extent.allocated);
}

TEST_F(Qcow1Test, TheNameOfTheBackingFileCanBeReadFirst) {
  Builder built = small_image();
  const uint64_t at = built.append(bytes_of(std::string_view("base.img")));
  store_be<uint64_t>(built.bytes(), 8, at);
  store_be<uint32_t>(built.bytes(), 16, 8);
  MemoryDevice file(reactor_, built.bytes());
  const Result<Qcow1Start> start = reactor_.run(read_qcow1_start(file));
  ASSERT_TRUE(start);
  EXPECT_EQ(start->backing_file, "base.img");
  store_be<uint32_t>(built.bytes(), 16, 9);
  MemoryDevice cut(reactor_, built.bytes());
  EXPECT_FALSE(reactor_.run(read_qcow1_start(cut)));
}

// Each fault is the error of the requests that meet it, and of no others.
TEST_F(Qcow1Test, DamageIsAnErrorWhereItIs) {
  Builder built = small_image();
  const uint64_t table = 4096;
  built.entry(table, 7, 1 << 20);  // Behind the end.
  built.entry(table, 8, 513);      // Unaligned.
  built.entry(table, 9, Builder::compressed(built.bytes().size() - 5, 6));
  built.entry(table, 10, Builder::compressed(4608, 100));  // No deflate stream.
  built.entry(table, 11, round_down(built.bytes().size() - 1, 512));
  built.l1(1, built.bytes().size() - 511);
  built.bytes().resize(built.bytes().size() - 100);  // Inside the last cluster.
  open(built.bytes());
  const std::string size = hex(built.bytes().size());
  EXPECT_EQ(error(7 * 512, 1), "'old.qcow': a cluster at 0x100000, and the file ends at " + size);
  EXPECT_EQ(error(8 * 512, 1), "'old.qcow': cluster at 0x1000: L2 entry 0x201: not sector aligned");
  EXPECT_NE(error(9 * 512, 1).find("passes the end of the file"), std::string::npos);
  EXPECT_NE(error(10 * 512, 1).find("compressed stream at 0x1200 in 'old.qcow'"),
            std::string::npos);
  EXPECT_EQ(error(40'000, 1), "'old.qcow': the L2 table at " +
                                  hex(built.bytes().size() + 100 - 511) +
                                  " passes the end of the file at " + size);
  EXPECT_EQ(error(0, 7 * 512), "");
  EXPECT_EQ(error(11 * 512, 512), "");  // Cut off by the end of the file: zeros behind it.
  EXPECT_TRUE(is_zero(Bytes(data_).subspan(412)));
  EXPECT_NE(error(0, 50'000), "");
}

TEST_F(Qcow1Test, ATableThatIsNotThereIsRefusedWhenOpened) {
  Builder built(1 << 20);
  built.bytes().resize(48 + 8 * 31);  // One entry too few.
  const Result<std::unique_ptr<Qcow1Image>> opened = reactor_.run(
      Qcow1Image::open(std::make_unique<MemoryDevice>(reactor_, built.bytes(), "cut"), Child()));
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().message(),
            "'cut': the L1 table of 32 entries at 0x30 passes the end of the file at 0x128");
  EXPECT_FALSE(reactor_.run(
      Qcow1Image::open(std::make_unique<MemoryDevice>(reactor_, 10, "short"), Child())));
}

TEST_F(Qcow1Test, ALargeL1TableIsReadInParts) {
  Builder built(uint64_t{1} << 40);  // 2^25 entries, 256 MiB.
  built.bytes().resize(48 + 512);
  auto file = std::make_unique<MemoryDevice>(reactor_, built.bytes(), "huge");
  MemoryDevice& memory = *file;
  ASSERT_TRUE(reactor_.run(file->resize(1 * GiB)));
  const uint64_t table = 512 * MiB;
  std::vector<std::byte> entry(8);
  store_be<uint64_t>(entry, 0, table);
  memory.poke(48 + (uint64_t{1} << 28) - 8, entry);
  store_be<uint64_t>(entry, 0, table + 512);
  memory.poke(table + 63 * 8, entry);
  memory.poke(table + 512, cluster_of(7));
  Result<std::unique_ptr<Qcow1Image>> opened =
      reactor_.run(Qcow1Image::open(std::move(file), Child()));
  ASSERT_TRUE(opened) << opened.error().message();
  image_ = *std::move(opened);
  ASSERT_TRUE(read((uint64_t{1} << 40) - 512, 512));
  EXPECT_EQ(data_, cluster_of(7));
}

TEST_F(Qcow1Test, NothingCanBeChanged) {
  Builder built = small_image();
  open(built.bytes());
  const auto code = [&](Task<void> task) {
    const Result<void> result = reactor_.run(std::move(task));
    return result ? std::optional<Errc>() : std::optional(result.error().code());
  };
  EXPECT_EQ(code(image_->write(0, cluster_of(1), {})), Errc::read_only);
  EXPECT_EQ(code(image_->zero(0, 512, {})), Errc::read_only);
  EXPECT_EQ(code(image_->discard(0, 512, {})), Errc::read_only);
  EXPECT_EQ(code(image_->resize(512)), Errc::read_only);
  EXPECT_EQ(code(image_->allocate(0, 512)), Errc::read_only);
  EXPECT_EQ(code(image_->flush(IoTag::flush)), std::nullopt);
}

TEST_F(Qcow1Test, CloseWaitsForWhatRuns) {
  Builder built = small_image();
  open(built.bytes());
  std::vector<std::byte> data(100);
  Scope scope(reactor_.ready());
  scope.spawn(image_->read(3 * 512, data, IoTag::read_guest));  // On a worker now.
  EXPECT_TRUE(reactor_.run(image_->close()));
  EXPECT_EQ(scope.running(), 0u);
  EXPECT_EQ(data[0], std::byte{3});
}

/// Images that the real qemu-img has made.
class Qcow1Interop : public IoTest {
 protected:
  void SetUp() override {
    IoTest::SetUp();
    if (run_shell(folder_, "qemu-img --version").first != 0) {
      if (getenv("CI")) FAIL() << "qemu-img is missing";
      GTEST_SKIP() << "qemu-img is missing";
    }
  }
  void shell(const std::string& command) {
    const auto [code, out] = run_shell(folder_, "(" + command + ") 2>&1");
    ASSERT_EQ(code, 0) << command << "\n" << out;
  }
  std::unique_ptr<Device> raw(const std::string& name) {
    return std::make_unique<RawDevice>(IoTest::open(name, {}));
  }
  /// The image and the raw file hold the same, and its status() agrees.
  void expect_same(const std::string& image_name, const std::string& raw_name,
                   const std::string& backing = "") {
    std::unique_ptr<Qcow1Image> image =
        run(Qcow1Image::open(raw(image_name), backing.empty() ? nullptr : raw(backing)));
    ASSERT_TRUE(image);
    std::unique_ptr<Device> plain = raw(raw_name);
    ASSERT_EQ(image->size(), round_up(plain->size(), 512));
    std::vector<std::byte> want(image->size());
    run(plain->read(0, MutableBytes(want).first(plain->size())));
    std::vector<std::byte> have(image->size());
    run(image->read(0, have, IoTag::read_guest));
    EXPECT_TRUE(have == want);
    for (uint64_t at = 0; at < have.size();) {
      const Extent extent = run(image->status(at, have.size() - at));
      ASSERT_GT(extent.length, 0u);
      if (extent.zero) EXPECT_TRUE(is_zero(Bytes(want).subspan(at, extent.length)));
      std::vector<std::byte> part(extent.length);
      run(image->read(at, part, IoTag::read_guest));
      EXPECT_TRUE(equal(part, Bytes(want).subspan(at, extent.length)));
      at += extent.length;
    }
    run(image->close());
  }
  static constexpr const char* kSource =
      "(head -c 300000 /dev/urandom; head -c 700000 /dev/zero; yes hello | head -c 499999) > src";
};
ON_EVERY_REACTOR(Qcow1Interop);

TEST_P(Qcow1Interop, AConvertedDiskIsRead) {
  shell(kSource);
  shell("qemu-img convert -f raw -O qcow src plain.qcow");
  expect_same("plain.qcow", "src");
}

TEST_P(Qcow1Interop, ACompressedDiskIsRead) {
  shell(kSource);
  // Version 7.2 ends with 1 and without a word after it has made a good image.
  shell("qemu-img convert -f raw -c -O qcow src packed.qcow; qemu-img compare src packed.qcow");
  expect_same("packed.qcow", "src");
}

TEST_P(Qcow1Interop, ADiskOverABackingFileIsRead) {
  shell(kSource);
  shell(
      "qemu-img create -f qcow -b src -F raw top.qcow 2M && "
      "qemu-io -f qcow -c 'write -P 5 64k 100k' -c 'write -P 6 1900k 1000' top.qcow && "
      "qemu-img convert -f qcow -O raw top.qcow flat");
  expect_same("top.qcow", "flat", "src");
  std::unique_ptr<Device> file = raw("top.qcow");
  EXPECT_EQ(run(read_qcow1_start(*file)).backing_file, "src");
}

}  // namespace
}  // namespace byre
