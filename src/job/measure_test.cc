// SPDX-License-Identifier: Apache-2.0
#include "job/measure.h"

#include <gtest/gtest.h>

#include "base/prng.h"
#include "block/memory.h"
#include "sim/sim_gate.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

class MeasureTest : public testing::TestWithParam<int> {
 protected:
  MeasureTest()
      : reactor_(static_cast<uint64_t>(GetParam())), prng_(static_cast<uint64_t>(GetParam())) {}

  MeasureTarget target(uint64_t size) {
    MeasureTarget target{.format = DiskFormat::qcow2, .image = {}};
    target.image.size = size;
    target.image.cluster_size = 512u << prng_.below(8);
    target.image.refcount_bits = 1u << prng_.below(7);
    target.image.extended_l2 = target.image.cluster_size >= 16 * KiB && prng_.one_in(2);
    return target;
  }

  /// A disk with some pages of data.
  Disk disk(uint64_t size) {
    auto memory = std::make_unique<MemoryDevice>(reactor_, size);
    const std::vector<std::byte> page(4 * KiB, std::byte(1));
    for (uint64_t runs = prng_.below(20); runs > 0; --runs) {
      uint64_t at = prng_.below(size / page.size()) * page.size();
      for (uint64_t pages = prng_.below(60); pages > 0 && at + page.size() <= size; --pages) {
        memory->poke(at, page);
        at += page.size();
      }
    }
    Disk disk;
    disk.device = std::move(memory);
    return disk;
  }
  uint64_t exact(const MeasureTarget& target, const Disk& source, bool read_data) {
    Progress progress;
    const auto size = reactor_.run(
        exact_size(target, &source, opener_, reactor_, {.read_data = read_data}, progress));
    EXPECT_TRUE(size && *size);
    return size && *size ? (*size)->file : 0;
  }

  SimReactor reactor_;
  Prng prng_;
  SimDisks disks_;
  SimGate opener_{reactor_, disks_};
};
INSTANTIATE_TEST_SUITE_P(Seeds, MeasureTest, testing::Range(1, 41));

TEST_P(MeasureTest, TheSumAndTheConversionAgree) {
  const uint64_t size = prng_.between(1, 4000) * 4 * KiB;
  const Disk source = disk(size);
  const MeasureTarget made = target(size);
  const uint64_t by_map = exact(made, source, false);
  EXPECT_EQ(by_map, exact(made, source, true));
  Progress progress;
  const Result<FileSizes> bound = reactor_.run(bound_of(made, &source, progress));
  ASSERT_TRUE(bound);
  // Where the refcount table had to grow, its old clusters are holes that no sum counts.
  const uint64_t grown = 64 * made.image.cluster_size;
  EXPECT_LE(by_map, bound->required + (made.image.cluster_size < 4 * KiB ? grown : 0));
  EXPECT_LE(bound->required, bound->fully_allocated);
}

TEST_P(MeasureTest, ZerosAmongTheDataAreLeftOutWhereTheyAreLookedFor) {
  auto memory = std::make_unique<MemoryDevice>(reactor_, MiB);
  // A page that is there, and is zeros.
  memory->poke(0, std::vector<std::byte>(4 * KiB, std::byte(1)));
  memory->poke(512 * KiB, std::vector<std::byte>(4 * KiB, std::byte(1)));
  memory->poke(512 * KiB, std::vector<std::byte>(4 * KiB));
  Disk source;
  source.device = std::move(memory);
  MeasureTarget made{.format = DiskFormat::qcow2, .image = {}};
  made.image.size = MiB;
  EXPECT_EQ(exact(made, source, false), exact(made, source, true) + 64 * KiB);
}

TEST(MetadataSize, CountsTheRefcountsOfThemselves) {
  const auto size = [](uint64_t bytes, uint64_t cluster) {
    CreateOptions image;
    image.size = bytes;
    image.cluster_size = cluster;
    return metadata_size(image);
  };
  // Header, refcount table, refcount block; then an L1 and an L2 table.
  EXPECT_EQ(*size(0, 64 * KiB), 3 * 64 * KiB);
  EXPECT_EQ(*size(MiB, 64 * KiB), 5 * 64 * KiB);
  EXPECT_FALSE(size(uint64_t{1} << 60, 64 * KiB));
}

}  // namespace
}  // namespace byre
