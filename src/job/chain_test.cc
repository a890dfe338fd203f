// SPDX-License-Identifier: Apache-2.0
#include "job/chain.h"

#include <gtest/gtest.h>

#include "job/create.h"
#include "sim/sim_gate.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

class ChainTest : public testing::Test {
 protected:
  void make(const std::string& name, uint64_t size, const std::string& below = "",
            const std::string& format = "qcow2") {
    CreateDiskOptions options{.format = DiskFormat::qcow2, .replace = true, .sync = false};
    options.image.size = size;
    options.image.backing_file = below;
    if (!below.empty()) options.image.backing_format = format;
    ASSERT_TRUE(reactor_.run(create_disk(reactor_, opener_, name, std::move(options))));
  }
  Result<std::vector<ChainFile>> read(const std::string& name, uint64_t max = 100) {
    return reactor_.run(read_chain(opener_, name, DiskFormat::qcow2, max));
  }
  std::optional<Errc> open(const std::string& name, uint32_t below_max) {
    Result<Disk> disk =
        reactor_.run(open_disk(opener_, name, {.image = {.chain_depth_max = below_max}}));
    if (!disk) return disk.error().code();
    EXPECT_TRUE(reactor_.run(disk->device.close()));
    return std::nullopt;
  }

  SimReactor reactor_{1};
  SimDisks disks_;
  SimGate opener_{reactor_, disks_};
};

TEST_F(ChainTest, TopFirstWithTheSizeOfEachDisk) {
  disks_["raw"] = SimDisk(SimDisk::Options{.size = 1000});
  make("base", MiB, "raw", "raw");
  make("top", 2 * MiB, "base");
  const Result<std::vector<ChainFile>> chain = read("top");
  ASSERT_TRUE(chain) << chain.error().message();
  ASSERT_EQ(chain->size(), 3u);
  EXPECT_EQ((*chain)[0].name, "top");
  EXPECT_EQ((*chain)[0].size, 2 * MiB);
  EXPECT_EQ((*chain)[1].name, "base");
  EXPECT_EQ((*chain)[2].name, "raw");
  EXPECT_EQ((*chain)[2].size, 1024u) << "whole sectors";
  EXPECT_EQ((*chain)[2].format, DiskFormat::raw);
}

TEST_F(ChainTest, TheLimitIsThatOfAnOpen) {
  make("0", MiB);
  for (int i = 1; i <= 5; ++i) make(std::to_string(i), MiB, std::to_string(i - 1));
  EXPECT_TRUE(read("5", 6));
  EXPECT_EQ(read("5", 5).error().code(), Errc::unsupported);
  // What create lets be made, open opens: a new image on a chain of `max` files has `max` below it.
  for (uint32_t max = 1; max <= 5; ++max) {
    EXPECT_TRUE(read(std::to_string(max - 1), max));
    EXPECT_EQ(open(std::to_string(max), max), std::nullopt);
    EXPECT_FALSE(read(std::to_string(max), max));
    if (max < 5) EXPECT_EQ(open(std::to_string(max + 1), max), Errc::unsupported);
  }
}

TEST_F(ChainTest, ACircleIsAFileThatIsThereTwice) {
  make("c", MiB, "a");
  make("b", MiB, "c");
  make("a", MiB, "b");
  EXPECT_EQ(read("a").error().code(), Errc::corrupt);
  EXPECT_NE(read("a").error().message().find("circle"), std::string::npos);
  EXPECT_EQ(open("a", 100), Errc::corrupt);
  make("self", MiB, "self");
  EXPECT_EQ(read("self").error().code(), Errc::corrupt);
  EXPECT_EQ(open("self", 100), Errc::corrupt);
}

TEST_F(ChainTest, AMissingFileIsNamedOnce) {
  make("c", MiB, "none");
  make("b", MiB, "c");
  make("a", MiB, "b");
  EXPECT_EQ(read("a").error().code(), Errc::not_found);
  EXPECT_EQ(read("a").error().message(), "backing file 'none': no disk 'none'");
  Result<Disk> disk = reactor_.run(open_disk(opener_, "a", {}));
  ASSERT_FALSE(disk);
  EXPECT_EQ(disk.error().message(), "open 'a': backing file 'none': no disk 'none'");
}

}  // namespace
}  // namespace byre
