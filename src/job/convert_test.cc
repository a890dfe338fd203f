// SPDX-License-Identifier: Apache-2.0
#include "job/convert.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/prng.h"
#include "block/filter.h"
#include "block/memory.h"
#include "block/raw.h"
#include "io/copy_range.h"
#include "io/io_testing.h"
#include "qcow2/image.h"
#include "qcow2/ops/create.h"
#include "sim/sim_gate.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

using Data = std::vector<std::byte>;

/// `size` bytes: runs of noise, zeros and holes, of lengths that fit nothing.
Data patchwork(Prng& prng, uint64_t size) {
  Data data(size);
  for (uint64_t at = 0; at < size;) {
    const uint64_t length = std::min(size - at, prng.between(1, 1 << prng.between(1, 18)));
    if (prng.one_in(2)) {
      for (uint64_t i = 0; i < length; ++i) data[at + i] = std::byte(prng.next() | 1);
    }
    at += length;
  }
  return data;
}

/// Counts and remembers what passes.
class Watched final : public Filter {
 public:
  using Filter::Filter;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    writes.push_back(offset);
    written += data.size();
    all_fua = all_fua && options.fua;
    running_max = std::max(running_max, ++running);
    if (options.compressed) {
      ++compressed;
      EXPECT_EQ(offset % preferred_size(), 0u);
      EXPECT_TRUE(data.size() % preferred_size() == 0 || offset + data.size() == size());
      options.compressed = false;
    }
    const Result<void> done = co_await below().write(offset, data, options).result();
    --running;
    if (!done) co_await fail(done.error().copy());
  }
  BYRE_CORO_WRAPPER Task<void> read(uint64_t offset, MutableBytes data,
                                    ReadOptions options) override {
    read_bytes += data.size();
    return below().read(offset, data, options);
  }
  Task<void> flush(IoTag tag) override {
    ++flushes;
    co_await below().flush(tag);
  }
  std::vector<uint64_t> writes;
  uint64_t written = 0;
  uint64_t read_bytes = 0;
  uint64_t flushes = 0;
  uint64_t compressed = 0;
  unsigned running = 0;
  unsigned running_max = 0;
  bool all_fua = true;
};

/// Simulated files, read and written with delays.
class ConvertTest : public testing::TestWithParam<int> {
 protected:
  ConvertTest()
      : reactor_(static_cast<uint64_t>(GetParam())), prng_(static_cast<uint64_t>(GetParam())) {}

  std::unique_ptr<Device> disk(const std::string& name, const Data& contents,
                               bool growable = false) {
    disks_[name].put(0, contents);
    return open(name, growable);
  }
  std::unique_ptr<Device> open(const std::string& name, bool growable) {
    Result<std::unique_ptr<File>> file = opener_.open(name, {.writable = true});
    EXPECT_TRUE(file);
    return std::make_unique<RawDevice>(*std::move(file), RawOptions{.growable = growable});
  }
  Watched watched(const std::string& name, const Data& contents) {
    return Watched(disk(name, contents, true));
  }
  Data contents(const std::string& name) { return disks_[name].read(0, disks_[name].size()); }

  SimReactor reactor_;
  Prng prng_;
  SimDisks disks_;
  SimGate opener_{reactor_, disks_};
};
INSTANTIATE_TEST_SUITE_P(Seeds, ConvertTest, testing::Range(1, 13));

ConvertOptions small(Prng& prng) {
  ConvertOptions options;
  options.request_size = 64 * KiB << prng.below(3);
  options.requests_max = static_cast<unsigned>(prng.between(1, 16));
  options.in_order = prng.one_in(2);
  options.sparse_size = prng.one_in(4) ? 0 : 512u << prng.below(5);
  return options;
}

TEST_P(ConvertTest, ANewTargetHoldsWhatTheSourcesDo) {
  const Data a = patchwork(prng_, prng_.between(1, 3 * MiB));
  const Data b = patchwork(prng_, prng_.between(1, MiB));
  auto first = disk("a", a);
  auto second = disk("b", b);
  Watched target = watched("target", {});
  ConvertOptions options = small(prng_);
  options.target_reads_zero = true;
  Convert job({first.get(), second.get()}, target, options);
  ASSERT_TRUE(reactor_.run(target.resize(job.total())));
  ASSERT_TRUE(reactor_.run(job.run()));

  Data expected = a;
  expected.resize(round_up(a.size(), kSectorSize));
  expected.insert(expected.end(), b.begin(), b.end());
  expected.resize(round_up(expected.size(), kSectorSize));
  EXPECT_EQ(job.total(), expected.size());
  EXPECT_EQ(contents("target"), expected);
  EXPECT_EQ(job.done(), job.total());
  EXPECT_EQ(target.flushes, 1u);
  EXPECT_LE(target.running_max, options.requests_max);
  if (options.sparse_size == 0) EXPECT_EQ(target.written, job.total());
}

// Extents, holes and sources end where they like; compressed writes are whole all the same.
TEST_P(ConvertTest, CompressedWritesAreWhole) {
  const Data a = patchwork(prng_, prng_.between(1, MiB));
  const Data b = patchwork(prng_, prng_.between(1, MiB));
  auto first = disk("a", a);
  auto second = disk("b", b);
  Data before = patchwork(prng_, prng_.one_in(2) ? 0 : 3 * MiB);
  Watched target = watched("target", before);
  ConvertOptions options = small(prng_);
  options.compressed = true;
  Convert job({first.get(), second.get()}, target, options);
  if (before.empty()) {
    ASSERT_TRUE(reactor_.run(target.resize(job.total())));
  }
  ASSERT_TRUE(reactor_.run(job.run()));
  Data expected = a;
  expected.resize(round_up(a.size(), kSectorSize));
  expected.insert(expected.end(), b.begin(), b.end());
  expected.resize(std::max<size_t>(before.size(), job.total()));
  EXPECT_EQ(contents("target"), expected);
  EXPECT_GT(target.compressed, 0u);
}

TEST_P(ConvertTest, WhatTheTargetHeldIsGone) {
  const Data a = patchwork(prng_, prng_.between(1, 2 * MiB));
  auto source = disk("a", a);
  Data before = patchwork(prng_, round_up(a.size(), kSectorSize) + prng_.between(0, MiB));
  for (std::byte& byte : before) byte |= std::byte{1};
  Watched target = watched("target", before);
  Convert job({source.get()}, target, small(prng_));
  ASSERT_TRUE(reactor_.run(job.run()));
  Data expected = a;
  expected.resize(before.size());
  EXPECT_EQ(contents("target"), expected);
}

TEST_P(ConvertTest, WritesAreIssuedInTheOrderOfTheDisk) {
  Data a(4 * MiB, std::byte{7});
  auto source = disk("a", a);
  Watched target = watched("target", {});
  Convert job({source.get()}, target, {.target_reads_zero = true, .request_size = 64 * KiB});
  ASSERT_TRUE(reactor_.run(target.resize(job.total())));
  ASSERT_TRUE(reactor_.run(job.run()));
  EXPECT_EQ(target.writes.size(), 64u);
  EXPECT_TRUE(std::is_sorted(target.writes.begin(), target.writes.end()));
  EXPECT_GT(target.running_max, 1u) << "yet they overlap";
}

TEST_P(ConvertTest, AFailedReadOrWriteEndsIt) {
  const Data a = patchwork(prng_, 2 * MiB);
  for (const char* broken : {"a", "target"}) {
    auto source = disk("a", a);
    Watched target = watched("target", {});
    const Op::Kind kind = std::string_view(broken) == "a" ? Op::Kind::read : Op::Kind::write;
    FaultPlan& faults = disks_[broken].options().faults;
    const uint64_t number = faults.count(kind) + prng_.between(1, 4);
    faults.add({.kind = kind, .first = number, .last = number});
    ConvertOptions options = small(prng_);
    options.request_size = 64 * KiB;
    options.target_reads_zero = true;
    Convert job({source.get()}, target, options);
    ASSERT_TRUE(reactor_.run(target.resize(job.total())));
    const Result<void> done = reactor_.run(job.run());
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code(), Errc::io) << done.error().message();
    EXPECT_EQ(target.running, 0u);
    disks_.clear();
  }
}

TEST_P(ConvertTest, StopEndsItSoon) {
  auto source = disk("a", Data(8 * MiB, std::byte{1}));
  Watched target = watched("target", {});
  ConvertOptions options = small(prng_);
  options.request_size = 64 * KiB;
  options.target_reads_zero = true;
  Convert* running = nullptr;
  options.progress = [&](uint64_t done, uint64_t) {
    if (done > MiB) running->stop();
  };
  Convert job({source.get()}, target, options);
  running = &job;
  ASSERT_TRUE(reactor_.run(target.resize(job.total())));
  const Result<void> done = reactor_.run(job.run());
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code(), Errc::cancelled);
  EXPECT_LT(job.done(), 4 * MiB);
  EXPECT_EQ(job.waiting_for(), "");
  EXPECT_EQ(target.flushes, 0u);
}

TEST_P(ConvertTest, WriteThroughMeansEveryWrite) {
  auto source = disk("a", patchwork(prng_, MiB));
  Watched target = watched("target", {});
  Convert job({source.get()}, target, {.target_reads_zero = true, .fua = true});
  ASSERT_TRUE(reactor_.run(target.resize(job.total())));
  ASSERT_TRUE(reactor_.run(job.run()));
  EXPECT_TRUE(target.all_fua);
}

struct Shape {
  const char* name;
  uint64_t cluster_size;
  bool compressed;
  bool extended = false;
  bool backed = false;
};

/// The file of an image that `source` was converted into while everything took as long, and went on
/// in such an order, as `seed` says.
Data image_of(const Data& source, const Shape& shape, int seed) {
  SimReactor reactor(static_cast<uint64_t>(seed));
  SimDisks disks;
  SimGate opener(reactor, disks);
  disks["source"].put(0, source);
  const auto open = [&](const char* name) {
    return std::make_unique<RawDevice>(*opener.open(name, {.writable = true}),
                                       RawOptions{.growable = true});
  };
  disks["target"].put(0, {});
  const auto from = open("source");
  CreateOptions create{
      .size = source.size(), .cluster_size = shape.cluster_size, .extended_l2 = shape.extended};
  if (shape.backed) create.backing_file = "backing";
  if (shape.backed) create.backing_format = "raw";
  disks["backing"].put(0, Data(shape.backed ? source.size() / 2 : 0, std::byte{9}));
  auto file = open("target");
  EXPECT_TRUE(reactor.run(create_image(*file, create)));
  auto image = reactor.run(Image::open_over(std::move(file), opener,
                                            {.writable = true,
                                             .allocate_in_order = true,
                                             .reuse_freed = false,
                                             .scan = ImageOptions::Scan::never}));
  EXPECT_TRUE(image) << image.error().message();
  Convert job({from.get()}, **image,
              {.target_reads_zero = !shape.backed,
               .compressed = shape.compressed,
               .request_size = std::max<uint64_t>(256 * KiB, shape.cluster_size)});
  const Result<void> done = reactor.run(job.run());
  EXPECT_TRUE(done) << done.error().message();
  EXPECT_TRUE(reactor.run((*image)->close()));
  return disks["target"].read(0, disks["target"].size());
}

// However long requests take, and whoever goes on first, the file is the same to the byte.
TEST(Convert, TheSameInputGivesTheSameBytes) {
  Prng prng(7);
  Data source = patchwork(prng, 4 * MiB);
  // Text that compresses, beside noise that does not.
  for (uint64_t at = 1 * MiB; at < 3 * MiB; ++at) {
    if (at % (192 * KiB) < 128 * KiB) source[at] = static_cast<std::byte>('a' + at / 7 % 11);
  }
  for (const Shape& shape :
       {Shape{"plain", 64 * KiB, false}, Shape{"512", 512, false},
        Shape{"extended", 16 * KiB, false, true}, Shape{"backed", 64 * KiB, false, false, true},
        Shape{"streams", 64 * KiB, true}, Shape{"streams 512", 512, true},
        Shape{"streams 4k", 4 * KiB, true}, Shape{"streams backed", 64 * KiB, true, false, true}}) {
    SCOPED_TRACE(shape.name);
    const Data first = image_of(source, shape, 1);
    for (int seed = 2; seed <= 8; ++seed) {
      ASSERT_TRUE(image_of(source, shape, seed) == first) << "seed " << seed;
    }
  }
}

TEST(Convert, ZerosAreNeitherReadNorWritten) {
  SimReactor reactor(1);
  auto memory = std::make_unique<MemoryDevice>(reactor, uint64_t{1} << 40);
  const Data data(5000, std::byte{1});
  memory->poke(3 * GiB + 100, data);
  Watched source(std::move(memory));
  auto below = std::make_unique<MemoryDevice>(reactor);
  MemoryDevice& bytes = *below;
  Watched target(std::move(below));
  Convert job({&source}, target, {.target_reads_zero = true});
  ASSERT_TRUE(reactor.run(target.resize(job.total())));
  ASSERT_TRUE(reactor.run(job.run()));
  Data copied(5000);
  bytes.peek(3 * GiB + 100, copied);
  EXPECT_EQ(copied, data);
  EXPECT_LE(target.written, 8192u);
  EXPECT_LE(source.read_bytes, 8192u);
}

TEST(Convert, AFixedTargetMustBeLargeEnough) {
  SimReactor reactor(1);
  MemoryDevice source(reactor, 4096);
  MemoryDevice target(reactor, 2048);
  target.fixed = true;
  Convert job({&source}, target, {});
  EXPECT_EQ(reactor.run(job.run()).error().code(), Errc::no_space);
}

TEST(Convert, NothingIsDoneForNothing) {
  SimReactor reactor(1);
  MemoryDevice source(reactor);
  MemoryDevice target(reactor);
  Convert job({&source}, target, {});
  EXPECT_TRUE(reactor.run(job.run()));
  EXPECT_EQ(job.total(), 0u);
}

// Of what the kernel has copied nothing is written here; holes stay holes.
TEST(ConvertOnHost, TheKernelCopiesFromFileToFile) {
  const TemporaryFolder folder;
  Result<std::unique_ptr<Reactor>> reactor = make_reactor();
  ASSERT_TRUE(reactor);
  const auto open = [&](const std::string& name) {
    return *File::open(**reactor, folder / name, {.writable = true, .create = true});
  };
  const std::vector<std::byte> data = noise(1 * MiB);
  auto from = std::make_unique<RawDevice>(open("from"), RawOptions{.growable = true});
  ASSERT_TRUE((*reactor)->run(from->write(1 * MiB, data, {})));
  ASSERT_TRUE((*reactor)->run(from->resize(3 * MiB)));
  auto raw = std::make_unique<RawDevice>(open("to"), RawOptions{.growable = true});
  File* const to = &raw->file();
  if (!*(*reactor)->run(copy_range({from->file(), MiB}, {*to, MiB}, 512))) {
    GTEST_SKIP() << "not on this system";
  }
  ASSERT_TRUE((*reactor)->run(raw->resize(0)));
  for (const bool known : {true, false}) {
    Watched target(Child::to(*raw));
    Convert job({from.get()}, target,
                {.target_reads_zero = true,
                 .on_host = ConvertOptions::OnHost{.sources = {&from->file()},
                                                   .target = known ? to : nullptr}});
    const Result<void> done = (*reactor)->run(job.run());
    ASSERT_TRUE(done) << done.error().message();
    EXPECT_TRUE(job.wrote());
    EXPECT_EQ(target.written, known ? 0 : MiB);
    std::vector<std::byte> copied(1 * MiB);
    ASSERT_TRUE((*reactor)->run(to->read(MiB, copied)));
    EXPECT_EQ(copied, data);
    target.abandon();
  }
  raw->abandon();
  from->abandon();
}

}  // namespace
}  // namespace byre
