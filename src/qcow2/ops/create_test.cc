// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/create.h"

#include <gtest/gtest.h>

#include <bit>
#include <filesystem>
#include <fstream>

#include "block/memory.h"
#include "format/refcount.h"
#include "io/io_testing.h"
#include "qcow2/core/image_header.h"

namespace byre {
namespace {

class CreateTest : public testing::Test {
 protected:
  /// The message of the refusal; empty when it is accepted.
  static std::string refusal(const CreateOptions& options) {
    const Result<Geometry> geometry = check_create(options);
    return geometry ? "" : geometry.error().message();
  }
  void create(Device& file, const CreateOptions& options) {
    const Result<void> created = reactor_->run(create_image(file, options));
    ASSERT_TRUE(created) << created.error().message();
  }
  ImageHeader head_of(Device& file) {
    Result<ImageHeader> head = reactor_->run(load_image_header(file));
    if (!head) {
      ADD_FAILURE() << head.error().message();
      return {};
    }
    return *std::move(head);
  }

  /// Each cluster of the file counts exactly once, and nothing behind it; what the header names
  /// lies inside the file.
  void expect_sound(MemoryDevice& file) {
    const ImageHeader head = head_of(file);
    const Geometry& geometry = head.geometry;
    ASSERT_EQ(file.size() % geometry.cluster_size(), 0u);
    const uint64_t clusters = file.size() >> geometry.cluster_bits;
    EXPECT_LE(head.header.l1_offset.value + head.header.l1_entries * 8, file.size());

    const auto table = reactor_->run(
        load_table(file, head.header.refcount_table_offset,
                   (uint64_t{head.header.refcount_table_clusters} << geometry.cluster_bits) / 8,
                   IoTag::refcount_table_load));
    ASSERT_TRUE(table) << table.error().message();
    std::vector<std::byte> block(geometry.cluster_size());
    for (uint64_t i = 0; i < table->size(); ++i) {
      const HostCluster first = geometry.first_of_refcount_table(i);
      if ((*table)[i] == 0) {
        ASSERT_GE(first.value, clusters);
        continue;
      }
      ASSERT_LE((*table)[i] + geometry.cluster_size(), file.size());
      file.peek((*table)[i], block);
      for (uint64_t j = 0; j < geometry.refcount_block_entries(); ++j) {
        const uint64_t expected = first.value + j < clusters ? 1 : 0;
        ASSERT_EQ(get_refcount(block, j, geometry.refcount_order), expected)
            << "cluster " << first.value + j << " of " << clusters;
      }
    }
  }

  /// What qemu-img prints and how it ends.
  std::pair<int, std::string> qemu_img(const std::string& arguments) {
    return run_shell(folder_, cat("qemu-img ", arguments, " 2>&1"));
  }
  void save(const MemoryDevice& file, const std::string& name) {
    const std::vector<std::byte> bytes = file.bytes();
    std::ofstream out(folder_ / name, std::ios::binary);
    out.write(text_of(bytes).data(), static_cast<std::streamsize>(bytes.size()));
  }

  std::unique_ptr<Reactor> reactor_ = *make_reactor();
  TemporaryFolder folder_;
};

TEST_F(CreateTest, EveryShapeCountsItselfExactlyOnce) {
  for (uint64_t cluster_size = 512; cluster_size <= 2 * MiB; cluster_size *= 2) {
    for (uint32_t bits = 1; bits <= 64; bits *= 2) {
      const uint64_t size_max =
          Geometry{.cluster_bits = static_cast<uint32_t>(std::countr_zero(cluster_size))}
              .size_max();
      for (const uint64_t size :
           {uint64_t{0}, kSectorSize, MiB, 10 * GiB, size_max / 2 + 512, size_max}) {
        // Large tables are zeros; a few of them are enough.
        if (size > size_max || (size >= size_max / 2 && bits != 1 && bits != 64)) continue;
        SCOPED_TRACE(cat("clusters of ", cluster_size, ", ", bits, " bits, size ", size));
        MemoryDevice file(*reactor_);
        create(file, {.size = size, .cluster_size = cluster_size, .refcount_bits = bits});
        expect_sound(file);
        EXPECT_EQ(head_of(file).header.size, size);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(CreateTest, QemuImgFindsEachShapeSoundAndReadsWhatWasChosen) {
  struct Case {
    CreateOptions options;
    std::string expected;  // In the output of info.
  };
  const std::vector<Case> cases = {
      {{.size = GiB}, "compat: 1.1"},
      {{.size = GiB, .version = 2}, "compat: 0.10"},
      {{.size = 0}, "virtual size: 0 B"},
      {{.size = 64 * GiB, .cluster_size = 512, .refcount_bits = 64}, "refcount bits: 64"},
      {{.size = 128 * GiB, .cluster_size = 512, .refcount_bits = 1}, "refcount bits: 1"},
      {{.size = 128 * GiB, .version = 2, .cluster_size = 512}, "cluster_size: 512"},
      {{.size = 2048 * TiB}, "virtual size: 2 PiB"},
      {{.size = uint64_t{1} << 61, .cluster_size = 2 * MiB}, "virtual size: 2 EiB"},
      {{.size = 64 * TiB, .cluster_size = 16 * KiB, .extended_l2 = true}, "extended l2: true"},
      {{.size = GiB, .lazy_refcounts = true}, "lazy refcounts: true"},
      {{.size = GiB, .compression = Compression::zstd}, "compression type: zstd"},
      {{.size = GiB, .backing_file = "base.raw", .backing_format = "raw"},
       "backing file format: raw"},
      {{.size = GiB, .version = 2, .backing_file = "base.raw", .backing_format = "raw"},
       "backing file: base.raw"},
      {{.size = GiB, .data_file = "base.raw"}, "data file: base.raw"},
      {{.size = GiB, .data_file = "base.raw", .data_file_raw = true}, "data file raw: true"},
  };
  std::ofstream(folder_ / "base.raw").close();
  std::filesystem::resize_file(folder_ / "base.raw", GiB);

  for (const Case& c : cases) {
    SCOPED_TRACE(c.expected);
    MemoryDevice file(*reactor_);
    create(file, c.options);
    save(file, "image");
    const auto [checked, said] = qemu_img("check -f qcow2 image");
    EXPECT_EQ(checked, 0) << said;
    const auto [read, info] = qemu_img("info -f qcow2 image");
    EXPECT_EQ(read, 0) << info;
    EXPECT_NE(info.find(c.expected), std::string::npos) << info;
  }
}

TEST_F(CreateTest, TheLargestDiskIsAcceptedAndOneSectorMoreIsNot) {
  for (uint64_t cluster_size = 512; cluster_size <= 2 * MiB; cluster_size *= 2) {
    for (const bool extended : {false, true}) {
      if (extended && cluster_size < 16 * KiB) continue;
      // 4 Mi tables of 8 bytes an entry, or 16.
      const uint64_t size_max = 4 * MiB * (cluster_size / (extended ? 16 : 8)) * cluster_size;
      CreateOptions options{
          .size = size_max, .cluster_size = cluster_size, .extended_l2 = extended};
      EXPECT_EQ(refusal(options), "");
      options.size += kSectorSize;
      EXPECT_NE(refusal(options), "") << cluster_size << extended;
    }
  }
}

TEST_F(CreateTest, WhatCannotBeIsRefusedBeforeAnythingIsWritten) {
  const std::vector<std::pair<CreateOptions, std::string>> cases = {
      {{.size = 1000}, "ends inside a sector"},
      {{.size = GiB, .version = 1}, "version 1"},
      {{.size = GiB, .version = 4}, "version 4"},
      {{.size = GiB, .cluster_size = 256}, "power of two"},
      {{.size = GiB, .cluster_size = 4 * MiB}, "power of two"},
      {{.size = GiB, .cluster_size = 65537}, "power of two"},
      {{.size = GiB, .cluster_size = 0}, "power of two"},
      {{.size = GiB, .refcount_bits = 0}, "power of two"},
      {{.size = GiB, .refcount_bits = 12}, "power of two"},
      {{.size = GiB, .refcount_bits = 128}, "power of two"},
      {{.size = GiB, .version = 2, .refcount_bits = 8}, "version 2"},
      {{.size = GiB, .version = 2, .extended_l2 = true}, "version 2"},
      {{.size = GiB, .version = 2, .data_file = "d"}, "version 2"},
      {{.size = GiB, .version = 2, .lazy_refcounts = true}, "version 3"},
      {{.size = GiB, .version = 2, .compression = Compression::zstd}, "version 2"},
      {{.size = GiB, .cluster_size = 8 * KiB, .extended_l2 = true}, "16 KiB"},
      {{.size = GiB, .data_file_raw = true}, "no data file"},
      {{.size = GiB,
        .backing_file = "b",
        .backing_format = "raw",
        .data_file = "d",
        .data_file_raw = true},
       "no backing file"},
      {{.size = GiB, .backing_file = "b"}, "format must be named"},
      {{.size = GiB, .backing_format = "raw"}, "no backing file"},
      {{.size = GiB, .backing_file = "b", .backing_format = "0123456789abcdef"}, "longer"},
      {{.size = GiB, .backing_file = std::string("a\0b", 3), .backing_format = "raw"}, "NUL"},
      {{.size = GiB, .data_file = std::string("a\0b", 3)}, "NUL"},
      {{.size = GiB, .backing_file = std::string(1024, 'x'), .backing_format = "raw"}, "1023"},
      {{.size = UINT64_MAX - 511}, "larger clusters"},
  };
  for (const auto& [options, expected] : cases) {
    EXPECT_NE(refusal(options).find(expected), std::string::npos)
        << expected << ": " << refusal(options);
    MemoryDevice file(*reactor_);
    EXPECT_FALSE(reactor_->run(create_image(file, options)));
    EXPECT_EQ(file.size(), 0u);
  }
}

// With clusters of 512 bytes, header, extensions and name share 512 bytes: every length of a name
// fits whole, and is read back, or is refused.
TEST_F(CreateTest, ABackingNameFitsTheFirstClusterOrIsRefused) {
  for (const uint32_t version : {2u, 3u}) {
    size_t longest = 0;
    for (size_t length = 1; length <= 600; ++length) {
      const CreateOptions options{.size = MiB,
                                  .version = version,
                                  .cluster_size = 512,
                                  .backing_file = std::string(length, 'n'),
                                  .backing_format = "qcow2"};
      MemoryDevice file(*reactor_);
      if (!reactor_->run(create_image(file, options))) continue;
      EXPECT_EQ(longest, length - 1);
      longest = length;
      EXPECT_EQ(head_of(file).backing_file, options.backing_file);
      expect_sound(file);
    }
    EXPECT_GE(longest, 340u);
    EXPECT_LT(longest, 512u);
  }
}

TEST_F(CreateTest, OldContentsOfADeviceThatCannotGrowAreOverwritten) {
  MemoryDevice file(*reactor_, std::vector<std::byte>(8 * MiB, std::byte{0xa5}));
  file.fixed = true;
  create(file, {.size = 10 * GiB, .cluster_size = 4 * KiB});
  const ImageHeader head = head_of(file);
  const auto l1 = reactor_->run(
      load_table(file, head.header.l1_offset, head.header.l1_entries, IoTag::l1_load));
  ASSERT_TRUE(l1);
  EXPECT_EQ(*l1, std::vector<uint64_t>(head.header.l1_entries));

  MemoryDevice small(*reactor_, 64 * KiB);
  small.fixed = true;
  const Result<void> refused = reactor_->run(create_image(small, {.size = 10 * GiB}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Errc::no_space);
}

TEST_F(CreateTest, LoadingNamesFileStructureAndOffset) {
  MemoryDevice file(*reactor_, 0, "disk.qcow2");
  create(file, {.size = GiB});
  const auto error_of = [](auto result) {
    return result ? std::string() : result.error().message();
  };
  EXPECT_EQ(error_of(reactor_->run(load_table(file, {0x30000}, 65536, IoTag::l1_load))),
            "'disk.qcow2': L1 table at 0x30000: file ends at 0x40000");
  EXPECT_NE(
      error_of(reactor_->run(load_table(file, {0x30000}, UINT64_MAX, IoTag::refcount_table_load))),
      "");
  ImageHeader head = head_of(file);
  head.header.snapshot_count = 3;
  head.header.snapshots_offset = {0x40000};
  EXPECT_EQ(error_of(reactor_->run(load_snapshots(file, head))),
            "'disk.qcow2': snapshot table at 0x40000: file ends at 0x40000");

  MemoryDevice empty(*reactor_, 0, "empty");
  EXPECT_EQ(error_of(reactor_->run(load_image_header(empty))),
            "'empty': 0 bytes, too few for a header");
  EXPECT_FALSE(looks_like_qcow2({}));
  std::vector<std::byte> start(4);
  file.peek(0, start);
  EXPECT_TRUE(looks_like_qcow2(start));
}

}  // namespace
}  // namespace byre
