// SPDX-License-Identifier: Apache-2.0
/// What an image says of its ranges: in runs the same as unit by unit, and every entry is checked.
#include <gtest/gtest.h>

#include "base/prng.h"
#include "format/l2.h"
#include "qcow2/memory_image_testing.h"

namespace byre {
namespace {

/// Fails reads that touch a byte of the file.
class BadSpot final : public Borrowed {
 public:
  BadSpot(Device& below, uint64_t spot) : Borrowed(below), spot_(spot) {}
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    co_await check(offset, data.size());
    co_await below().read(offset, data, options);
  }
  Task<void> read_pieces(uint64_t offset, IoVec pieces, ReadOptions options) override {
    ++reads_of_pieces;
    co_await check(offset, size_of(pieces));
    co_await below().read_pieces(offset, pieces, options);
  }
  int reads_of_pieces = 0;

 private:
  Task<void> check(uint64_t offset, uint64_t length) {
    if (spot_ >= offset && spot_ - offset < length) co_await fail(Error(Errc::io, "a bad spot"));
  }
  const uint64_t spot_;
};

class Status : public MemoryImageTest {
 protected:
  void make(CreateOptions options) {
    options.preallocation = Preallocation::metadata;
    create(options);
    geometry_ = *check_create(options);
    table_ = word(word(40)) & kOffsetMask;
  }
  L2Entry entry(uint64_t index) {
    std::byte bytes[16];
    memory_.peek(table_ + index * geometry_.l2_entry_size(), bytes);
    return load_l2(bytes, 0, geometry_);
  }
  void set_entry(uint64_t index, L2Entry value) {
    std::byte bytes[16];
    store_l2(bytes, 0, value, geometry_);
    memory_.poke(table_ + index * geometry_.l2_entry_size(),
                 Bytes(bytes).first(geometry_.l2_entry_size()));
  }
  Result<Extent> status(Image& image, uint64_t at, uint64_t length) {
    return reactor_->run(image.status(at, length));
  }
  /// Of what is alike from `at` on, in answers for at most `step` bytes.
  uint64_t alike(Image& image, uint64_t at, uint64_t step) {
    const uint64_t start = at;
    Extent first;
    while (at < image.size()) {
      const Result<Extent> next = status(image, at, std::min(step, image.size() - at));
      EXPECT_TRUE(next) << next.error().message();
      if (!next) return 0;
      if (at == start) {
        first = *next;
      } else if (next->data != first.data || next->zero != first.zero ||
                 next->allocated != first.allocated || next->compressed != first.compressed ||
                 next->host_offset.has_value() != first.host_offset.has_value() ||
                 (next->host_offset && *next->host_offset != *first.host_offset + (at - start))) {
        break;
      }
      at += next->length;
    }
    return at - start;
  }

  Geometry geometry_;
  uint64_t table_ = 0;
};

TEST_F(Status, RunsSayTheSameAsUnitByUnit) {
  for (const bool extended : {false, true}) {
    SCOPED_TRACE(extended);
    Prng random(extended);
    // A table of several slices, and one that ends within a slice.
    make({.size = 3000 * 16 * KiB, .cluster_size = 16 * KiB, .extended_l2 = extended});
    for (uint64_t n = 0; n < 1000; ++n) {
      if (!random.one_in(25)) continue;
      L2Entry changed = entry(n);
      switch (random.below(4)) {
        case 0:
          changed = {};
          break;
        case 1:
          changed.descriptor ^= kCopied;
          break;
        case 2:
          if (extended && changed.descriptor != 0)
            changed.bitmap = uint64_t{0xff00ff00} << 32 | 0x00ff00ff;
          if (!extended) changed.descriptor |= kReadsZero;
          break;
        default:
          changed = entry(random.below(1000));
      }
      const uint64_t run = random.one_in(4) ? random.between(1, 60) : 1;
      const uint64_t step = (changed.descriptor & kOffsetMask) != 0 ? geometry_.cluster_size() : 0;
      for (uint64_t i = n; i < std::min<uint64_t>(1000, n + run); ++i) {
        set_entry(i, changed);
        changed.descriptor += step;
      }
    }
    auto image = try_open({.scan = ImageOptions::Scan::never});
    ASSERT_TRUE(image) << image.error().message();
    const uint64_t unit = geometry_.unit_size();
    int extents = 0;
    for (uint64_t at = 0; at < 1000 * geometry_.cluster_size(); ++extents) {
      const uint64_t length = alike(**image, at, unit);
      ASSERT_EQ(alike(**image, at, (*image)->size()), length) << "at " << at;
      const uint64_t within = at + unit * random.below(length / unit) + random.below(unit);
      ASSERT_EQ(alike(**image, within, (*image)->size()), at + length - within) << within;
      at += length;
    }
    EXPECT_GT(extents, 30);
    close(**image);
  }
}

TEST_F(Status, NoEntryOfARunGoesUnchecked) {
  for (const uint64_t bad : {uint64_t{1} << 57, uint64_t{512}, uint64_t{1} << 50}) {
    SCOPED_TRACE(bad);
    make({.size = 100 * MiB});
    for (const uint64_t n : {1u, 511u, 512u, 700u}) {
      const L2Entry sound = entry(n);
      set_entry(n, {sound.descriptor ^ bad});
      auto image = try_open({.scan = ImageOptions::Scan::never});
      ASSERT_TRUE(image) << image.error().message();
      const uint64_t at = n * geometry_.cluster_size();
      EXPECT_EQ(status(**image, 0, at)->length, at);
      EXPECT_FALSE(status(**image, 0, at + 1));
      const Result<Extent> there = status(**image, at, (*image)->size() - at);
      ASSERT_FALSE(there);
      EXPECT_EQ(there.error().code(), Errc::corrupt);
      close(**image);
      set_entry(n, sound);
    }
  }
}

TEST_F(Status, ARunEndsWithTheFile) {
  make({.size = 100 * MiB});
  for (uint64_t n = 600; n < 700; ++n) {
    set_entry(n, {kCopied | (memory_.size() + (n - 610) * geometry_.cluster_size())});
  }
  auto image = try_open({.scan = ImageOptions::Scan::never});
  ASSERT_TRUE(image) << image.error().message();
  const uint64_t from = 600 * geometry_.cluster_size();
  const uint64_t there = 10 * geometry_.cluster_size();
  EXPECT_EQ(status(**image, from, there)->length, there);
  EXPECT_FALSE(status(**image, from, there + 1));
  const Result<Extent> behind = status(**image, from + there, geometry_.cluster_size());
  ASSERT_FALSE(behind);
  EXPECT_NE(behind.error().message().find("the image was truncated"), std::string::npos);
  close(**image);
}

// What is staged is not in the tables yet, and counts all the same.
TEST_F(Status, ARunSeesWhatIsStaged) {
  make({.size = 100 * MiB});
  auto image = try_open();
  ASSERT_TRUE(image) << image.error().message();
  const uint64_t cluster = geometry_.cluster_size();
  EXPECT_EQ(alike(**image, 0, (*image)->size()), (*image)->size());
  ASSERT_TRUE(reactor_->run((*image)->zero(5 * cluster, cluster, {.may_unmap = true})));
  EXPECT_EQ(alike(**image, 0, (*image)->size()), 5 * cluster);
  EXPECT_TRUE(status(**image, 5 * cluster, cluster)->zero);
  close(**image);
}

TEST_F(Status, ASliceThatCannotBeReadFailsAlone) {
  make({.size = 100 * MiB});
  auto disk = std::make_unique<BadSpot>(memory_, table_ + 2 * 4096 + 7);
  BadSpot& spot = *disk;
  auto image = reactor_->run(
      Image::open_over(std::move(disk), opener_, {.scan = ImageOptions::Scan::never}));
  ASSERT_TRUE(image) << image.error().message();
  const uint64_t slice = 512 * geometry_.cluster_size();
  EXPECT_EQ(status(**image, 0, slice)->length, slice);
  EXPECT_EQ(spot.reads_of_pieces, 0);  // No more was asked for.
  EXPECT_EQ(status(**image, slice, slice)->length, slice);
  const Result<Extent> bad = status(**image, 2 * slice, geometry_.cluster_size());
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().code(), Errc::io);
  EXPECT_EQ(status(**image, slice, geometry_.cluster_size())->length, geometry_.cluster_size());
  const Result<Extent> across = status(**image, slice, (*image)->size() - slice);
  EXPECT_FALSE(across);
  close(**image);
}

}  // namespace
}  // namespace byre
