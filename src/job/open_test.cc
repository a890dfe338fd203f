// SPDX-License-Identifier: Apache-2.0
#include "job/open.h"

#include <gtest/gtest.h>

#include "block/raw.h"
#include "job/create.h"
#include "sim/sim_gate.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

using std::string_view_literals::operator""sv;

std::vector<std::byte> start_with(size_t offset, std::string_view bytes) {
  std::vector<std::byte> start(kClassifySize);
  copy(MutableBytes(start).subspan(offset), bytes_of(bytes));
  return start;
}

TEST(Classify, ForeignFormatsAreNotTakenForRaw) {
  const std::pair<size_t, std::string_view> magics[] = {{0, "KDMV"sv},
                                                        {0, "COWD"sv},
                                                        {0, "# Disk DescriptorFile"sv},
                                                        {0x40, "\x7f\x10\xda\xbe"sv},
                                                        {0, "vhdxfile"sv},
                                                        {0, "conectix"sv},
                                                        {0, "LUKS\xba\xbe"sv},
                                                        {0, "QED\0"sv},
                                                        {0, "QFI\xfb\0\0\0\0"sv}};
  for (const auto& [offset, bytes] : magics) {
    const Result<DiskFormat> format = classify(start_with(offset, bytes));
    ASSERT_FALSE(format) << bytes;
    EXPECT_EQ(format.error().code(), Errc::unsupported) << bytes;
  }
}

TEST(Classify, Qcow2IsKnownByItsMagic) {
  for (std::string_view bytes : {"QFI\xfb\0\0\0\2"sv, "QFI\xfb\0\0\0\3"sv, "QFI\xfb\0\0\0\x09"sv}) {
    EXPECT_EQ(*classify(start_with(0, bytes)), DiskFormat::qcow2);
  }
  EXPECT_EQ(*classify(start_with(1, "QFI\xfb\0\0\0\3"sv)), DiskFormat::raw);
}

TEST(Classify, QcowOfVersion1IsAFormatOfItsOwn) {
  EXPECT_EQ(*classify(start_with(0, "QFI\xfb\0\0\0\1"sv)), DiskFormat::qcow);
  EXPECT_EQ(*parse_format("qcow"), DiskFormat::qcow);
  EXPECT_EQ(name_of(DiskFormat::qcow), "qcow");
}

TEST(Classify, WhatCanBeTwoThingsIsRefused) {
  for (const auto& [offset, bytes] :
       {std::pair<size_t, std::string_view>{510, "\x55\xaa"sv}, {0x8001, "CD001"sv}}) {
    std::vector<std::byte> start = start_with(0, "QFI\xfb\0\0\0\3"sv);
    copy(MutableBytes(start).subspan(offset), bytes_of(bytes));
    const Result<DiskFormat> format = classify(start);
    ASSERT_FALSE(format);
    EXPECT_EQ(format.error().code(), Errc::denied);
    // Without the magic it is a disk like any other.
    EXPECT_EQ(*classify(start_with(offset, bytes)), DiskFormat::raw);
  }
}

TEST(Classify, ShortFilesAreRaw) {
  for (size_t size = 0; size < 8; ++size) {
    EXPECT_EQ(*classify(Bytes(start_with(0, "xyzxyzxyz"sv)).first(size)), DiskFormat::raw);
  }
}

TEST(PathOf, TakesPathsAndNothingElse) {
  const std::pair<std::string_view, std::string_view> good[] = {{"disk", "disk"},
                                                                {"./a:b", "./a:b"},
                                                                {"/x/a:b", "/x/a:b"},
                                                                {"file:disk", "disk"},
                                                                {"file:a:b", "a:b"}};
  for (const auto& [name, path] : good) EXPECT_EQ(*path_of(name), path) << name;
  for (std::string_view name : {"", "file:", "json:{}", "nbd://x", "a:b", "fd:3", "http://x/y"}) {
    EXPECT_FALSE(path_of(name)) << name;
  }
}

class OpenDiskTest : public testing::Test {
 protected:
  Result<Disk> open(const char* name, OpenDiskOptions options) {
    return reactor_.run(open_disk(opener_, name, std::move(options)));
  }
  void make(const char* name, DiskFormat format, uint64_t size) {
    CreateDiskOptions options{.format = format, .sync = false};
    options.image.size = size;
    ASSERT_TRUE(reactor_.run(create_disk(reactor_, opener_, name, std::move(options))));
  }
  void close(Disk& disk) { EXPECT_TRUE(reactor_.run(disk.device.close())); }

  SimReactor reactor_{1};
  SimDisks disks_;
  SimGate opener_{reactor_, disks_};
};

TEST_F(OpenDiskTest, TheFormatIsGivenOrFound) {
  make("image", DiskFormat::qcow2, MiB);
  make("raw", DiskFormat::raw, 1000);
  Result<Disk> image = open("image", {});
  ASSERT_TRUE(image) << image.error().message();
  EXPECT_TRUE(image->image && image->guessed);
  EXPECT_EQ(image->size(), MiB);
  close(*image);

  Result<Disk> raw = open("raw", {});
  ASSERT_TRUE(raw);
  EXPECT_EQ(raw->format, DiskFormat::raw);
  EXPECT_EQ(raw->size(), 1024u) << "whole sectors";
  close(*raw);

  Result<Disk> bytes = open("image", {.format = DiskFormat::raw});
  ASSERT_TRUE(bytes);
  EXPECT_EQ(bytes->image, nullptr);
  close(*bytes);
  EXPECT_EQ(open("raw", {.format = DiskFormat::qcow2}).error().message(),
            "Image is not in qcow2 format");
}

TEST_F(OpenDiskTest, AGuessedRawDiskCannotBeMadeAnImage) {
  make("raw", DiskFormat::raw, 64 * KiB);
  Result<Disk> disk = open("raw", {.image = {.writable = true}});
  ASSERT_TRUE(disk);
  const auto write = [&](uint64_t offset, std::string_view text) {
    return reactor_.run(disk->device->write(offset, bytes_of(text), {}));
  };
  EXPECT_EQ(write(0, "QFI\xfb\0\0\0\3"sv).error().code(), Errc::denied);
  EXPECT_EQ(write(0, "KDMV"sv).error().code(), Errc::denied);
  // In pieces, too.
  EXPECT_TRUE(write(0, "QF"sv));
  EXPECT_TRUE(write(3, "\xfb"sv));
  EXPECT_EQ(write(2, "I"sv).error().code(), Errc::denied);
  EXPECT_TRUE(write(512, "QFI\xfb\0\0\0\3"sv));
  EXPECT_TRUE(write(0, "MBR"sv));
  close(*disk);

  Result<Disk> given = open("raw", {.format = DiskFormat::raw, .image = {.writable = true}});
  ASSERT_TRUE(given);
  EXPECT_TRUE(reactor_.run(given->device->write(0, bytes_of("QFI\xfb\0\0\0\3"sv), {})));
  close(*given);
}

TEST_F(OpenDiskTest, CreatingOverwritesOnlyWhenTold) {
  make("x", DiskFormat::qcow2, MiB);
  CreateDiskOptions options{.format = DiskFormat::raw, .sync = false};
  EXPECT_EQ(reactor_.run(create_disk(reactor_, opener_, "x", options)).error().code(),
            Errc::exists);
  options.replace = true;
  EXPECT_TRUE(reactor_.run(create_disk(reactor_, opener_, "x", options)));
}

TEST_F(OpenDiskTest, ARawDiskHasNoSnapshots) {
  make("raw", DiskFormat::raw, 4096);
  EXPECT_EQ(open("raw", {.image = {.snapshot = "s"}}).error().code(), Errc::unsupported);
}

}  // namespace
}  // namespace byre
