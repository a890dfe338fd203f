// SPDX-License-Identifier: Apache-2.0
#include "cli/io_shell.h"

#include <gtest/gtest.h>

#include "block/raw.h"
#include "qcow2/ops/create.h"
#include "sim/sim_gate.h"

namespace byre {
namespace {

/// A shell on simulated disks: "disk" is an empty image of 1 MiB, "raw" 64 KiB of zeros.
class Simulated {
 public:
  explicit Simulated(uint64_t seed) : reactor(seed), opener(reactor, disks) {
    disks["raw"].set_size(64 * KiB);
    Result<std::unique_ptr<File>> file = opener.open("disk", {.writable = true, .create = true});
    EXPECT_TRUE(file);
    RawDevice device(*std::move(file), {.growable = true});
    const Result<void> created = reactor.finish(create_image(device, {.size = 1 * MiB}));
    EXPECT_TRUE(created);
  }

  /// Opens `file` and plays `lines`; what was printed, without speeds.
  std::string play(IoOpen file, const std::vector<std::string>& lines) {
    std::string printed;
    IoShell shell(reactor, opener,
                  {.program = "tool",
                   .out = [&](std::string_view text) { printed += without_speeds(text); },
                   .err = [&](std::string_view text) { printed += text; }});
    const Result<void> played = reactor.finish(run(shell, std::move(file), lines));
    if (!played) printed += cat("\nstopped: ", played.error().message());
    failed = shell.failed();
    return printed;
  }

  SimReactor reactor;
  SimDisks disks;
  SimGate opener;
  bool failed = false;

 private:
  /// The first line of a report says it all here.
  static std::string without_speeds(std::string_view text) {
    const size_t second = text.find(" bytes at offset ");
    const bool report = second != std::string_view::npos && text.find(" ops/sec)") < text.size();
    return std::string(report ? text.substr(0, text.find('\n') + 1) : text);
  }
  static Task<void> run(IoShell& shell, IoOpen file, const std::vector<std::string>& lines) {
    if (co_await shell.open(std::move(file))) {
      for (const std::string& line : lines) {
        co_await shell.run(line);
        if (shell.quit()) break;
      }
    }
    co_await shell.finish();
  }
};

const IoOpen kImage{.path = "disk", .format = "qcow2"};
const IoOpen kFaults{.path = "blkdebug::disk", .format = "qcow2"};

TEST(IoShell, WritesAndReads) {
  Simulated sim(1);
  EXPECT_EQ(
      sim.play(kImage, {"write -P 1 0 64k", "read -P 1 0 64k", "read -P 0 64k 64k", "length"}),
      "wrote 65536/65536 bytes at offset 0\n"
      "read 65536/65536 bytes at offset 0\n"
      "read 65536/65536 bytes at offset 65536\n"
      "1 MiB\n");
  EXPECT_FALSE(sim.failed);
}

TEST(IoShell, AWrongPatternFailsTheCommandButNotInTheBackground) {
  Simulated sim(1);
  const std::string wrong =
      "Pattern verification failed at offset 0, 512 bytes\n"
      "read 512/512 bytes at offset 0\n";
  EXPECT_EQ(sim.play(kImage, {"read -P 1 0 512"}), wrong);
  EXPECT_TRUE(sim.failed);
  EXPECT_EQ(sim.play(kImage, {"aio_read -P 1 0 512", "aio_flush"}), wrong);
  EXPECT_FALSE(sim.failed);
}

TEST(IoShell, NothingPassesTheEnd) {
  Simulated sim(1);
  EXPECT_EQ(sim.play(kImage, {"read 1M 1", "write 1M 1", "discard 1048575 2", "aio_write 2M 1",
                              "aio_read 2M 1", "aio_discard 2M 1", "write -z 1M 1", "read 1M 0"}),
            "read failed: Input/output error\n"
            "write failed: Input/output error\n"
            "discard failed: Input/output error\n"
            "aio_write failed: Input/output error\n"
            "readv failed: Input/output error\n"
            "aio_discard failed: Input/output error\n"
            "write failed: Input/output error\n"
            "read 0/0 bytes at offset 1048576\n");
}

TEST(IoShell, CloseLetsGoWhatABreakpointHolds) {
  Simulated sim(1);
  EXPECT_EQ(sim.play(kFaults, {"break write_aio A", "aio_write 0 64k", "wait_break A",
                               "break flush_to_disk B", "close", "length"}),
            "blkdebug: Suspended request 'A'\n"
            "blkdebug: Resuming request 'A'\n"
            "wrote 65536/65536 bytes at offset 0\n"
            "no file open, try 'help open'\n");
}

TEST(IoShell, BreakpointsNeedAFilter) {
  Simulated sim(1);
  EXPECT_EQ(sim.play(kImage, {"break write_aio A", "wait_break A", "resume A", "remove_break A"}),
            "Could not set breakpoint: Operation not supported\n"
            "Could not wait for breakpoint A: Operation not supported\n"
            "Could not resume request: Operation not supported\n"
            "Could not remove breakpoint A: Operation not supported\n");
  EXPECT_EQ(sim.play(kFaults, {"break nonesuch A", "wait_break A", "resume A", "remove_break A"}),
            "Could not set breakpoint: No such file or directory\n"
            "Could not wait for breakpoint A: No such file or directory\n"
            "Could not resume request: No such file or directory\n"
            "Could not remove breakpoint A: No such file or directory\n");
}

TEST(IoShell, AFilterWhoseConfigurationIsBadLeavesNothingOpen) {
  Simulated sim(1);
  const IoOpen open{
      .path = "driver=blkdebug,config=raw,image.driver=qcow2,image.file.filename=disk",
      .image_opts = true};
  EXPECT_EQ(sim.play(open, {}),
            "tool: can't open: Could not parse blkdebug config file: line 1 is neither a section "
            "nor a setting of one\n");
  EXPECT_TRUE(sim.failed);
}

TEST(IoShell, ARawDiskThatWasGuessedBehindAFilterStaysRaw) {
  Simulated sim(1);
  EXPECT_EQ(sim.play({.path = "blkdebug::raw"}, {"length", "write -q 0 512"}), "64 KiB\n");
  EXPECT_EQ(sim.play({.path = "blkdebug::raw", .read_only = true}, {"length"}), "64 KiB\n");
  EXPECT_EQ(sim.play({.path = "blkdebug::disk"}, {"length"}), "1 MiB\n");
}

TEST(IoShell, ReopeningChangesTheRightToWrite) {
  Simulated sim(1);
  EXPECT_EQ(
      sim.play(kImage, {"write -q -P 1 0 64k", "reopen -r", "write 0 512", "read -q -P 1 0 64k",
                        "reopen -w", "write -q -P 2 0 512", "read -q -P 2 0 512"}),
      "tool: Block node is read-only\n");
  const IoOpen reader{.path = "disk", .format = "qcow2", .read_only = true};
  EXPECT_EQ(sim.play(reader, {"reopen -o read-only=off", "write -q -P 3 0 512", "reopen -r",
                              "read -q -P 3 0 512"}),
            "");
}

// Whatever it refuses, the disk is open as it was.
TEST(IoShell, WhatReopenRefusesChangesNothing) {
  for (const auto& [line, why] : std::initializer_list<std::pair<std::string, std::string>>{
           {"reopen -r -o read-only=on", "Cannot set both -r/-w and 'read-only'"},
           {"reopen -c none -o cache.direct=on", "Cannot set both -c and the cache options"},
           {"reopen -o driver=raw", "Cannot change the option 'driver'"},
           {"reopen -o lazy-refcounts=on,x=1", "Cannot change the option 'x'"},
           // Only opening it finds these.
           {"reopen -o file.read-only=on", "Block node is read-only"},
           {"reopen -o detect-zeroes=unmap,discard=ignore",
            "setting detect-zeroes to unmap is not allowed without setting discard operation to "
            "unmap"}}) {
    Simulated sim(1);
    const std::string printed =
        sim.play(kImage, {"write -q -P 1 0 64k", line, "write -q -P 2 64k 64k",
                          "read -q -P 1 0 64k", "read -q -P 2 64k 64k", "length"});
    EXPECT_TRUE(printed.starts_with("tool: ")) << line << printed;
    EXPECT_NE(printed.find(why), std::string::npos) << line << printed;
    EXPECT_TRUE(printed.ends_with("\n1 MiB\n")) << line << printed;
    EXPECT_TRUE(sim.failed);
  }
}

TEST(IoShell, ARawDiskIsReopenedAsAPartOfItsFile) {
  Simulated sim(1);
  EXPECT_EQ(
      sim.play({.path = "raw", .format = "raw"},
               {"write -q -P 1 4k 4k", "reopen -o offset=4k,size=8k", "length", "read -q -P 1 0 4k",
                "reopen -o size=1M", "length", "reopen -o offset=0", "read -q -P 1 4k 4k"}),
      "8 KiB\n"
      "tool: The sum of offset (4096) and size (1048576) has to be smaller or equal to the  "
      "actual size of the containing file (65536)\n"
      "8 KiB\n");
}

// A guess stays one: the disk that was opened for reading is guarded once it is written.
TEST(IoShell, ARawDiskThatWasGuessedIsGuardedAfterReopen) {
  Simulated sim(1);
  EXPECT_EQ(sim.play({.path = "raw", .read_only = true}, {"reopen -w", "write -q 512 512"}), "");
  sim.disks["magic"].set_size(512);
  EXPECT_EQ(sim.play({.path = "magic", .format = "raw"},
                     {"write -q -P 0x51 0 1", "write -q -P 0x46 1 1", "write -q -P 0x49 2 1"}),
            "");
  EXPECT_NE(sim.play({.path = "magic", .read_only = true}, {"reopen -w", "write -q -P 0xfb 3 1"}),
            "");
}

// In many orders: what was begun before it ends before it, and what a breakpoint held goes on.
TEST(IoShell, ReopenWaitsForWhatIsUnderWay) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    Simulated sim(seed);
    EXPECT_EQ(sim.play(kImage, {"aio_write -q -P 1 0 128k", "aio_write -q -P 2 64k 64k",
                                "aio_discard -q 256k 64k", "reopen -r", "read -q -P 1 0 64k",
                                "write 0 1", "reopen -w", "aio_write -q -P 3 0 64k",
                                "reopen -o lazy-refcounts=on", "read -q -P 3 0 64k"}),
              "tool: Block node is read-only\n")
        << "seed " << seed;
    EXPECT_EQ(sim.play(kFaults, {"break write_aio A", "aio_write -q -P 4 0 64k", "wait_break A",
                                 "reopen -r", "read -q -P 4 0 64k"}),
              "blkdebug: Suspended request 'A'\n"
              "blkdebug: Resuming request 'A'\n")
        << "seed " << seed;
    EXPECT_FALSE(sim.failed) << "seed " << seed;
  }
}

TEST(IoShell, BreakpointsAndSpentRulesOutliveReopen) {
  Simulated sim(1);
  EXPECT_EQ(sim.play(kFaults, {"write -q 0 64k", "break read_aio A", "reopen -r",
                               "aio_read -q 0 512", "wait_break A", "resume A", "aio_flush"}),
            "blkdebug: Suspended request 'A'\n"
            "blkdebug: Resuming request 'A'\n");
  const IoOpen once{.path =
                        "driver=qcow2,file.driver=blkdebug,file.inject-error.0.event=read_aio,"
                        "file.inject-error.0.once=on,file.image.filename=disk",
                    .image_opts = true};
  EXPECT_EQ(sim.play(once, {"read -q 0 512", "reopen -r", "read -q 0 512"}),
            "read failed: Input/output error\n");
}

TEST(IoShell, NoDeviceHasZones) {
  Simulated sim(1);
  EXPECT_EQ(sim.play(kImage, {"zone_report 0 1", "zone_open 0 1", "zone_close 512k 1M",
                              "zone_append 9M 512 512"}),
            "zone report failed: Operation not supported\n"
            "zone open failed: Operation not supported\n"
            "zone close failed: Input/output error\n"
            "zone append failed: Operation not supported\n");
  EXPECT_TRUE(sim.failed);
}

// The races of tests/interop/sessions_test.py, in many orders of what is left to chance.
TEST(IoShell, RacesWithDiscardAndReuse) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    Simulated sim(seed);
    const std::string in_place =
        sim.play(kFaults, {"write -q -P 1 0 64k", "break write_aio A", "aio_write -q -P 2 0 64k",
                           "wait_break A", "aio_discard -q 0 64k", "write -q -P 3 128k 64k",
                           "resume A", "aio_flush", "read -q -P 3 128k 64k", "read -q -P 0 0 64k"});
    EXPECT_EQ(in_place,
              "blkdebug: Suspended request 'A'\n"
              "blkdebug: Resuming request 'A'\n")
        << "seed " << seed;
    EXPECT_FALSE(sim.failed) << "seed " << seed;

    const std::string read =
        sim.play(kFaults, {"write -q -P 1 0 64k", "break read_aio A", "aio_read -q -P 1 0 64k",
                           "wait_break A", "discard -q 0 64k", "write -q -P 4 256k 64k", "resume A",
                           "aio_flush", "read -q -P 4 256k 64k", "read -q -P 0 0 64k"});
    EXPECT_EQ(read,
              "blkdebug: Suspended request 'A'\n"
              "blkdebug: Resuming request 'A'\n")
        << "seed " << seed;
    EXPECT_FALSE(sim.failed) << "seed " << seed;
  }
}

}  // namespace
}  // namespace byre
