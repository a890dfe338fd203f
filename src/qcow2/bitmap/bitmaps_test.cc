// SPDX-License-Identifier: Apache-2.0
/// Persistent bitmaps against sets of granules, on a disk in memory: in images of every shape,
/// through closing and kills, with snapshots and changes of the size among the writes.
#include "qcow2/bitmap/bitmaps.h"

#include <gtest/gtest.h>

#include "base/prng.h"
#include "block/memory.h"
#include "format/bitmaps_place.h"
#include "format/extension.h"
#include "format/refcount.h"
#include "qcow2/image.h"
#include "qcow2/memory_image_testing.h"
#include "qcow2/ops/create.h"

namespace byre {
namespace {

Task<std::unique_ptr<Image>> open(Device& memory, ImageOptions options,
                                  DiskScript* script = nullptr) {
  ClosedGate opener;
  std::unique_ptr<Device> file = std::make_unique<Borrowed>(memory);
  if (script) file = std::make_unique<ScriptedDisk>(memory, *script);
  co_return co_await Image::open_over(std::move(file), opener, std::move(options));
}

/// What a bitmap must say and may say, by granule.
struct Model {
  uint32_t granularity_bits;
  bool enabled = true;
  std::vector<bool> must;
  std::vector<bool> may;

  Model(uint32_t bits, uint64_t size, bool on) : granularity_bits(bits), enabled(on) {
    resize(size);
  }
  void resize(uint64_t size) {
    const uint64_t count = div_ceil(size, uint64_t{1} << granularity_bits);
    must.resize(count);
    may.resize(count);
  }
  void touch(uint64_t offset, uint64_t length, bool changes) {
    if (!enabled || length == 0) return;
    const uint64_t last = std::min((offset + length - 1) >> granularity_bits, must.size() - 1);
    for (uint64_t i = offset >> granularity_bits; i <= last; ++i) {
      may[i] = true;
      if (changes) must[i] = true;
    }
  }
  void fill(bool value) {
    must.assign(must.size(), value);
    may.assign(may.size(), value);
  }
};
using Models = std::map<std::string, Model>;

/// As the image says it, opened to be read: must, and with `exact` no more than may.
Task<void> compare(Device& memory, const Models& models, uint64_t size, bool exact) {
  std::unique_ptr<Image> image = co_await open(memory, {});
  const auto look = [&]() -> Task<void> {
    if (image->bitmaps().size() != models.size()) {
      co_await fail(corrupt(image->bitmaps().size(), " bitmaps instead of ", models.size()));
    }
    for (const auto& [name, model] : models) {
      const std::unique_ptr<DirtyBits> bits = co_await image->read_bitmap(name);
      for (const auto& slot : image->bitmaps()) {
        if (slot->entry.name == name && slot->entry.automatic != model.enabled)
          co_await fail(corrupt(name, ": enabled or not"));
      }
      if (bits->size() != size || bits->granules() != model.must.size())
        co_await fail(corrupt(name, ": its size"));
      for (uint64_t i = 0; i < model.must.size(); ++i) {
        const bool bit = bits->get(i);
        if (model.must[i] && !bit) co_await fail(corrupt(name, ": granule ", i, " is clean"));
        if (exact && bit && !model.may[i])
          co_await fail(corrupt(name, ": granule ", i, " is dirty"));
      }
    }
  };
  Result<void> right = co_await look().result();
  co_await image->close();
  co_await std::move(right);
}

CreateOptions draw(Prng& prng) {
  CreateOptions c;
  const uint32_t bits[] = {9, 12, 14, 16};
  c.cluster_size = uint64_t{1} << bits[prng.below(4)];
  c.refcount_bits = 1u << prng.between(3, 6);
  if (c.cluster_size >= 16 * KiB) c.extended_l2 = prng.one_in(2);
  c.lazy_refcounts = prng.one_in(4);
  c.size = c.cluster_size * prng.between(4, 400) / 512 * 512;
  return c;
}

struct History {
  Prng prng;
  CreateOptions create;
  uint64_t size;
  Models models;
  uint64_t snapshots = 0;
  int names = 0;

  Task<void> touch(Image& image) {
    const uint64_t first = prng.below(size / 512);
    const uint64_t sectors = prng.between(1, std::min<uint64_t>(size / 512 - first, 300));
    const uint64_t offset = first * 512;
    const uint64_t length = sectors * 512;
    const uint64_t cluster = create.cluster_size;
    std::vector<std::byte> data(length, std::byte{0x5a});
    const uint64_t what = prng.below(6);
    if (what == 0) {
      for (auto& [name, model] : models) model.touch(offset, length, false);
      co_await image.discard(offset, length, {});
    } else if (what == 1) {
      for (auto& [name, model] : models) model.touch(offset, length, false);
      co_await image.zero(offset, length, {.may_unmap = prng.one_in(2)});
    } else if (what == 2 && size >= cluster) {
      const uint64_t at = prng.below(size / cluster) * cluster;
      data.assign(cluster, std::byte{0x11});
      for (auto& [name, model] : models) model.touch(at, cluster, true);
      co_await image.write(at, data, {.compressed = true});
    } else {
      for (auto& [name, model] : models) model.touch(offset, length, true);
      co_await image.write(offset, data, {.fua = prng.one_in(8)});
      // A discard of what was written changes it.
      if (prng.one_in(4) && length >= 2 * cluster) co_await image.discard(offset, length, {});
    }
  }

  std::string any() {
    auto it = models.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(prng.below(models.size())));
    return it->first;
  }

  Task<void> change(Image& image) {
    const uint64_t what = prng.below(8);
    if (what < 2 && models.size() < 3) {
      const auto bits = static_cast<uint32_t>(prng.between(9, 14));
      const std::string name = cat("bitmap ", ++names);
      co_await image.add_bitmap({.name = name, .granularity = uint64_t{1} << bits});
      models.emplace(name, Model(bits, size, true));
    } else if (what == 2 && !models.empty()) {
      const std::string name = any();
      co_await image.remove_bitmap(name);
      models.erase(name);
    } else if (what == 3 && !models.empty()) {
      const std::string name = any();
      co_await image.clear_bitmap(name);
      models.at(name).fill(false);
    } else if (what == 4 && !models.empty()) {
      const std::string name = any();
      Model& model = models.at(name);
      co_await image.enable_bitmap(name, !model.enabled);
      model.enabled = !model.enabled;
    } else if (what == 5 && models.size() > 1) {
      const std::string from = any();
      const std::string to = any();
      co_await image.merge_into_bitmap(to, *co_await image.read_bitmap(from));
      const Model source = models.at(from);
      const bool enabled = std::exchange(models.at(to).enabled, true);
      for (uint64_t i = 0; i < source.may.size(); ++i) {
        const uint64_t at = i << source.granularity_bits;
        const uint64_t length = std::min(size - at, uint64_t{1} << source.granularity_bits);
        if (source.may[i]) models.at(to).touch(at, length, source.must[i]);
      }
      models.at(to).enabled = enabled;
    } else if (what == 6) {
      const uint64_t next = create.cluster_size * prng.between(1, 500) / 512 * 512;
      co_await image.resize(next);
      for (auto& [name, model] : models) {
        // The zeroed rest of the last cluster belongs to the old disk, for a moment.
        if (next < size) model.touch(next, 1, false);
        model.resize(next);
        if (next > size) model.touch(size, next - size, true);
      }
      size = next;
    } else if (what == 7) {
      if (snapshots == 0) {
        co_await image.create_snapshot({.name = "it"});
        snapshots = size;
      } else if (prng.one_in(2)) {
        co_await image.apply_snapshot({"it"});
        size = snapshots;
        for (auto& [name, model] : models) {
          model.resize(size);
          if (model.enabled) model.fill(true);
        }
      } else {
        co_await image.delete_snapshot({"it"});
        snapshots = 0;
      }
    }
  }
};

Task<std::unique_ptr<MemoryDevice>> copy_of(MemoryDevice& memory) {
  std::vector<std::byte> bytes(memory.size());
  co_await memory.read(0, bytes, IoTag::none);
  auto copy = std::make_unique<MemoryDevice>(memory.reactor());
  co_await copy->write(0, bytes, {});
  co_return std::move(copy);
}

Task<void> play(Reactor& reactor, uint64_t seed) {
  Prng prng(seed);
  History h{.prng = Prng(seed + 1), .create = draw(prng), .size = 0, .models = {}};
  h.size = h.create.size;
  auto disk = std::make_unique<MemoryDevice>(reactor);
  co_await create_image(*disk, h.create);
  bool killed = false;
  for (int life = 0; life < 4; ++life) {
    std::unique_ptr<Image> image =
        co_await open(*disk, {.writable = true, .growth_step = prng.one_in(2) ? 1 : 1 * MiB});
    Result<void> done;
    for (int step = 0; done && step < 25; ++step) {
      done =
          prng.one_in(4) ? co_await h.change(*image).result() : co_await h.touch(*image).result();
      if (done && prng.one_in(8)) done = co_await image->flush(IoTag::flush).result();
    }
    const bool kill = prng.one_in(3);
    killed |= kill;
    std::unique_ptr<MemoryDevice> left;  // What a process that dies here leaves behind.
    if (kill) left = co_await copy_of(*disk);
    Result<void> closed = co_await image->close().result();
    image.reset();
    if (kill) disk = std::move(left);
    MemoryDevice& memory = *disk;
    co_await std::move(done);
    co_await std::move(closed);
    // Lazy refcounts are rebuilt when it is opened next.
    if (!kill || !h.create.lazy_refcounts)
      co_await expect_sound(memory, killed).doing("life ", life);
    co_await compare(memory, h.models, h.size, !kill).doing("life ", life);
    if (!kill) continue;
    // What a kill made coarse stays so.
    std::unique_ptr<Image> seen = co_await open(memory, {});
    for (auto& [name, model] : h.models) {
      const std::unique_ptr<DirtyBits> bits = co_await seen->read_bitmap(name);
      for (uint64_t i = 0; i < model.may.size(); ++i) model.may[i] = bits->get(i);
    }
    co_await seen->close();
  }
}

class PersistentBitmaps : public CoroutineTest {};

TEST_F(PersistentBitmaps, AgreeWithSetsOfGranulesThroughClosingAndKills) {
  for (uint64_t seed = 1; seed <= 300 && !HasFailure(); ++seed) {
    run([&](Reactor& reactor) -> Task<void> { co_await play(reactor, seed); },
        cat("seed ", seed, ": "));
  }
}

// 256 MiB of disk are marked at once: one small write, one sync; after that a bit in memory.
TEST_F(PersistentBitmaps, ASteadyWriterPaysOnceForEach256MiB) {
  run([&](Reactor& reactor) -> Task<void> {
    MemoryDevice memory(reactor);
    co_await create_image(memory, {.size = 64 * GiB});
    DiskScript script;
    std::unique_ptr<Image> image =
        co_await open(memory, {.writable = true, .commit_delay = 3600 * kSecond}, &script);
    co_await image->add_bitmap({.name = "daily"});
    const std::vector<std::byte> data(64 * KiB, std::byte{1});
    co_await image->write(0, data, {});
    script = {};
    for (uint64_t i = 1; i < 500; ++i) co_await image->write(i * 64 * KiB, data, {});
    EXPECT_EQ(script.writes_of[IoTag::bitmap_update], 0u);
    EXPECT_EQ(script.flushes, 0u);
    co_await image->write(256 * MiB, data, {});
    EXPECT_EQ(script.writes_of[IoTag::bitmap_update], 1u);
    EXPECT_EQ(script.flushes, 1u);
    // The second cluster of bitmap data is 32 GiB on: it is allocated, filled and linked.
    co_await image->write(32 * GiB, data, {});
    EXPECT_EQ(script.writes_of[IoTag::bitmap_update], 3u);
    co_await image->close();
    std::unique_ptr<Image> again = co_await open(memory, {});
    const std::unique_ptr<DirtyBits> bits = co_await again->read_bitmap("daily");
    EXPECT_EQ(bits->dirty_bytes(), 502 * 64 * KiB);
    co_await again->close();
  });
}

/// A bitmap of another program, which no longer fits the disk or is not understood.
Task<void> change_directory(Device& memory, auto change) {
  ImageHeader head = co_await load_image_header(memory);
  const BitmapsExtension extension = *head.extensions.bitmaps;
  std::vector<std::byte> directory(extension.directory_size);
  co_await memory.read(extension.directory_offset.value, directory, IoTag::none);
  std::vector<Bitmap> bitmaps =
      co_await parse_bitmap_directory(directory, extension.count, head.geometry);
  change(bitmaps);
  co_await memory.write(extension.directory_offset.value,
                        co_await serialize_bitmap_directory(bitmaps));
}

TEST_F(PersistentBitmaps, OneThatDoesNotFitTheDiskIsKeptUnusedAndCanBeRemoved) {
  run([&](Reactor& reactor) -> Task<void> {
    MemoryDevice memory(reactor);
    co_await create_image(memory, {.size = 64 * MiB});
    std::unique_ptr<Image> image = co_await open(memory, {.writable = true});
    co_await image->add_bitmap({.name = "daily", .granularity = 512});
    co_await image->close();
    // Another program made the disk larger without a word to the bitmap.
    ImageHeader head = co_await load_image_header(memory);
    store_size(head.sector, 512 * MiB);
    co_await memory.write(0, head.sector);
    std::string told;
    image = co_await open(
        memory, {.writable = true, .message = [&](const std::string& text) { told = text; }});
    EXPECT_NE(told.find("daily"), std::string::npos) << told;
    EXPECT_EQ(image->bitmaps().at(0)->state, BitmapState::inconsistent);
    EXPECT_FALSE(co_await image->clear_bitmap("daily").result());
    co_await image->close();
    // in_use is on the disk, so that it never comes back untrue.
    image = co_await open(memory, {.writable = true});
    EXPECT_TRUE(image->bitmaps().at(0)->entry.in_use);
    co_await image->remove_bitmap("daily");
    EXPECT_TRUE(image->bitmaps().empty());
    co_await image->close();
    co_await expect_sound(memory);
  });
}

TEST_F(PersistentBitmaps, OneThatIsNotUnderstoodIsNeitherUsedNorRemoved) {
  run([&](Reactor& reactor) -> Task<void> {
    MemoryDevice memory(reactor);
    co_await create_image(memory, {.size = 64 * MiB});
    std::unique_ptr<Image> image = co_await open(memory, {.writable = true});
    co_await image->add_bitmap({.name = "x", .enabled = false});
    co_await image->close();
    co_await change_directory(memory, [](std::vector<Bitmap>& bitmaps) { bitmaps[0].type = 7; });
    // It does not record, so writing keeps it true.
    image = co_await open(memory, {.writable = true});
    const std::vector<std::byte> data(512, std::byte{1});
    co_await image->write(0, data, {});
    EXPECT_FALSE(co_await image->remove_bitmap("x").result());
    EXPECT_FALSE(co_await image->enable_bitmap("x", true).result());
    EXPECT_FALSE(co_await image->resize(128 * MiB).result());
    co_await image->add_bitmap({.name = "y"});
    co_await image->close();
    ImageHeader head = co_await load_image_header(memory);
    const BitmapList list = co_await load_bitmap_list(memory, head);
    EXPECT_EQ(list.size(), 2u);
    EXPECT_EQ(list[0]->entry.type, 7);
    // One that should record what byre writes keeps byre from writing.
    co_await change_directory(memory,
                              [](std::vector<Bitmap>& bitmaps) { bitmaps[0].automatic = true; });
    const Result<std::unique_ptr<Image>> opened =
        co_await open(memory, {.writable = true}).result();
    EXPECT_FALSE(opened);
    EXPECT_EQ(opened.error().code(), Errc::unsupported);
  });
}

TEST_F(PersistentBitmaps, OneThatNoReaderTakesCanBeRemoved) {
  run([&](Reactor& reactor) -> Task<void> {
    MemoryDevice memory(reactor);
    co_await create_image(memory, {.size = 64 * MiB});
    std::unique_ptr<Image> image = co_await open(memory, {.writable = true});
    co_await image->add_bitmap({.name = "x", .granularity = 4096});
    co_await image->add_bitmap({.name = "y", .granularity = 4096});
    const std::vector<std::byte> data(4096, std::byte{1});
    co_await image->write(0, data, {});
    co_await image->close();
    co_await change_directory(
        memory, [](std::vector<Bitmap>& bitmaps) { bitmaps[0].granularity_bits = 47; });
    image = co_await open(memory, {.writable = true});
    EXPECT_EQ(image->bitmaps().at(0)->state, BitmapState::inconsistent);
    EXPECT_TRUE(image->bitmaps().at(1)->tracks());
    EXPECT_FALSE(co_await image->clear_bitmap("x").result());
    co_await image->write(MiB, data, {});
    co_await image->remove_bitmap("x");
    co_await image->close();
    co_await expect_sound(memory);
  });
}

// The tables of a hostile image, which may all be one, do not come into memory.
TEST_F(PersistentBitmaps, TablesTakeNoMoreMemoryThanBitmapsOfTheDiskCanNeed) {
  run([&](Reactor& reactor) -> Task<void> {
    MemoryDevice memory(reactor);
    co_await create_image(memory, {.size = 64 * MiB, .cluster_size = 512});
    std::unique_ptr<Image> image = co_await open(memory, {.writable = true});
    co_await image->add_bitmap({.name = "x", .granularity = 512});
    co_await image->close();
    // A table for another disk: as long as the format allows, and longer than the file.
    const uint32_t entries = kBitmapDataSizeMax / 512;
    co_await change_directory(memory, [&](std::vector<Bitmap>& bitmaps) {
      bitmaps[0].table_entries = entries;
      bitmaps[0].in_use = true;
    });
    const ImageHeader head = co_await load_image_header(memory);
    const BitmapList list = co_await load_bitmap_list(memory, head);
    EXPECT_EQ(list.size(), 1u);
    EXPECT_EQ(list.at(0)->state, BitmapState::inconsistent);
    EXPECT_TRUE(list.at(0)->table.empty());
    // One that lies in the file, unread, is no reason not to write, and can be removed.
    const uint64_t at = round_up(memory.size(), 512);
    co_await change_directory(memory, [&](std::vector<Bitmap>& bitmaps) {
      bitmaps[0].table_offset = {at};
      bitmaps[0].table_entries = 5000;
    });
    co_await memory.write(at, std::vector<std::byte>(round_up(5000 * 8, 512)));
    std::vector<std::byte> counts(512);
    const std::vector<uint64_t> blocks =
        co_await load_table(memory, head.header.refcount_table_offset, 1, IoTag::none);
    co_await memory.read(blocks[0], counts, IoTag::none);
    for (uint64_t i = 0; i < div_ceil(5000 * 8, 512); ++i) set_refcount(counts, at / 512 + i, 4, 1);
    co_await memory.write(blocks[0], counts);
    const Result<std::unique_ptr<Image>> opened =
        co_await open(memory, {.writable = true}).result();
    EXPECT_TRUE(opened) << opened.error().message();
    if (opened) {
      EXPECT_TRUE((*opened)->bitmaps().at(0)->table.empty());
      co_await (*opened)->remove_bitmap("x");
      co_await (*opened)->close();
    }
    co_await expect_sound(memory, true);
  });
}

TEST_F(PersistentBitmaps, ABitmapForEveryNameAndOneTableForAllIsRefused) {
  run([&](Reactor& reactor) -> Task<void> {
    MemoryDevice memory(reactor);
    co_await create_image(memory, {.size = 128 * GiB, .cluster_size = 512});
    const uint64_t at = round_up(memory.size(), 512);
    std::vector<Bitmap> bitmaps(65);
    for (size_t i = 0; i < bitmaps.size(); ++i) {
      bitmaps[i].name = cat("b", i);
      bitmaps[i].granularity_bits = 9;
      bitmaps[i].table_offset = {at};
      bitmaps[i].table_entries = 65536;
    }
    const std::vector<std::byte> directory = co_await serialize_bitmap_directory(bitmaps);
    const uint64_t table_size = 65536 * 8;
    co_await memory.write(at + table_size - 512, std::vector<std::byte>(512));
    co_await memory.write(at + table_size, directory);
    std::vector<std::byte> first(512);
    co_await memory.read(0, first, IoTag::none);
    ImageHeader head = co_await load_image_header(memory);
    co_await put_bitmaps_extension(first, head.header,
                                   BitmapsExtension{.count = 65,
                                                    .directory_size = directory.size(),
                                                    .directory_offset = {at + table_size}});
    store_autoclear(first, kBitmaps);
    co_await memory.write(0, first);
    head = co_await load_image_header(memory);
    const Result<BitmapList> list = co_await load_bitmap_list(memory, head).result();
    EXPECT_FALSE(list);
    EXPECT_EQ(list.error().code(), Errc::corrupt);
    std::string told;
    std::unique_ptr<Image> image =
        co_await open(memory, {.message = [&](const std::string& text) { told = text; }});
    EXPECT_NE(told.find("more than 4194304 entries"), std::string::npos) << told;
    co_await image->close();
    EXPECT_FALSE(co_await open(memory, {.writable = true}).result());
  });
}

TEST_F(PersistentBitmaps, WhatNoRefcountProtectsKeepsTheImageFromBeingWritten) {
  run([&](Reactor& reactor) -> Task<void> {
    MemoryDevice memory(reactor);
    co_await create_image(memory, {.size = 64 * MiB});
    std::unique_ptr<Image> image = co_await open(memory, {.writable = true});
    co_await image->add_bitmap({.name = "x"});
    co_await image->close();
    ImageHeader head = co_await load_image_header(memory);
    const HostCluster directory =
        head.geometry.cluster_of(head.extensions.bitmaps->directory_offset);
    // 16 bits each, in a block that counts from the start of the file.
    const std::vector<uint64_t> table =
        co_await load_table(memory, head.header.refcount_table_offset, 1, IoTag::none);
    const std::vector<std::byte> zero(2);
    co_await memory.write(table[0] + directory.value * 2, zero);
    const Result<std::unique_ptr<Image>> opened =
        co_await open(memory, {.writable = true, .scan = ImageOptions::Scan::never}).result();
    EXPECT_FALSE(opened);
    EXPECT_EQ(opened.error().code(), Errc::corrupt);
  });
}

// An extension whose head lies across the end of the first sector cannot be taken out in one write.
TEST_F(PersistentBitmaps, AnExtensionAcrossTheFirstSectorIsAnErrorAndChangesNothing) {
  run([&](Reactor& reactor) -> Task<void> {
    MemoryDevice memory(reactor);
    co_await create_image(memory, {.size = 1 * MiB});
    std::vector<std::byte> first(64 * KiB);
    memory.peek(0, first);
    constexpr size_t kExtensionsAt = 108;  // A header length that is no multiple of 8.
    fill_zero(MutableBytes(first).subspan(104));
    store_be<uint32_t>(first, 100, kExtensionsAt);
    store_be<uint32_t>(first, kExtensionsAt, 0x12345678);
    store_be<uint32_t>(first, kExtensionsAt + 4, 392);
    store_be<uint32_t>(first, 508, kBitmapsExtension);
    store_be<uint32_t>(first, 512, 24);
    store_be<uint32_t>(first, 516, 1);
    store_be<uint64_t>(first, 524, 32);
    store_be<uint64_t>(first, 532, 0x50000);
    memory.poke(0, first);
    std::unique_ptr<Image> image = co_await open(memory, {.writable = true});
    const Result<void> added = co_await image->add_bitmap({.name = "daily"}).result();
    co_await image->close();
    EXPECT_FALSE(added);
    if (!added) EXPECT_EQ(added.error().code(), Errc::no_space) << added.error().message();
    std::vector<std::byte> after(first.size());
    memory.peek(0, after);
    EXPECT_TRUE(equal(after, first));
  });
}

TEST_F(PersistentBitmaps, DefaultsAndBoundsAreThoseOfQemu) {
  run([&](Reactor& reactor) -> Task<void> {
    for (const auto& [cluster, granularity] : {std::pair<uint64_t, uint64_t>{512, 4096},
                                               {4096, 4096},
                                               {16384, 16384},
                                               {65536, 65536},
                                               {2 * MiB, 65536}}) {
      MemoryDevice memory(reactor);
      co_await create_image(memory, {.size = 64 * MiB, .cluster_size = cluster});
      std::unique_ptr<Image> image = co_await open(memory, {.writable = true});
      co_await image->add_bitmap({.name = std::string(1023, 'n')});
      EXPECT_EQ(image->bitmaps().at(0)->entry.granularity(), granularity);
      co_await image->add_bitmap({.name = "fine", .granularity = 512});
      co_await image->add_bitmap({.name = "coarse", .granularity = 2 * GiB});
      EXPECT_FALSE(co_await image->add_bitmap({.name = std::string(1024, 'n')}).result());
      EXPECT_FALSE(co_await image->add_bitmap({.name = ""}).result());
      EXPECT_FALSE(co_await image->add_bitmap({.name = "fine"}).result());
      EXPECT_FALSE(co_await image->add_bitmap({.name = "a", .granularity = 256}).result());
      EXPECT_FALSE(co_await image->add_bitmap({.name = "a", .granularity = 768}).result());
      EXPECT_FALSE(co_await image->add_bitmap({.name = "a", .granularity = 4 * GiB}).result());
      EXPECT_FALSE(co_await image->resize(0).result());
      co_await image->remove_all_bitmaps();
      co_await image->resize(0);
      EXPECT_FALSE(co_await image->add_bitmap({.name = "none"}).result());
      co_await image->close();
      co_await expect_sound(memory);
    }
    MemoryDevice memory(reactor);
    co_await create_image(memory, {.size = 1 * MiB, .version = 2});
    std::unique_ptr<Image> image = co_await open(memory, {.writable = true});
    EXPECT_FALSE(co_await image->add_bitmap({.name = "v2"}).result());
    co_await image->close();
  });
}

}  // namespace
}  // namespace byre
