// SPDX-License-Identifier: Apache-2.0
/// Snapshots against plain copies of an array, on a disk in memory: made, applied and deleted while
/// clients write, in images of every shape; each is read back and the image is checked.
#include "qcow2/ops/snapshot.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/prng.h"
#include "block/memory.h"
#include "format/l2.h"
#include "format/refcount.h"
#include "qcow2/image.h"
#include "qcow2/memory_image_testing.h"
#include "qcow2/ops/create.h"
#include "qcow2/repair/check.h"

namespace byre {
namespace {

using Contents = std::vector<std::byte>;

struct Disk {
  Contents active;
  std::map<std::string, Contents> snapshots;  ///< By id.
};

Task<std::unique_ptr<Image>> open(Device& memory, ImageOptions options) {
  ClosedGate opener;
  co_return co_await Image::open_over(std::make_unique<Borrowed>(memory), opener, options);
}

Task<Contents> read_all(Device& image) {
  Contents bytes(image.size());
  co_await image.read(0, bytes, IoTag::read_guest);
  co_return std::move(bytes);
}

/// Everything is as the model has it.
Task<void> expect_same(Device& memory, const Disk& disk, std::string_view when) {
  co_await expect_sound(memory).doing(when);
  {
    std::unique_ptr<Image> image = co_await open(memory, {});
    const Contents active = co_await read_all(*image);
    const bool same =
        equal(active, disk.active) && image->snapshots().size() == disk.snapshots.size();
    co_await image->close();
    if (!same) co_await fail(corrupt(when, ": the active disk differs"));
  }
  for (const auto& [id, contents] : disk.snapshots) {
    std::unique_ptr<Image> image = co_await open(memory, {.snapshot = id});
    const Contents found = co_await read_all(*image);
    co_await image->close();
    if (!equal(found, contents)) co_await fail(corrupt(when, ": snapshot ", id, " differs"));
  }
}

Task<void> scribble(Image& image, Contents& model, Prng& prng, int count) {
  const uint64_t sectors = model.size() / 512;
  for (int i = 0; i < count && sectors != 0; ++i) {
    const uint64_t first = prng.below(sectors);
    const uint64_t length = prng.between(1, std::min<uint64_t>(sectors - first, 200));
    const MutableBytes range = MutableBytes(model).subspan(first * 512, length * 512);
    const uint64_t cluster = image.geometry().cluster_size();
    if (prng.one_in(4) && model.size() >= cluster) {
      const uint64_t at = prng.below(model.size() / cluster) * cluster;
      const MutableBytes whole = MutableBytes(model).subspan(at, cluster);
      std::fill(whole.begin(), whole.end(), static_cast<std::byte>(prng.next()));
      whole[0] = std::byte{1};
      co_await image.write(at, whole, {.compressed = true});
    } else if (prng.one_in(4)) {
      co_await image.zero(first * 512, range.size(), {.may_unmap = prng.one_in(2)});
      fill_zero(range);
    } else {
      for (std::byte& b : range) b = static_cast<std::byte>(prng.next() | 1);
      co_await image.write(first * 512, range, {});
    }
  }
}

CreateOptions draw(Prng& prng) {
  CreateOptions c;
  c.version = prng.one_in(4) ? 2 : 3;
  const uint32_t bits[] = {9, 12, 14, 16};
  c.cluster_size = uint64_t{1} << bits[prng.below(4)];
  // Room for six references at least.
  if (c.version == 3) c.refcount_bits = 1u << prng.between(3, 6);
  if (c.version == 3 && c.cluster_size >= 16 * KiB) c.extended_l2 = prng.one_in(2);
  if (c.version == 3) c.lazy_refcounts = prng.one_in(4);
  c.size = c.cluster_size * prng.between(1, 200) / 512 * 512;
  return c;
}

Task<void> history(Reactor& reactor, uint64_t seed) {
  Prng prng(seed);
  const CreateOptions create = draw(prng);
  MemoryDevice memory(reactor);
  co_await create_image(memory, create);
  Disk disk{.active = Contents(round_down(create.size, 512)), .snapshots = {}};
  uint64_t next_id = 1;
  for (int life = 0; life < 3; ++life) {
    const ImageOptions options{
        .writable = true,
        .discard = prng.one_in(3) ? DiscardPolicy::ignore : DiscardPolicy::unmap,
        .table_cache_size = prng.one_in(2) ? uint64_t{1} : 1 * MiB,
        .staged_max = prng.one_in(2) ? 4u : 1024u,
        .growth_step = prng.one_in(2) ? uint64_t{1} : 1 * MiB};
    std::unique_ptr<Image> image = co_await open(memory, options);
    Result<void> done;
    for (int step = 0; done && step < 8; ++step) {
      done = co_await scribble(*image, disk.active, prng, 3).result();
      if (!done) break;
      const auto any = [&] {
        auto it = disk.snapshots.begin();
        std::advance(it, static_cast<std::ptrdiff_t>(prng.below(disk.snapshots.size())));
        return it;
      };
      const uint64_t what = prng.below(5);
      if (what < 2 && disk.snapshots.size() < 5) {
        done = co_await image->create_snapshot({.name = cat("s", next_id)}).result();
        uint64_t most = 0;
        for (const auto& [id, contents] : disk.snapshots)
          most = std::max<uint64_t>(most, std::strtoull(id.c_str(), nullptr, 10));
        next_id = most + 1;
        disk.snapshots[cat(next_id)] = disk.active;
      } else if (what == 2 && !disk.snapshots.empty()) {
        const auto it = any();
        done = co_await image->apply_snapshot({it->first, SnapshotKey::By::id}).result();
        disk.active = it->second;
      } else if (what == 3 && !disk.snapshots.empty()) {
        const auto it = any();
        done = co_await image->delete_snapshot({it->first, SnapshotKey::By::id}).result();
        disk.snapshots.erase(it);
      } else if (what == 4 && prng.one_in(2) && !image->geometry().extended_l2 &&
                 (image->geometry().version >= 3 || disk.snapshots.empty())) {
        const uint64_t size = disk.active.size() + 512 * prng.between(1, 300);
        done = co_await image->resize(size).result();
        disk.active.resize(size);
      }
      if (!done) break;
      const Contents now = co_await read_all(*image);
      if (!equal(now, disk.active)) done = corrupt("step ", step, ": the open disk differs");
    }
    Result<void> closed = co_await image->close().result();
    if (!closed) image->abandon();
    co_await std::move(done);
    co_await std::move(closed);
    co_await expect_same(memory, disk, cat("life ", life));
  }
}

class Snapshots : public CoroutineTest {};

TEST_F(Snapshots, AgreeWithCopiesAndCheckClean) {
  const char* from = std::getenv("BYRE_SEED");
  const uint64_t first = from ? std::strtoull(from, nullptr, 10) : 0;
  for (uint64_t seed = first; seed < first + (from ? 1 : 150); ++seed) {
    run([&](Reactor& reactor) -> Task<void> { co_await history(reactor, seed); },
        cat("seed ", seed));
    if (HasFatalFailure()) return;
  }
}

Task<void> fill(Device& memory, CreateOptions create, Contents& model, uint64_t seed) {
  co_await create_image(memory, create);
  std::unique_ptr<Image> image = co_await open(memory, {.writable = true});
  model.assign(create.size, std::byte{0});
  Prng prng(seed);
  co_await scribble(*image, model, prng, 20);
  co_await image->close();
}

// Rule A5: a refcount that would not fit is found before anything changes (QEMU leaves leaks).
TEST_F(Snapshots, RefcountsThatWouldNotFitAreRefusedBeforeAnyChange) {
  for (const uint32_t bits : {1u, 2u}) {
    run([&](Reactor& reactor) -> Task<void> {
      MemoryDevice memory(reactor);
      Contents model;
      co_await fill(memory, {.size = 1 * MiB, .refcount_bits = bits}, model, 1);
      std::unique_ptr<Image> image = co_await open(memory, {.writable = true});
      Disk disk{.active = model, .snapshots = {}};
      Result<void> refused;
      for (uint64_t id = 1; refused && id < 5; ++id) {
        refused = co_await image->create_snapshot({.name = "fits"}).result();
        if (refused) disk.snapshots[cat(id)] = model;
      }
      // Again, and again nothing happens.
      for (int i = 0; !refused && refused.error().code() == Errc::invalid && i < 4; ++i) {
        refused = co_await image->create_snapshot({.name = "more"}).result();
      }
      const bool right = !refused && refused.error().code() == Errc::invalid &&
                         disk.snapshots.size() <= refcount_max(bits == 1 ? 0 : 1) - 1;
      co_await image->close();
      if (!right) co_await fail(corrupt(bits, " bits: ", disk.snapshots.size(), " snapshots"));
      co_await expect_same(memory, disk, "refused");
    });
  }
}

TEST_F(Snapshots, AWordThatFitsTwoIsRefusedAndTold) {
  const std::vector<Snapshot> list = {{.id = "1", .name = "a"},
                                      {.id = "2", .name = "1"},
                                      {.id = "3", .name = "b"},
                                      {.id = "4", .name = "b"}};
  EXPECT_EQ(*find_snapshot(list, {"2"}), 1u);
  EXPECT_EQ(*find_snapshot(list, {"a"}), 0u);
  EXPECT_EQ(find_snapshot(list, {"1"}).error().code(), Errc::invalid);
  EXPECT_NE(find_snapshot(list, {"1"}).error().message().find("'a'"), std::string::npos);
  EXPECT_EQ(*find_snapshot(list, {"1", SnapshotKey::By::id}), 0u);
  EXPECT_EQ(*find_snapshot(list, {"1", SnapshotKey::By::name}), 1u);
  EXPECT_EQ(find_snapshot(list, {"b"}).error().code(), Errc::invalid);
  EXPECT_EQ(find_snapshot(list, {"5"}).error().code(), Errc::not_found);
  EXPECT_EQ(next_snapshot_id(list), "5");
  EXPECT_EQ(next_snapshot_id({{.id = "x9"}, {.id = "7up"}}), "8");
  EXPECT_EQ(next_snapshot_id({}), "1");
  // A lookup by id or name finds one.
  EXPECT_EQ(next_snapshot_id({{.id = "1", .name = "2"}}), "3");
  EXPECT_EQ(next_snapshot_id({{.id = "1", .name = "3"}, {.id = "2", .name = "4"}}), "5");
}

// Rule S1: whichever write fails, the guest and every snapshot keep their contents, and what is
// left in the file is at worst what an open puts right.
TEST_F(Snapshots, AFailureAtTheKthWriteChangesNothing) {
  enum class What { create, apply, remove };
  for (const uint32_t version : {2u, 3u}) {
    for (const What what : {What::create, What::apply, What::remove}) {
      bool failed = true;
      for (uint64_t k = 1; failed && k < 60; ++k) {
        run(
            [&](Reactor& reactor) -> Task<void> {
              MemoryDevice memory(reactor);
              Disk disk;
              co_await fill(memory, {.size = 256 * KiB, .version = version, .cluster_size = 4096},
                            disk.active, 7);
              {
                std::unique_ptr<Image> image = co_await open(memory, {.writable = true});
                co_await image->create_snapshot({.name = "first"});
                disk.snapshots["1"] = disk.active;
                Prng prng(k);
                co_await scribble(*image, disk.active, prng, 5);
                co_await image->close();
              }
              DiskScript script{.failing_write = k};
              ClosedGate opener;
              const Disk before = disk;
              auto file = std::make_unique<ScriptedDisk>(memory, script);
              std::unique_ptr<Image> image =
                  co_await Image::open_over(std::move(file), opener, {.writable = true});
              Result<void> done;
              if (what == What::create)
                done = co_await image->create_snapshot({.name = "second"}).result();
              if (what == What::apply) done = co_await image->apply_snapshot({"first"}).result();
              if (what == What::remove) done = co_await image->delete_snapshot({"first"}).result();
              failed = !done;
              const std::vector<Snapshot> left = image->snapshots();
              if (failed && left.size() == 2)
                co_await fail(corrupt("a failed create left a snapshot"));
              const Contents shown = co_await read_all(*image);
              Result<void> wrote =
                  co_await image->write(0, Contents(4096, std::byte{0x77}), {}).result();
              Result<void> closed = co_await image->close().result();
              if (!closed) image->abandon();

              // Whatever was left: the next open puts it right.
              {
                std::unique_ptr<Image> again = co_await open(memory, {.writable = true});
                co_await again->close();
              }
              const CheckReport report = co_await check_image(memory, {.repair = Repair::all});
              if (version == 3 && report.corruptions_fixed + report.leaks_fixed != 0) {
                co_await fail(corrupt("write ", k, ": ", report.corruptions_fixed,
                                      " corruptions and ", report.leaks_fixed,
                                      " leaks after opening"));
              }
              if (!done && left.size() == 1 && what != What::apply) disk = before;
              if (left.empty()) disk.snapshots.clear();
              if (what == What::apply && equal(shown, before.snapshots.at("1")))
                disk.active = shown;
              if (!failed && what == What::create) disk.snapshots["2"] = disk.active;
              if (!equal(shown, disk.active))
                co_await fail(corrupt("write ", k, ": the disk differs"));
              if (wrote) std::fill_n(disk.active.begin(), 4096, std::byte{0x77});
              co_await expect_same(memory, disk, cat("write ", k));
            },
            cat("version ", version, " step ", static_cast<int>(what), " write ", k));
        if (HasFatalFailure()) return;
      }
      EXPECT_FALSE(failed) << "no end of writes";
    }
  }
}

// The table that is the active disk's alone again leads to regions that the snapshot never saw.
TEST_F(Snapshots, DeletingOneRestoresCopiedInRegionsThatNothingElseLoaded) {
  run([&](Reactor& reactor) -> Task<void> {
    MemoryDevice memory(reactor);
    Disk disk;
    co_await fill(memory, {.size = 2 * MiB, .cluster_size = 4096, .refcount_bits = 64}, disk.active,
                  3);
    std::unique_ptr<Image> image = co_await open(memory, {.writable = true});
    co_await image->create_snapshot({.name = "before"});
    std::fill(disk.active.begin(), disk.active.end(), std::byte{0x5a});
    co_await image->write(0, disk.active, {});
    co_await image->close();
    image = co_await open(memory, {.writable = true});
    co_await image->delete_snapshot({"before"});
    const uint64_t in_place = image->stats().writes_in_place;
    co_await image->write(2000 * KiB, Bytes(disk.active).first(512), {});
    const bool again = image->stats().writes_in_place == in_place + 1;
    co_await image->close();
    if (!again) co_await fail(corrupt("COPIED is still missing"));
    co_await expect_same(memory, disk, "deleted");
  });
}

// A cut has left the L2 table with a reference too many: it never becomes the disk's alone, but its
// clusters do, and nothing but that leak is found.
TEST_F(Snapshots, ALeakedReferenceOnASharedTableCostsNoCopiedFlags) {
  run([&](Reactor& reactor) -> Task<void> {
    MemoryDevice memory(reactor);
    Disk disk;
    co_await fill(memory, {.size = 1 * MiB}, disk.active, 3);
    std::unique_ptr<Image> image = co_await open(memory, {.writable = true});
    co_await image->create_snapshot({.name = "before"});
    const uint64_t table = image->head().header.l1_offset.value;
    const uint64_t blocks = image->head().header.refcount_table_offset.value;
    const uint64_t cluster = image->geometry().cluster_size();
    co_await image->close();
    std::vector<std::byte> bytes(8);
    memory.peek(blocks, bytes);
    const uint64_t block = load_be<uint64_t>(bytes) & kOffsetMask;
    memory.peek(table, bytes);
    const uint64_t count_at = block + (load_be<uint64_t>(bytes) & kOffsetMask) / cluster * 2;
    store_be(MutableBytes(bytes), 0, uint16_t{3});
    memory.poke(count_at, Bytes(bytes).first(2));

    const auto expect_one_leak = [&](std::string_view when) -> Task<void> {
      const CheckReport report = co_await check_image(memory, {});
      if (report.corruptions != 0 || report.leaks != 1) {
        co_await fail(corrupt(when, ": ", report.corruptions, " corruptions, ", report.leaks,
                              " leaks: ", report.findings[0].text));
      }
    };
    image = co_await open(memory, {.writable = true});
    co_await image->delete_snapshot({"before"});
    co_await image->close();
    co_await expect_one_leak("deleted");
    image = co_await open(memory, {.writable = true});
    std::fill_n(disk.active.begin(), 4096, std::byte{0x77});
    co_await image->write(0, Bytes(disk.active).first(4096), {});
    co_await image->close();
    co_await expect_one_leak("written to");
  });
}

TEST_F(Snapshots, RenameKeepsEverythingElse) {
  run([&](Reactor& reactor) -> Task<void> {
    MemoryDevice memory(reactor);
    Disk disk;
    co_await fill(memory, {.size = 1 * MiB}, disk.active, 3);
    std::unique_ptr<Image> image = co_await open(memory, {.writable = true});
    co_await image->create_snapshot({.name = "old", .date_seconds = 77, .vm_clock_nanoseconds = 5});
    disk.snapshots["1"] = disk.active;
    Snapshot wanted = image->snapshots()[0];
    wanted.name = "new";
    co_await image->rename_snapshot({"old"}, "new");
    const Snapshot found = image->snapshots()[0];
    co_await image->close();
    if (!(found == wanted)) co_await fail(corrupt("renaming changed more"));
    image = co_await open(memory, {});
    const Snapshot read = image->snapshots()[0];
    co_await image->close();
    if (read.name != "new" || read.date_seconds != 77 || read.vm_clock_nanoseconds != 5) {
      co_await fail(corrupt("what was written differs"));
    }
    co_await expect_same(memory, disk, "renamed");
  });
}

}  // namespace
}  // namespace byre
