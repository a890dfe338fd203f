// SPDX-License-Identifier: Apache-2.0
/// Images grown past many refcount-block boundaries (docs/engine.md, A1): every refcount block
/// counts itself, and the real qemu-img check finds neither errors nor leaks.  A writer that
/// forgets one loses a cluster every 2 GiB, and the next one that is handed that cluster destroys
/// the block.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "block/raw.h"
#include "coro/scope.h"
#include "format/refcount.h"
#include "io/io_testing.h"
#include "qcow2/image.h"
#include "qcow2/ops/create.h"
#include "qcow2/repair/check.h"

namespace byre {
namespace {

class Growth : public testing::Test {
 protected:
  /// In memory where there is room: to remove a file of 80,000 pieces takes minutes on a file
  /// system that tells its disk of each.
  static std::filesystem::path parent() {
    std::error_code error;
    const std::filesystem::space_info space = std::filesystem::space("/dev/shm", error);
    const bool room = !error && space.available >= 2 * GiB && access("/dev/shm", W_OK) == 0;
    return room ? "/dev/shm" : std::filesystem::temp_directory_path();
  }
  std::string path() const { return folder_ / "disk.qcow2"; }

  TemporaryFolder folder_{(parent() / "byre-growth-XXXXXX").string()};
  std::unique_ptr<Reactor> reactor_ = *make_reactor();
};

/// Writes a sector into each of `count` guest clusters, in several requests side by side.
Task<void> grow(Reactor& reactor, std::string path, CreateOptions create, uint64_t count,
                uint64_t stride) {
  SystemGate opener(reactor, OpenPolicy::nothing);
  {
    RawDevice file(co_await File::open(reactor, path, {.writable = true, .create = true}),
                   {.growable = true});
    co_await create_image(file, create);
    co_await file.close();
  }
  std::unique_ptr<Image> image = co_await Image::open(reactor, opener, path, {.writable = true});
  Scope scope(reactor.ready());
  const std::vector<std::byte> data(512, std::byte{0x5a});
  uint64_t next = 0;
  const auto client = [&]() -> Task<void> {
    while (next < count) co_await image->write(next++ * stride, data, {});
  };
  for (int i = 0; i < 64; ++i) scope.spawn(client());
  Result<void> written = co_await scope.join().result();
  co_await image->close();
  co_await std::move(written);
}

/// Every refcount block has a refcount of 1 for its own cluster.
Task<uint64_t> count_blocks(Reactor& reactor, std::string path) {
  RawDevice file(co_await File::open(reactor, path, {.lock = false}));
  const ImageHeader head = co_await load_image_header(file);
  const Geometry& g = head.geometry;
  const uint64_t entries =
      head.header.refcount_table_clusters * g.refcount_table_entries_per_cluster();
  const std::vector<uint64_t> table = co_await load_table(file, head.header.refcount_table_offset,
                                                          entries, IoTag::refcount_table_load);
  uint64_t blocks = 0;
  for (uint64_t i = 0; i < table.size(); ++i) {
    if (table[i] == 0) continue;
    ++blocks;
    const HostCluster at = g.cluster_of(HostOffset{table[i]});
    const uint64_t counted_by = table[g.refcount_table_index(at)];
    if (counted_by == 0) co_return corrupt("block ", i, " is counted by no block");
    std::vector<std::byte> block(g.cluster_size());
    co_await file.read(counted_by, block, IoTag::refcount_load);
    const uint64_t count = get_refcount(block, g.refcount_block_index(at), g.refcount_order);
    if (count != 1) co_return corrupt("block ", i, " has refcount ", count);
  }
  co_return blocks;
}

void expect_qemu_finds_nothing(const std::string& path) {
  if (std::system("command -v qemu-img >/dev/null") != 0) {
    ASSERT_EQ(std::getenv("CI"), nullptr) << "qemu-img is not installed";
    return;
  }
  const int status = std::system(("qemu-img check -q " + path + " >/dev/null 2>&1").c_str());
  EXPECT_EQ(WEXITSTATUS(status), 0) << "qemu-img check";
}

TEST_F(Growth, PastTwoGibibytesSeveralTimesAt64KiBClusters) {
  // 5 GiB of host clusters, a sector in each: the host file is sparse.
  const CreateOptions create{.size = 8 * GiB};
  Result<void> grown =
      reactor_->run(grow(*reactor_, path(), create, 5 * GiB / (64 * KiB), 64 * KiB));
  ASSERT_TRUE(grown) << grown.error().message();
  const Result<uint64_t> blocks = reactor_->run(count_blocks(*reactor_, path()));
  ASSERT_TRUE(blocks) << blocks.error().message();
  EXPECT_GE(*blocks, 3u);
  expect_qemu_finds_nothing(path());
}

TEST_F(Growth, At512ByteClustersWithEveryRefcountWidth) {
  for (uint32_t bits = 1; bits <= 64; bits *= 2) {
    const CreateOptions create{.size = 64 * MiB, .cluster_size = 512, .refcount_bits = bits};
    std::filesystem::remove(path());
    // 64-bit counts: a block counts 64 clusters, a table cluster 64 blocks, so that the table grows
    // several times.
    Result<void> grown = reactor_->run(grow(*reactor_, path(), create, 20000, 512));
    ASSERT_TRUE(grown) << bits << " bits: " << grown.error().message();
    const Result<uint64_t> blocks = reactor_->run(count_blocks(*reactor_, path()));
    ASSERT_TRUE(blocks) << bits << " bits: " << blocks.error().message();
    EXPECT_GE(*blocks, 20000u * bits / 4096);
    expect_qemu_finds_nothing(path());
  }
}

TEST_F(Growth, AnL1TableThatSpansManyRegions) {
  // 512-byte clusters and 64-bit counts: a region is 32 KiB of file, and this L1 table has 128 KiB.
  const CreateOptions create{.size = 1 * MiB, .cluster_size = 512, .refcount_bits = 64};
  const auto work = [](Reactor& reactor, std::string name, CreateOptions options) -> Task<void> {
    SystemGate opener(reactor, OpenPolicy::nothing);
    co_await grow(reactor, name, options, 100, 512);
    std::unique_ptr<Image> image = co_await Image::open(reactor, opener, name, {.writable = true});
    Result<void> done = co_await image->resize(512 * MiB).result();
    const std::vector<std::byte> data(4096, std::byte{7});
    if (done) done = co_await image->write(512 * MiB - 4096, data, {}).result();
    co_await image->close();
    co_await std::move(done);
  };
  Result<void> done = reactor_->run(work(*reactor_, path(), create));
  ASSERT_TRUE(done) << done.error().message();
  const Result<uint64_t> blocks = reactor_->run(count_blocks(*reactor_, path()));
  ASSERT_TRUE(blocks) << blocks.error().message();
  expect_qemu_finds_nothing(path());
}

}  // namespace
}  // namespace byre
