// SPDX-License-Identifier: Apache-2.0
#include "format/bitmaps_place.h"
#include "format/extension.h"
#include "format/snapshot.h"
#include "qcow2/bitmap/bitmap_slot.h"
#include "qcow2/repair/check_testing.h"

namespace byre {
namespace {

TEST_F(CheckTest, SoundImagesOfEveryKindCountAsQemuCountsThem) {
  const std::vector<std::string> plain = {"write -q -P 1 0 80k", "write -q -z 256k 64k",
                                          "write -q -P 3 1000k 24k", "discard -q 0 16k"};
  std::vector<std::string> packed = plain;
  packed.insert(packed.begin() + 1, "write -q -c -P 2 128k 64k");
  const std::vector<std::string> snapshots = {
      "qemu-img snapshot -c a made", "qemu-io -f qcow2 -c 'write -q -P 4 0 8k' made",
      "qemu-img snapshot -c b made", "qemu-io -f qcow2 -c 'write -q -P 5 8k 8k' made",
      "qemu-img snapshot -d a made", "qemu-img snapshot -a b made"};
  must("truncate -s 4M base.raw data.raw raw.raw");

  std::map<std::string, ImageBytes> images;
  for (const std::string cluster : {"512", "4k", "64k"}) {
    for (const std::string bits : {"1", "2", "4", "8", "16", "32", "64"}) {
      const std::string name = cat("cluster_size=", cluster, ",refcount_bits=", bits);
      images[name] = make("-o " + name, "4M", bits == "8" || bits > "16" ? packed : plain);
    }
  }
  for (const std::string name :
       {"cluster_size=2M", "data_file=data.raw", "data_file=raw.raw,data_file_raw=on",
        "preallocation=metadata", "preallocation=metadata,extended_l2=on,cluster_size=16k"}) {
    images[name] = make("-o " + name, "4M", plain);
  }
  for (const std::string name : {"compat=0.10", "compression_type=zstd", "lazy_refcounts=on",
                                 "extended_l2=on", "backing_file=base.raw,backing_fmt=raw"}) {
    images[name] = make("-o " + name, "4M", packed);
  }
  for (const std::string name : {"cluster_size=4k", "cluster_size=512", "compat=0.10",
                                 "extended_l2=on,cluster_size=16k", "cluster_size=64k"}) {
    images[name + " with snapshots"] = make("-o " + name, "4M", packed, snapshots);
  }
  for (const std::string name : {"cluster_size=512", "cluster_size=64k"}) {
    images[name + " with bitmaps"] =
        make("-o " + name, "4M", packed,
             {"qemu-img bitmap --add made a", "qemu-img bitmap --add -g 512 made b",
              "qemu-io -f qcow2 -c 'write -q -P 7 2M 32k' made"});
  }
  images["empty"] = make("", "0", {});
  // QEMU leaves the clusters of the bitmaps behind: three leaks, for both.
  images["downgraded with a bitmap"] =
      make("", "4M", {},
           {"qemu-img bitmap --add made a", "qemu-img amend -f qcow2 -o compat=0.10 made"});

  for (const auto& [name, image] : images) {
    MemoryDevice file(*reactor_, image, name);
    const CheckReport report = check(file);
    EXPECT_EQ(counts_of(report), qemu_counts(image)) << name << "\n" << words_of(report);
    EXPECT_EQ(report.corruptions, 0u) << name;
  }
}

TEST_F(CheckTest, TheClustersOfAnEncryptionHeaderAreNoLeaks) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = MiB, .cluster_size = 4096}, 4);
  Result<ImageHeader> head = reactor_->run(load_image_header(file));
  ASSERT_TRUE(head);
  const HostOffset at{file.size()};
  head->header.crypt_method = CryptMethod::luks;
  head->extensions.crypto_header = CryptoHeader{.offset = at, .length = 3 * 4096 - 100};
  const Result<ImageBytes> header = serialize_header(head->header, head->extensions);
  ASSERT_TRUE(header);
  file.poke(0, *header);
  file.poke(at.value, ImageBytes(3 * 4096 - 100));
  EXPECT_EQ(check(file).corruptions, 3u);
  EXPECT_EQ(check(file, Repair::all).corruptions, 0u);
  for (uint64_t i = 0; i < 3; ++i) count(file, at.value / 4096 + i, 1);
  const CheckReport report = check(file, Repair::leaks);
  EXPECT_EQ(report.corruptions + report.leaks + report.leaks_fixed, 0u) << words_of(report);
}

// One word of metadata is damaged at random; corruptions and leaks must be as many as qemu-img 7.2
// counts.  It goes its own way where
//   an L1 entry has flags but no offset    QEMU reads the header as an L2 table
//   an L1 entry is not aligned             QEMU reads an L2 table across two clusters
//   a refcount table entry is not aligned  QEMU has one check error for each cluster, or believes
//                                          it without its low bits; here the block counts as lost
//   the snapshot table is damaged          QEMU repairs it in memory, or gives up
// and where refcounts of one or two bits are too narrow for the references that damage makes.
// There both must at least say that something is wrong.
TEST_F(CheckTest, DamageIsCountedAsQemuCountsIt) {
  const std::vector<ImageBytes> images = small_images();
  int compared = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Prng prng(seed);
    ImageBytes image = images[prng.below(images.size())];
    const Damage damaged = damage(image, prng);
    SCOPED_TRACE(
        cat("seed ", seed, ": ", damaged.kind, " at ", hex(damaged.at), ": ", hex(damaged.value)));
    MemoryDevice file(*reactor_, image);
    const CheckReport report = check(file);
    const Counts qemu = qemu_counts(image);
    if (qemu.code == 1 && damaged.kind == "snapshot table") continue;  // It read nothing.
    if (damaged.beside_the_rules) {
      EXPECT_EQ(report.corruptions + report.leaks != 0, qemu.code != 0) << qemu << "\n"
                                                                        << words_of(report);
      continue;
    }
    EXPECT_EQ(counts_of(report), qemu) << words_of(report);
    ++compared;
  }
  EXPECT_GT(compared, 140);
}

// Whatever the damage: a repair leaves what it says, a second one changes nothing, QEMU agrees, no
// guest cluster moves and no byte of data changes.
TEST_F(CheckTest, RepairOfRandomDamageHarmsNothing) {
  const std::vector<ImageBytes> images = small_images();
  int clean = 0;
  for (uint64_t seed = 1000; seed < 1120; ++seed) {
    Prng prng(seed);
    ImageBytes image = images[prng.below(images.size())];
    bool beside_the_rules = false;
    std::string what = cat("seed ", seed, ":");
    for (uint64_t n = prng.between(1, 3); n != 0; --n) {
      const Damage damaged = damage(image, prng);
      beside_the_rules |= damaged.beside_the_rules;
      what += cat(" ", damaged.kind, " at ", hex(damaged.at), " = ", hex(damaged.value));
    }
    SCOPED_TRACE(what);
    const Repair repair = prng.one_in(3) ? Repair::leaks : Repair::refcounts;
    MemoryDevice file(*reactor_, image);
    const CheckReport repaired = check(file, repair);
    const ImageBytes after = file.bytes();

    const CheckReport again = check(file);
    EXPECT_EQ(counts_of(again), counts_of(repaired)) << words_of(again);
    // Leaks that were kept because of damage that is repaired now may go at the next time.
    const bool only_leaks = again.corruptions == 0 && again.leaks != 0;
    if (!only_leaks) check(file, repair);
    EXPECT_TRUE(file.bytes() == after) << "not finished at once\n" << words_of(again);
    if (again.corruptions == 0) {
      const Counts qemu = qemu_counts(after);
      EXPECT_EQ(qemu, counts_of(again));
      clean += again.leaks == 0;
    } else if (!beside_the_rules) {
      EXPECT_EQ(qemu_counts(after), counts_of(again)) << words_of(again);
    }

    const Places before(image);
    EXPECT_TRUE(Places(after).entries == before.entries);
    for (const uint64_t cluster : before.data_clusters) {
      const uint64_t at = cluster * before.cluster_size;
      if (at + before.cluster_size > image.size()) continue;
      // Data that lie in a table as well may see its flags change; such tables are left alone.
      EXPECT_TRUE(equal(Bytes(image).subspan(at, before.cluster_size),
                        Bytes(after).subspan(at, before.cluster_size)))
          << "data at " << hex(at);
    }
    if (HasFailure()) return;
  }
  EXPECT_GT(clean, 25);
}

TEST_F(CheckTest, ARefcountThatIsTooSmallIsRaised) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = MiB, .cluster_size = 4096}, 4);
  count(file, 6, 0);
  const CheckReport found = check(file);
  EXPECT_EQ(found.corruptions, 2u);  // And its COPIED flag.

  // Nothing is freed before: what has no owner now may be what is missing elsewhere.
  count(file, 20, 1);
  file.poke(20 * 4096 + 4095, std::vector<std::byte>(1, std::byte{1}));
  EXPECT_EQ(check(file, Repair::leaks).leaks, 1u);
  const CheckReport repaired = check(file, Repair::all);
  EXPECT_EQ(repaired.corruptions, 0u);
  EXPECT_EQ(repaired.corruptions_fixed, 2u);
  EXPECT_EQ(repaired.leaks_fixed, 1u);
  EXPECT_EQ(counts_of(check(file)), qemu_counts(file.bytes()));
  EXPECT_EQ(qemu_counts(file.bytes()).code, 0);
}

TEST_F(CheckTest, LeaksAreFreedAndAreFreeForReuse) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = MiB, .cluster_size = 4096}, 4);
  count(file, 20, 1);
  count(file, 5, 3);
  file.poke(20 * 4096, std::vector<std::byte>(4096));
  const CheckReport repaired = check(file, Repair::leaks);
  EXPECT_EQ(repaired.leaks_fixed, 2u);
  EXPECT_EQ(repaired.leaks, 0u);
  EXPECT_EQ(repaired.corruptions, 0u) << words_of(repaired);  // Its COPIED flag is right again.
  EXPECT_EQ(qemu_counts(file.bytes()).code, 0);
}

// facts: two L2 entries lead to one cluster; the cluster that one of them had before is a leak now,
// and the only copy of that guest cluster.
TEST_F(CheckTest, TheOrphanOfACrossLinkIsNotFreed) {
  for (const Repair repair : {Repair::leaks, Repair::refcounts}) {
    MemoryDevice file(*reactor_);
    small_image(file, {.size = MiB, .cluster_size = 4096}, 4);
    const uint64_t l2 = get(file, get(file, 40)) & kOffsetMask;
    put(file, l2 + 8, get(file, l2));
    const CheckReport report = check(file, repair);
    EXPECT_EQ(report.leaks, 1u) << words_of(report);
    EXPECT_GE(report.corruptions, 1u);
    if (repair == Repair::leaks) continue;
    // No write goes to both from now on.
    EXPECT_EQ(get(file, l2) & kCopied, 0u);
    EXPECT_EQ(get(file, l2 + 8) & kCopied, 0u);
    EXPECT_EQ(report.corruptions, 1u) << words_of(report);
    EXPECT_EQ(qemu_counts(file.bytes()).corruptions, 0u);
  }
}

TEST_F(CheckTest, WhatATruncatedFileLostDoesNotComeBackAsZeros) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = MiB, .cluster_size = 4096}, 8);
  ASSERT_TRUE(reactor_->run(file.resize(file.size() - 3 * 4096)));
  const ImageBytes before = file.bytes();
  const CheckReport found = check(file);
  EXPECT_EQ(counts_of(found), qemu_counts(before)) << words_of(found);
  EXPECT_EQ(found.corruptions, 3u);
  const CheckReport repaired = check(file, Repair::all);
  EXPECT_EQ(repaired.corruptions, 3u);
  EXPECT_EQ(file.size(), before.size());

  // Not even when the refcount structures must be written anew.
  put(file, get(file, 48), 0);
  check(file, Repair::all);
  EXPECT_EQ(file.size(), before.size());
}

TEST_F(CheckTest, LostRefcountStructuresAreWrittenAnew) {
  for (const uint32_t bits : {1u, 16u, 64u}) {
    for (const uint64_t size : {64 * MiB, 128 * GiB}) {
      SCOPED_TRACE(cat(bits, " bits, ", size));
      MemoryDevice file(*reactor_);
      small_image(file, {.size = size, .cluster_size = 512, .refcount_bits = bits});
      const uint64_t table = get(file, 48);
      for (uint64_t i = 0; i < 512; i += 8) put(file, table + i, 0);
      const CheckReport repaired = check(file, Repair::all);
      EXPECT_EQ(repaired.corruptions, 0u) << words_of(repaired);
      EXPECT_EQ(repaired.leaks, 0u);
      EXPECT_NE(get(file, 48), table);
      if (size == 64 * MiB) EXPECT_EQ(qemu_counts(file.bytes()).code, 0);
    }
  }
}

TEST_F(CheckTest, ARefcountTableThatTheHeaderMissesIsWrittenAnew) {
  for (const uint64_t table : {uint64_t{0}, uint64_t{0x1001}, uint64_t{1} << 40, UINT64_MAX}) {
    MemoryDevice file(*reactor_);
    small_image(file, {.size = MiB, .cluster_size = 4096}, 4);
    put(file, 48, table);
    EXPECT_GT(check(file).corruptions, 0u);
    const CheckReport repaired = check(file, Repair::all);
    EXPECT_EQ(repaired.corruptions + repaired.leaks, 0u) << words_of(repaired);
    EXPECT_EQ(qemu_counts(file.bytes()).code, 0);
  }
}

TEST_F(CheckTest, ARefcountBlockThatIsDataAsWellIsNotWritten) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = MiB, .cluster_size = 4096}, 4);
  const uint64_t l2 = get(file, get(file, 40)) & kOffsetMask;
  const uint64_t block = get(file, get(file, 48));
  put(file, l2, block | kCopied);
  ImageBytes before(4096);
  file.peek(block, before);
  const CheckReport repaired = check(file, Repair::refcounts);
  EXPECT_NE(get(file, get(file, 48)), block) << words_of(repaired);
  ImageBytes after(4096);
  file.peek(block, after);
  EXPECT_TRUE(before == after);
  // All that nobody owns is kept, as nobody knows what it was, but for the old refcount table.
  EXPECT_EQ(repaired.leaks, 1u) << words_of(repaired);
  EXPECT_EQ(qemu_counts(file.bytes()).corruptions, 0u);
}

TEST_F(CheckTest, ADeviceThatCannotGrowFindsRoomInside) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = MiB, .cluster_size = 4096}, 4);
  ASSERT_TRUE(reactor_->run(file.resize(64 * 4096)));
  file.fixed = true;
  put(file, get(file, 48), 0);
  const CheckReport repaired = check(file, Repair::all);
  EXPECT_EQ(repaired.corruptions + repaired.leaks, 0u) << words_of(repaired);
  EXPECT_EQ(file.size(), 64u * 4096);
  EXPECT_EQ(qemu_counts(file.bytes()).code, 0);

  MemoryDevice full(*reactor_);
  small_image(full, {.size = MiB, .cluster_size = 4096}, 4);
  full.fixed = true;
  put(full, get(full, 48), 0);
  EXPECT_GT(check(full, Repair::all).corruptions, 0u);
}

TEST_F(CheckTest, ADirtyImageBecomesCleanAndTrue) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = MiB, .cluster_size = 4096, .lazy_refcounts = true}, 8);
  for (uint64_t cluster = 5; cluster < 13; ++cluster) count(file, cluster, 0);
  count(file, 40, 1);
  file.poke(40 * 4096, std::vector<std::byte>(4096));
  put(file, 72, kDirty);
  const Result<CheckReport> rebuilt = reactor_->run(rebuild_refcounts(file));
  ASSERT_TRUE(rebuilt) << rebuilt.error().message();
  EXPECT_EQ(rebuilt->corruptions + rebuilt->leaks, 0u) << words_of(*rebuilt);
  EXPECT_EQ(get(file, 72), 0u);
  EXPECT_EQ(qemu_counts(file.bytes()).code, 0);
}

TEST_F(CheckTest, TheCorruptBitGoesWhenEverythingIsRight) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = MiB, .cluster_size = 4096}, 4);
  put(file, 72, kCorrupt);
  put(file, 88, uint64_t{1} << 40);  // An autoclear feature of the future.
  check(file);
  EXPECT_EQ(get(file, 72), kCorrupt);
  const uint64_t l2 = get(file, get(file, 40)) & kOffsetMask;
  put(file, l2 + 16, get(file, l2));
  check(file, Repair::refcounts);
  EXPECT_EQ(get(file, 72), kCorrupt);  // The alias is still there.
  EXPECT_EQ(get(file, 88), 0u);        // But something was changed.
  put(file, l2 + 16, 0);
  check(file, Repair::all);
  EXPECT_EQ(get(file, 72), 0u);
}

TEST_F(CheckTest, ReferencesThatDoNotFitTheRefcountStay) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = MiB, .cluster_size = 4096, .refcount_bits = 1}, 4);
  const uint64_t l2 = get(file, get(file, 40)) & kOffsetMask;
  put(file, l2 + 8, get(file, l2));
  const CheckReport repaired = check(file, Repair::refcounts);
  EXPECT_GE(repaired.corruptions, 1u);
  EXPECT_EQ(repaired.leaks, 1u);
  // Each with a copy of its own, they fit.
  const CheckReport separated = check(file, Repair::all);
  EXPECT_EQ(separated.corruptions, 0u) << words_of(separated);
  EXPECT_EQ(separated.leaks, 1u);
}

TEST_F(CheckTest, WhatMeansNothingIsCleared) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = MiB, .cluster_size = 4096}, 4);
  const uint64_t l2 = get(file, get(file, 40)) & kOffsetMask;
  put(file, l2, (get(file, l2) + 512) | kReadsZero);
  EXPECT_EQ(counts_of(check(file)), qemu_counts(file.bytes()));
  const CheckReport repaired = check(file, Repair::all);
  EXPECT_EQ(repaired.corruptions + repaired.leaks, 0u) << words_of(repaired);
  EXPECT_EQ(get(file, l2), kReadsZero);
  EXPECT_EQ(qemu_counts(file.bytes()).code, 0);
}

TEST_F(CheckTest, AnImageThatClaimsPetabytesIsCheckedInNoTime) {
  // E21: the file's length says nothing about what is in it.
  MemoryDevice file(*reactor_);
  small_image(file, {.size = MiB, .refcount_bits = 64}, 4);
  ASSERT_TRUE(reactor_->run(file.resize(uint64_t{1} << 62)));
  EXPECT_EQ(check(file).corruptions, 0u);

  // Every entry of a table leads somewhere else in it.
  const uint64_t l2 = get(file, get(file, 40)) & kOffsetMask;
  for (uint64_t i = 0; i < 8192; ++i) put(file, l2 + 8 * i, (i + 1) << 40 | kCopied);
  EXPECT_EQ(check(file).corruptions, 2u * 8192);
  const uint64_t pages = file.pages();
  check(file, Repair::all);
  EXPECT_LT(file.pages(), pages + 400000);

  // Each refcount table entry leads to a block of its own.
  MemoryDevice wide(*reactor_);
  small_image(wide, {.size = MiB, .cluster_size = 512}, 4);
  ASSERT_TRUE(reactor_->run(wide.resize(uint64_t{1} << 50)));
  const uint64_t table = get(wide, 48);
  for (uint64_t i = 1; i < 64; ++i) put(wide, table + 8 * i, i << 40);
  EXPECT_EQ(check(wide).corruptions, 63u);
}

TEST_F(CheckTest, RepairOfWhatIsReadOnlyIsRefused) {
  MemoryDevice made(*reactor_);
  small_image(made, {.size = MiB});
  const ImageBytes image = made.bytes();
  save(image, "image");
  Result<std::unique_ptr<File>> opened =
      File::open(*reactor_, folder_ / "image", {.writable = false});
  ASSERT_TRUE(opened) << opened.error().message();
  RawDevice file(*std::move(opened));
  const Result<CheckReport> refused = reactor_->run(check_image(file, {.repair = Repair::all}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Errc::read_only);
  EXPECT_EQ(check(file).corruptions, 0u);
  EXPECT_TRUE(reactor_->run(file.close()));
}

// ---- What keeps others from opening an image, though no reference is wrong.

/// The snapshot table of `image`, changed and put back where it was.
template <class Change>
ImageBytes with_snapshots(ImageBytes image, const Change& change) {
  const uint64_t at = word(image, 64);
  std::vector<Snapshot> snapshots =
      *parse_snapshots(Bytes(image).subspan(at), load_be<uint32_t>(image, 60));
  change(snapshots);
  const std::vector<std::byte> table = *serialize_snapshots(snapshots);
  if (image.size() < at + table.size()) image.resize(at + table.size());
  copy(MutableBytes(image).subspan(at), table);
  store_be(image, 60, static_cast<uint32_t>(snapshots.size()));
  return image;
}

// The header counts more than there are; the file may end in the middle of the table's cluster.
TEST_F(CheckTest, SnapshotsThatAreOnlyCountedAreTakenOut) {
  for (const std::string compat : {"1.1", "0.10"}) {
    const ImageBytes made =
        make(cat("-o cluster_size=4k,compat=", compat), "1M", {"write -q -P 1 0 64k"},
             {"qemu-img snapshot -c a made", "qemu-io -f qcow2 -c 'write -q -P 2 0 8k' made"});
    for (const bool ends_early : {false, true}) {
      SCOPED_TRACE(cat(compat, ends_early));
      ImageBytes image = made;
      const uint64_t table = word(image, 64);
      if (ends_early) {
        // Move the table to the end of the file.
        image.resize(round_up(image.size(), 4096) + 4096);
        const uint64_t at = image.size() - 4096;
        copy(MutableBytes(image).subspan(at, 64), Bytes(image).subspan(table, 64));
        fill_zero(MutableBytes(image).subspan(table, 4096));
        store_be(image, 64, at);
        image.resize(at + 66);
      }
      store_be(image, 60, uint32_t{5});
      MemoryDevice file(*reactor_, image);
      const CheckReport report = check(file);
      EXPECT_EQ(report.corruptions - (ends_early ? 1 : 0), 4u) << words_of(report);
      if (!ends_early) EXPECT_EQ(counts_of(report), qemu_counts(image)) << words_of(report);
      const CheckReport repaired = check(file, Repair::all);
      EXPECT_EQ(repaired.corruptions, 0u) << words_of(repaired);
      EXPECT_EQ(load_be<uint32_t>(file.bytes(), 60), 1u);
      EXPECT_NE(qemu_counts(file.bytes()).code, 2);
      if (!ends_early) EXPECT_EQ(repaired.leaks, 0u) << words_of(repaired);
    }
  }
}

TEST_F(CheckTest, ASnapshotThatDoesNotSayHowLargeItsDiskIsIsCompleted) {
  const ImageBytes made = make("-o cluster_size=4k", "1M", {"write -q -P 1 0 64k"},
                               {"qemu-img snapshot -c a made", "qemu-img snapshot -c b made"});
  const ImageBytes image = with_snapshots(made, [](std::vector<Snapshot>& snapshots) {
    for (Snapshot& snapshot : snapshots) {
      snapshot.extra_data.resize(8);
      snapshot.icount.reset();
      snapshot.disk_size.reset();
    }
    snapshots.insert(snapshots.begin() + 1, Snapshot());
  });
  MemoryDevice file(*reactor_, image);
  const CheckReport report = check(file);
  EXPECT_EQ(report.corruptions, 3u) << words_of(report);
  EXPECT_EQ(counts_of(report), qemu_counts(image)) << words_of(report);
  EXPECT_EQ(check(file, Repair::leaks).corruptions, 3u);
  const CheckReport repaired = check(file, Repair::all);
  EXPECT_EQ(repaired.corruptions, 0u) << words_of(repaired);
  // What was empty may have been something: the old table stays.
  EXPECT_EQ(repaired.orphans_kept, 1u) << words_of(repaired);
  const Result<std::vector<Snapshot>> snapshots =
      reactor_->run([&]() -> Task<std::vector<Snapshot>> {
        const ImageHeader head = co_await load_image_header(file);
        co_return co_await load_snapshots(file, head);
      }());
  ASSERT_EQ(snapshots->size(), 2u);
  EXPECT_EQ((*snapshots)[0].disk_size, MiB);
  EXPECT_EQ((*snapshots)[1].name, "b");
  EXPECT_EQ((*snapshots)[1].disk_size, MiB);
  EXPECT_EQ(qemu_counts(file.bytes()).code, 3);

  // Without an empty one nothing may be lost.
  ImageBytes short_ones = with_snapshots(made, [](std::vector<Snapshot>& snapshots) {
    snapshots[0].extra_data.clear();
    snapshots[0].icount.reset();
    snapshots[0].disk_size.reset();
  });
  MemoryDevice other(*reactor_, short_ones);
  EXPECT_EQ(check(other).corruptions, 1u);
  const CheckReport whole = check(other, Repair::all);
  EXPECT_EQ(whole.corruptions + whole.leaks, 0u) << words_of(whole);
  EXPECT_EQ(qemu_counts(other.bytes()).code, 0);
}

TEST_F(CheckTest, ASnapshotWithMoreExtraDataThanReadersTakeIsAnError) {
  const ImageBytes made =
      make("-o cluster_size=64k", "1M", {"write -q -P 1 0 64k"}, {"qemu-img snapshot -c a made"});
  for (const uint64_t size : {1024u, 1025u}) {
    const ImageBytes image = with_snapshots(made, [&](std::vector<Snapshot>& snapshots) {
      snapshots[0].extra_data.resize(size, std::byte{7});
    });
    MemoryDevice file(*reactor_, image);
    EXPECT_EQ(check(file).corruptions, size > 1024 ? 1u : 0u);
    EXPECT_EQ(qemu_counts(image).code, size > 1024 ? 1 : 0);
    // What nobody knows is not thrown away.
    EXPECT_EQ(check(file, Repair::all).corruptions, size > 1024 ? 1u : 0u);
    EXPECT_TRUE(file.bytes() == image);
  }
}

TEST_F(CheckTest, RawExternalDataWithoutThemIsAnErrorAndTheBitGoes) {
  ImageBytes image = make("-o cluster_size=4k", "1M", {"write -q -P 1 0 64k"});
  store_be(image, 88, kRawDataFile);
  EXPECT_EQ(qemu_counts(image).code, 1);
  MemoryDevice file(*reactor_, image);
  EXPECT_EQ(check(file).corruptions, 1u);
  const CheckReport repaired = check(file, Repair::all);
  EXPECT_EQ(repaired.corruptions, 0u) << words_of(repaired);
  EXPECT_EQ(repaired.corruptions_fixed, 1u);
  EXPECT_EQ(qemu_counts(file.bytes()).code, 0);
}

/// The bitmap directory of `image`, changed and put back where it was.
template <class Change>
void change_bitmaps(MemoryDevice& file, Reactor& reactor, const Change& change) {
  const ImageHeader head = *reactor.run(load_image_header(file));
  const BitmapsExtension extension = *head.extensions.bitmaps;
  std::vector<std::byte> directory(extension.directory_size);
  file.peek(extension.directory_offset.value, directory);
  std::vector<Bitmap> bitmaps = *parse_bitmap_directory(directory, extension.count, head.geometry);
  change(bitmaps);
  file.poke(extension.directory_offset.value, *serialize_bitmap_directory(bitmaps));
}

TEST_F(CheckTest, BitmapsThatNobodyCanUseGoAndThoseThatDoNotFitAreMarked) {
  const ImageBytes made =
      make("-o cluster_size=4k", "16M", {},
           {"qemu-img bitmap --add -g 4k made a", "qemu-img bitmap --add -g 4k made b",
            "qemu-img bitmap --add -g 4k made c", "qemu-io -f qcow2 -c 'write -q 1M 64k' made"});
  // The extension may lie beyond the first sector, and must change in one write all the same.
  ImageBytes far = made;
  ASSERT_EQ(load_be<uint32_t>(far, 112), kBitmapsExtension);
  copy(MutableBytes(far).subspan(1024, 32), Bytes(made).subspan(112, 32));
  store_be(far, 112, kUnusedExtension);
  store_be(far, 144, uint32_t{0x12345678});
  store_be(far, 148, uint32_t{1024 - 152});
  for (const ImageBytes& image : {made, far}) {
    for (const bool all : {false, true}) {
      SCOPED_TRACE(cat(&image == &made, all));
      MemoryDevice file(*reactor_, image);
      EXPECT_EQ(check(file).corruptions, 0u);
      change_bitmaps(file, *reactor_, [&](std::vector<Bitmap>& bitmaps) {
        bitmaps[0].granularity_bits = 47;
        bitmaps[1].table_entries = all ? 0 : 2;
        if (all) bitmaps[2].granularity_bits = 8;
      });
      const CheckReport report = check(file);
      EXPECT_EQ(report.corruptions, all ? 3u : 2u) << words_of(report);
      EXPECT_EQ(qemu_counts(file.bytes()).code, 1);
      const CheckReport repaired = check(file, Repair::all);
      EXPECT_EQ(repaired.corruptions + repaired.leaks, 0u) << words_of(repaired);
      EXPECT_EQ(qemu_counts(file.bytes()).code, 0);
      const ImageHeader head = *reactor_->run(load_image_header(file));
      const BitmapList list = *reactor_->run(load_bitmap_list(file, head));
      ASSERT_EQ(list.size(), all ? 0u : 2u);
      if (all) continue;
      EXPECT_TRUE(list[0]->entry.in_use);
      EXPECT_EQ(list[1]->entry.name, "c");
      EXPECT_EQ(list[1]->state, BitmapState::usable);
    }
  }
  // What a newer writer may have meant stays.
  MemoryDevice file(*reactor_, made);
  change_bitmaps(file, *reactor_, [&](std::vector<Bitmap>& bitmaps) { bitmaps[1].type = 2; });
  const ImageBytes before = file.bytes();
  EXPECT_EQ(check(file).corruptions, 1u);
  EXPECT_EQ(check(file, Repair::all).corruptions, 1u);
  EXPECT_TRUE(file.bytes() == before);
}

// ---- What cannot be repaired.

// What such an entry means nobody knows; nothing else is worse for it.
TEST_F(CheckTest, AnEntryThatIsNotAlignedCostsNoCounts) {
  for (const bool with_cross_link : {false, true}) {
    MemoryDevice file(*reactor_);
    small_image(file, {.size = MiB, .cluster_size = 4096}, 6);
    const uint64_t l2 = get(file, get(file, 40)) & kOffsetMask;
    const uint64_t astray = get(file, l2 + 8) + 512;
    put(file, l2 + 8, astray);
    if (with_cross_link) put(file, l2 + 5 * 8, get(file, l2 + 4 * 8));
    const CheckReport before = check(file);
    EXPECT_EQ(counts_of(before), qemu_counts(file.bytes()));
    const CheckReport repaired = check(file, Repair::all);
    EXPECT_EQ(get(file, l2 + 8) | kCopied, astray);
    const Counts after = qemu_counts(file.bytes());
    EXPECT_EQ(after.corruptions, 1u) << words_of(repaired);
    EXPECT_EQ(after, counts_of(repaired)) << words_of(repaired);
    // The place that the entry meant before it was made one with another.
    EXPECT_EQ(repaired.leaks, with_cross_link ? 1u : 0u) << words_of(repaired);
    for (const Finding& finding : repaired.findings) {
      if (finding.severity != Severity::leak) continue;
      EXPECT_NE(finding.text.find("references are 0"), std::string::npos) << finding.text;
    }
  }
}

TEST_F(CheckTest, LeaksThatStayBecauseSomethingElseIsWrongAreTold) {
  MemoryDevice file(*reactor_);
  small_image(file, {.size = MiB, .cluster_size = 4096}, 6);
  const uint64_t l2 = get(file, get(file, 40)) & kOffsetMask;
  put(file, l2 + 8, get(file, l2 + 8) + 512);
  put(file, l2 + 5 * 8, 0);
  const CheckReport report = check(file, Repair::leaks);
  EXPECT_EQ(report.leaks, 1u) << words_of(report);
  EXPECT_EQ(report.orphans_kept, 1u);
}

// A snapshot keeps the entry as it was: what -r all repairs, check finds.
TEST_F(CheckTest, StreamsThatOverlapAreFoundAndRepairedByTheSameOptions) {
  ImageBytes image =
      make("-o cluster_size=64k", "1M", {"write -q -c -P 1 0 64k"},
           {"qemu-img snapshot -c a made", "qemu-io -f qcow2 -c 'write -q -P 2 512k 64k' made"});
  const uint64_t l2 = word(image, word(image, 40)) & kOffsetMask;
  store_be(image, l2, word(image, l2) + (uint64_t{1} << 54));
  MemoryDevice file(*reactor_, image);
  EXPECT_EQ(check(file).corruptions, 0u);
  EXPECT_EQ(check(file, Repair::all).corruptions_fixed, 0u);
  EXPECT_TRUE(file.bytes() == image);
  const Result<CheckReport> found = reactor_->run(check_image(file, {.decode = true}));
  EXPECT_EQ(found->corruptions, 1u);
  EXPECT_NE(
      words_of(*found).find("; the former are those of the disk, the latter those of snapshot 'a'"),
      std::string::npos)
      << words_of(*found);
  const Result<CheckReport> repaired =
      reactor_->run(check_image(file, {.repair = Repair::all, .decode = true}));
  EXPECT_EQ(repaired->corruptions_fixed, 1u) << words_of(*repaired);
  EXPECT_EQ(repaired->corruptions, 0u) << words_of(*repaired);
}

// ---- On a disk that fails, and whose power goes.

class CheckSimTest : public CheckTest {
 protected:
  static SimDisk disk_with(const ImageBytes& image) {
    SimDisk disk;
    disk.put(0, image);
    return disk;
  }
  static ImageBytes bytes_of_disk(const SimDisk& disk) { return disk.read(0, disk.size()); }

  /// A process that checks the disk.  `at_each_step` is called whenever the disk may have changed.
  static Result<CheckReport> check_disk(SimDisk& disk, Repair repair, uint64_t seed,
                                        std::function<void()> at_each_step = nullptr) {
    SimReactor reactor(seed);
    reactor.after_delivery = std::move(at_each_step);
    RawDevice file(std::make_unique<File>(reactor, File::Properties{.name = "disk",
                                                                    .fd = disk.open(reactor, true),
                                                                    .size = disk.size(),
                                                                    .writable = true}),
                   {.growable = true});
    return reactor.finish(check_image(file, {.repair = repair}));
  }

  /// Clusters with fewer counts than references.
  static std::set<std::string> undercounted(const CheckReport& report) {
    std::set<std::string> places;
    for (const Finding& finding : report.findings) {
      const size_t at = finding.text.find(": refcount is ");
      if (finding.severity != Severity::corruption || at == std::string::npos) {
        continue;
      }
      places.insert(finding.text.substr(0, at));
    }
    return places;
  }

  /// Images whose repair takes all the steps there are.
  std::vector<ImageBytes> damaged_images() {
    std::vector<ImageBytes> images;
    // Aliases, counts too small and too large, flags.
    MemoryDevice in_place(*reactor_);
    small_image(in_place, {.size = MiB, .cluster_size = 512}, 30);
    count(in_place, 8, 0);
    count(in_place, 9, 3);
    count(in_place, 60, 1);
    in_place.poke(60 * 512, std::vector<std::byte>(512));
    const uint64_t l2 = get(in_place, get(in_place, 40)) & kOffsetMask;
    put(in_place, l2 + 80, get(in_place, l2 + 80) & ~kCopied);
    images.push_back(in_place.bytes());
    // A refcount structure of which a part is gone.
    MemoryDevice anew(*reactor_);
    small_image(anew, {.size = 64 * MiB, .cluster_size = 512, .refcount_bits = 64}, 20);
    EXPECT_NE(get(anew, get(anew, 48)), 0u);
    const uint64_t table = get(anew, 48);
    const uint64_t end = anew.size();
    EXPECT_LT(end, 64u * 512);
    anew.poke(end, ImageBytes(20 * 512, std::byte{9}));
    const uint64_t anew_l2 = get(anew, get(anew, 40)) & kOffsetMask;
    for (uint64_t i = 0; i < 20; ++i) put(anew, anew_l2 + 8 * (30 + i), (end + i * 512) | kCopied);
    EXPECT_EQ(get(anew, table + 8), 0u);
    for (uint64_t cluster = end / 512; cluster < 64; ++cluster) count(anew, cluster, 1);
    images.push_back(anew.bytes());
    // A dirty one.
    MemoryDevice dirty(*reactor_);
    small_image(dirty, {.size = MiB, .cluster_size = 512}, 30);
    for (uint64_t cluster = 10; cluster < 30; ++cluster) count(dirty, cluster, 0);
    put(dirty, 72, kDirty);
    images.push_back(dirty.bytes());
    return images;
  }
};

TEST_F(CheckSimTest, ARepairThatIsCutShortAnywhereCanBeRunAgain) {
  uint64_t cuts = 0;
  for (const ImageBytes& image : damaged_images()) {
    const Places before(image);
    SimDisk disk = disk_with(image);
    const Result<CheckReport> found = check_disk(disk, Repair::none, 0);
    ASSERT_TRUE(found);
    const std::set<std::string> undercounted_before = undercounted(*found);

    std::vector<SimDisk> left;
    const auto cut = [&] {
      if (disk.log().empty()) return;  // All of it is durable.
      left.push_back(disk.cut(CutChoice::none()));
      left.push_back(disk.cut(CutChoice::all()));
      for (uint64_t seed = 0; seed < 4; ++seed) {
        left.push_back(disk.cut(CutChoice::random(left.size())));
      }
    };
    const Result<CheckReport> whole = check_disk(disk, Repair::all, 1, cut);
    ASSERT_TRUE(whole) << whole.error().message();
    left.push_back(disk);

    for (SimDisk& after : left) {
      SCOPED_TRACE(cat("cut ", ++cuts));
      const Result<CheckReport> halfway = check_disk(after, Repair::none, cuts);
      ASSERT_TRUE(halfway) << halfway.error().message();
      for (const std::string& place : undercounted(*halfway)) {
        ASSERT_TRUE(undercounted_before.contains(place)) << place;
      }
      const Result<CheckReport> report = check_disk(after, Repair::all, cuts);
      ASSERT_TRUE(report) << report.error().message();
      ASSERT_EQ(report->corruptions + report->leaks, 0u) << words_of(*report);
      const ImageBytes repaired = bytes_of_disk(after);
      ASSERT_EQ(word(repaired, 72), 0u);
      ASSERT_TRUE(Places(repaired).entries == before.entries);
    }
  }
  EXPECT_GT(cuts, 80u);
}

// A write that fails ends the repair, and nothing is worse than before.
TEST_F(CheckSimTest, ARepairThatCannotWriteCanBeRunAgain) {
  for (const ImageBytes& image : damaged_images()) {
    for (uint64_t write = 1;; ++write) {
      SCOPED_TRACE(cat("write ", write));
      SimDisk disk = disk_with(image);
      disk.options().faults.add({.kind = Op::Kind::write, .first = write, .last = UINT64_MAX});
      if (check_disk(disk, Repair::all, write)) break;
      disk.options().faults.clear();
      const Result<CheckReport> report = check_disk(disk, Repair::all, write);
      ASSERT_TRUE(report) << report.error().message();
      ASSERT_EQ(report->corruptions + report->leaks, 0u) << words_of(*report);
      ASSERT_LT(write, 100u);
    }
  }
}

// The tables of snapshots and bitmaps are the old ones or the new ones.
TEST_F(CheckSimTest, TablesThatAreMendedAreThereWheneverItIsCutShort) {
  const ImageBytes made =
      make("-o cluster_size=4k", "1M", {"write -q -P 1 0 64k"},
           {"qemu-img snapshot -c a made", "qemu-img bitmap --add made x",
            "qemu-img bitmap --add made y", "qemu-io -f qcow2 -c 'write -q -P 2 0 8k' made"});
  MemoryDevice file(*reactor_, with_snapshots(made, [](std::vector<Snapshot>& snapshots) {
    snapshots[0].extra_data.clear();
    snapshots[0].icount.reset();
    snapshots[0].disk_size.reset();
  }));
  change_bitmaps(file, *reactor_,
                 [](std::vector<Bitmap>& bitmaps) { bitmaps[0].granularity_bits = 40; });
  const ImageBytes image = file.bytes();
  const Places before(image);
  SimDisk disk = disk_with(image);
  std::vector<SimDisk> left;
  const auto cut = [&] {
    if (disk.log().empty()) return;
    left.push_back(disk.cut(CutChoice::none()));
    left.push_back(disk.cut(CutChoice::all()));
    for (uint64_t seed = 0; seed < 4; ++seed) {
      left.push_back(disk.cut(CutChoice::random(left.size())));
    }
  };
  ASSERT_TRUE(check_disk(disk, Repair::all, 1, cut));
  left.push_back(disk);
  EXPECT_GT(left.size(), 20u);
  for (SimDisk& after : left) {
    const Result<CheckReport> halfway = check_disk(after, Repair::none, 1);
    ASSERT_TRUE(halfway) << halfway.error().message();
    EXPECT_LE(halfway->corruptions, 2u) << words_of(*halfway);
    const Result<CheckReport> report = check_disk(after, Repair::all, 1);
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_EQ(report->corruptions + report->leaks, 0u) << words_of(*report);
    const ImageBytes repaired = bytes_of_disk(after);
    EXPECT_TRUE(Places(repaired).entries == before.entries);
    EXPECT_EQ(load_be<uint32_t>(repaired, 60), 1u);
  }
  EXPECT_EQ(qemu_counts(bytes_of_disk(disk)).code, 0);
}

// What cannot be read is no corruption, and nothing is repaired on the strength of the rest.
TEST_F(CheckSimTest, WhatCannotBeReadForbidsRepair) {
  MemoryDevice made(*reactor_);
  small_image(made, {.size = MiB, .cluster_size = 4096}, 8);
  count(made, 8, 0);
  count(made, 30, 1);
  made.poke(30 * 4096, std::vector<std::byte>(4096));
  const ImageBytes image = made.bytes();
  SimDisk sound = disk_with(image);
  ASSERT_TRUE(check_disk(sound, Repair::none, 0));
  uint64_t unreadable = 0;
  for (uint64_t read = 1; read <= sound.operations(Op::Kind::read); ++read) {
    SimDisk disk = disk_with(image);
    disk.options().torn = false;
    disk.options().faults.add({.kind = Op::Kind::read, .first = read, .last = read});
    const Result<CheckReport> report = check_disk(disk, Repair::all, read);
    if (!report) {
      EXPECT_EQ(report.error().code(), Errc::io);
      continue;
    }
    if (report->check_errors == 0) continue;
    ++unreadable;
    EXPECT_TRUE(bytes_of_disk(disk) == image) << words_of(*report);
  }
  EXPECT_GT(unreadable, 0u);
}

}  // namespace
}  // namespace byre
