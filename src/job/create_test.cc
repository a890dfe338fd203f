// SPDX-License-Identifier: Apache-2.0
#include "job/create.h"

#include <gtest/gtest.h>

#include "job/convert.h"
#include "sim/sim_gate.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

using Data = std::vector<std::byte>;
/// In a folder that is not there, so that there is none to sync.
constexpr const char* kTarget = "no such folder/target";

Data noise(Prng& prng, uint64_t size) {
  Data data(size);
  for (std::byte& byte : data) byte = std::byte(prng.next() | 1);
  return data;
}

/// Disks on simulated files, whose power may fail at any moment.
class CreateDiskTest : public testing::TestWithParam<int> {
 protected:
  CreateDiskTest()
      : reactor_(static_cast<uint64_t>(GetParam())), prng_(static_cast<uint64_t>(GetParam())) {}

  /// Makes the target and fills it with `data`, as convert does.
  Task<void> make(Data data, CreateDiskOptions options) {
    options.to_be_filled = true;
    options.image.size = data.size();
    const DiskFormat format = options.format;
    std::unique_ptr<NewDiskFile> made;
    if (disks_[kTarget].options().block_device) {
      // The opener would make a new one of it.
      std::unique_ptr<File> file = co_await opener_.open(kTarget, {.writable = true});
      made = std::make_unique<NewDiskFile>(reactor_, std::move(file), true, options);
      co_await create_image(made->being_made(), options.image);
    } else {
      made = co_await begin_disk(reactor_, opener_, kTarget, std::move(options));
    }
    std::unique_ptr<Device> device = made->device();
    if (format == DiskFormat::qcow2) {
      device = co_await Image::open_over(std::move(device), opener_, {.writable = true});
    }
    for (uint64_t at = 0; at < data.size(); at += 64 * KiB) {
      const uint64_t length = std::min<uint64_t>(64 * KiB, data.size() - at);
      co_await device->write(at, Bytes(data).subspan(at, length), {});
    }
    co_await device->close();
    co_await made->finish();
  }
  /// What a cut now would leave of the target, and whether that begins like an image.
  bool is_image(const SimDisk& cut) {
    const Data start = cut.read(0, kSectorSize);
    return cut.size() >= kSectorSize && looks_like_qcow2(start) && !is_unfinished(start);
  }
  /// The cut disk is the whole of `data`.
  void expect_whole(const SimDisk& cut, const Data& data, DiskFormat format) {
    SimReactor reactor(1);
    SimDisks disks;
    disks[kTarget] = cut;
    SimGate opener(reactor, disks);
    const auto read = [&]() -> Task<Data> {
      Disk disk = co_await open_disk(opener, kTarget, {.format = format});
      Data found(disk.device->size());
      Result<void> done = co_await disk.device->read(0, found).result();
      co_await disk.device.close();
      co_await std::move(done);
      co_return found;
    };
    const Result<Data> found = reactor.finish(read());
    ASSERT_TRUE(found) << found.error().message();
    EXPECT_TRUE(*found == data);
  }

  SimReactor reactor_;
  Prng prng_;
  SimDisks disks_;
  SimGate opener_{reactor_, disks_};
};
INSTANTIATE_TEST_SUITE_P(Seeds, CreateDiskTest, testing::Range(1, 9));

// Rule of job/create.h: wherever the power fails, what begins like an image is the whole disk.
TEST_P(CreateDiskTest, APowerCutLeavesAWholeImageOrNone) {
  for (const bool block_device : {false, true}) {
    const Data data = noise(prng_, prng_.between(1, 8) * 100 * KiB / 512 * 512);
    disks_.clear();
    SimDisk& disk = disks_[kTarget];
    CreateDiskOptions options{.format = DiskFormat::qcow2, .replace = true};
    options.image.size = MiB;
    const Data old = noise(prng_, MiB);
    if (block_device) {
      // It held an image before.
      disk = SimDisk({.size = 8 * MiB, .block_device = true});
      ASSERT_TRUE(reactor_.finish(make(old, options)));
      ASSERT_TRUE(is_image(disk));
    }

    uint64_t cuts = 0;
    reactor_.after_delivery = [&] {
      if (!prng_.one_in(4)) return;
      const SimDisk cut = disk.cut(CutChoice::random(prng_.next()));
      ++cuts;
      if (!is_image(cut)) return;
      // The old image, as long as nothing has happened to it, or the new one.
      Data size(8);
      cut.read(24, size);
      expect_whole(cut, load_be<uint64_t>(size) == MiB ? old : data, DiskFormat::qcow2);
    };
    const Result<void> made = reactor_.finish(make(data, options));
    reactor_.after_delivery = nullptr;
    ASSERT_TRUE(made) << made.error().message();
    EXPECT_GT(cuts, 5u);
    const SimDisk cut = disk.cut(CutChoice::none());
    EXPECT_TRUE(is_image(cut)) << "it is durable when it is finished";
    expect_whole(cut, data, DiskFormat::qcow2);
  }
}

// Killed, what landed is all there: a raw file that was made is shorter than the disk.
TEST_P(CreateDiskTest, ARawFileGetsItsLengthLast) {
  const Data data = noise(prng_, 640 * KiB);
  bool ended = false;
  SimDisk* disk = nullptr;
  reactor_.after_delivery = [&] {
    const auto found = disks_.find(kTarget);
    if (found != disks_.end() && found->second.size() == data.size() && !ended) {
      ended = true;
      disk = &found->second;
      EXPECT_TRUE(disk->read(0, data.size()) == data) << "its length says that it is whole";
    }
  };
  ASSERT_TRUE(reactor_.finish(make(data, {.format = DiskFormat::raw, .replace = true})));
  EXPECT_TRUE(ended);
  expect_whole(disks_[kTarget].cut(CutChoice::none()), data, DiskFormat::raw);
}

TEST_P(CreateDiskTest, StoppedItWritesNothingMore) {
  const Data data = noise(prng_, MiB);
  Progress progress;
  uint64_t begun = 0;
  const uint64_t when = prng_.between(1, 20);
  reactor_.after_delivery = [&] {
    if (++begun > when) progress.stop();
  };
  CreateDiskOptions options{.format = DiskFormat::qcow2, .progress = &progress};
  const Result<void> made = reactor_.finish([&]() -> Task<void> {
    const std::unique_ptr<NewDiskFile> disk =
        co_await begin_disk(reactor_, opener_, kTarget, options);
    std::unique_ptr<Image> image =
        co_await Image::open_over(disk->device(), opener_, {.writable = true});
    Result<void> written = co_await image->write(0, Bytes(data).first(0), {}).result();
    for (int i = 0; i < 1000 && written; ++i) written = co_await image->flush().result();
    (void)co_await image->close().result();
    co_await std::move(written);
  }());
  reactor_.after_delivery = nullptr;
  EXPECT_EQ(made.error().code(), Errc::cancelled) << made.error().message();
  const auto found = disks_.find(kTarget);
  if (found != disks_.end()) {
    EXPECT_FALSE(is_image(found->second.cut(CutChoice::all())));
  }
}

TEST(Unfinished, EveryReaderIsToldWhatItIs) {
  const Data sector = unfinished_sector();
  ASSERT_EQ(sector.size(), kSectorSize);
  EXPECT_TRUE(is_unfinished(sector));
  SimReactor reactor(1);
  SimDisks disks;
  disks["x"].put(0, sector);
  SimGate opener(reactor, disks);
  for (const auto format : {std::optional<DiskFormat>(), std::optional(DiskFormat::qcow2)}) {
    const Result<Disk> disk = reactor.finish(open_disk(opener, "x", {.format = format}));
    ASSERT_FALSE(disk);
    EXPECT_NE(disk.error().message().find("never finished"), std::string::npos);
  }
  Data whole = sector;
  whole[10] = std::byte{1};
  EXPECT_FALSE(is_unfinished(whole));
}

}  // namespace
}  // namespace byre
