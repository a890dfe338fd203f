// SPDX-License-Identifier: Apache-2.0
#include "cli/io_commands.h"

#include <gtest/gtest.h>

#include <array>

namespace byre {
namespace {

constexpr IoContext kWritable{.has_file = true, .writable = true, .program = "tool"};
constexpr IoContext kReadOnly{.has_file = true, .writable = false, .program = "tool"};
constexpr IoContext kNoFile{.has_file = false, .writable = false, .program = "tool"};

template <class Command>
Command parsed(std::string_view line) {
  std::expected<IoCommand, IoComplaint> command = parse_io_command(line, kWritable);
  if (!command) {
    ADD_FAILURE() << line << ": " << command.error().out << command.error().err;
    return {};
  }
  if (!std::holds_alternative<Command>(*command)) {
    ADD_FAILURE() << line << ": another command";
    return {};
  }
  return std::get<Command>(*std::move(command));
}

IoComplaint refused(std::string_view line, const IoContext& context = kWritable) {
  std::expected<IoCommand, IoComplaint> command = parse_io_command(line, context);
  if (!command) return command.error();
  ADD_FAILURE() << line << " is accepted";
  return {};
}
std::string refused_out(std::string_view line) {
  IoComplaint complaint = refused(line);
  EXPECT_EQ(complaint.err, "") << line;
  return complaint.out;
}
std::string refused_err(std::string_view line, const IoContext& context = kWritable) {
  IoComplaint complaint = refused(line, context);
  EXPECT_EQ(complaint.out, "") << line;
  return complaint.err;
}

TEST(IoCommands, AReadSaysWhatToReadAndExpect) {
  const auto read = parsed<IoTransfer>("read -P 0x1f -s 1k -l 2k -qv 64k 1M");
  EXPECT_EQ(read.command, "read");
  EXPECT_FALSE(read.is_write);
  EXPECT_FALSE(read.background);
  EXPECT_EQ(read.offset, 64 * KiB);
  EXPECT_EQ(read.length(), MiB);
  EXPECT_EQ(read.expect, std::byte{0x1f});
  EXPECT_EQ(read.expect_offset, KiB);
  EXPECT_EQ(read.expect_length, 2 * KiB);
  EXPECT_TRUE(read.quiet);
  EXPECT_TRUE(read.dump);
}

TEST(IoCommands, WithoutALengthAPatternReachesToTheEnd) {
  EXPECT_EQ(parsed<IoTransfer>("read -P1 0 512").expect_length, 512u);
  EXPECT_EQ(parsed<IoTransfer>("read -P1 -s 12 0 512").expect_length, 500u);
  EXPECT_EQ(parsed<IoTransfer>("read -P1 -s 512 0 512").expect_length, 0u);
}

TEST(IoCommands, APatternThatPassesTheEndIsRefused) {
  constexpr std::string_view kText = "pattern verification range exceeds end of read data\n";
  EXPECT_EQ(refused_out("read -P1 -s 513 0 512"), kText);
  EXPECT_EQ(refused_out("read -P1 -l 513 0 512"), kText);
  EXPECT_EQ(refused_out("read -P1 -s 500 -l 13 0 512"), kText);
}

TEST(IoCommands, AWriteHasItsFlags) {
  const auto write = parsed<IoTransfer>("write -z -u -n -f 0 4k");
  EXPECT_TRUE(write.is_write && write.zero && write.may_unmap && write.no_fallback && write.fua);
  EXPECT_EQ(parsed<IoTransfer>("write 0 1").fill, std::byte{0xcd});
  EXPECT_EQ(parsed<IoTransfer>("w -P 010 0 1").fill, std::byte{8});
  EXPECT_EQ(parsed<IoTransfer>("write -s file 0 1").source_file, "file");
  EXPECT_TRUE(parsed<IoTransfer>("write -c 0 512").compressed);
  EXPECT_TRUE(parsed<IoTransfer>("aio_write -c 0 512").compressed);
  EXPECT_TRUE(parsed<IoTransfer>("write -b 0 512").vm_state);
  EXPECT_TRUE(parsed<IoTransfer>("aio_write -zu 0 1").background);
}

TEST(IoCommands, OptionsStandAnywhereBeforeTwoDashes) {
  const auto read = parsed<IoTransfer>("read 5 -v 6 -P 3");
  EXPECT_TRUE(read.dump);
  EXPECT_EQ(read.offset, 5u);
  EXPECT_EQ(read.length(), 6u);
  EXPECT_EQ(read.expect, std::byte{3});
  EXPECT_EQ(parsed<IoTransfer>("read -- 5 6").offset, 5u);
  EXPECT_EQ(refused_out("read -- 5 -v").substr(0, 13), "Parsing error");
}

TEST(IoCommands, AVectorIsOneRequestOverItsBuffers) {
  const auto read = parsed<IoTransfer>("readv 512 1k 2k 3");
  EXPECT_EQ(read.lengths, (std::vector<uint64_t>{1024, 2048, 3}));
  EXPECT_EQ(read.length(), 3075u);
  EXPECT_TRUE(parsed<IoTransfer>("aio_read 0 1 2").background);
}

TEST(IoCommands, FlagsThatContradictAreRefused) {
  EXPECT_EQ(refused_out("write -u 0 1"), "-u requires -z to be specified\n");
  EXPECT_EQ(refused_out("write -n 0 1"), "-n requires -z to be specified\n");
  EXPECT_EQ(refused_out("write -c 0 100"), "100 is not a sector-aligned value for 'count'\n");
  EXPECT_EQ(refused_out("write -b 1 512"), "1 is not a sector-aligned value for 'offset'\n");
  EXPECT_EQ(refused_out("write -b -z 0 1"), "-b and -z cannot be specified at the same time\n");
  EXPECT_EQ(refused_out("write -cf 0 1"), "-f and -b or -c cannot be specified at the same time\n");
  for (const char* line : {"write -z -P 1 0 1", "write -z -s f 0 1", "write -P 1 -s f 0 1"}) {
    EXPECT_EQ(refused_out(line), "Only one of -z, -P, and -s can be specified at the same time\n");
  }
  EXPECT_EQ(refused_out("aio_write -z 0 1 2"), "-z supports only a single length parameter\n");
}

TEST(IoCommands, NumbersAreSizes) {
  EXPECT_EQ(parsed<IoTransfer>("read 0.5k 1b").offset, 512u);
  EXPECT_EQ(parsed<IoTransfer>("read 0x200 1").offset, 512u);
  EXPECT_EQ(parsed<IoTransfer>("read +5 1").offset, 5u);
  for (const char* bad : {"64q", "x", "0.3", "1e3", "64kB"}) {
    EXPECT_EQ(refused_out(cat("read ", bad, " 1")),
              cat("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- ", bad,
                  "\n"));
  }
  for (const char* bad : {"16E", "8E", "9999999999999999999"}) {
    EXPECT_EQ(refused_out(cat("read ", bad, " 1")),
              cat("Parsing error: argument too large -- ", bad, "\n"));
  }
}

TEST(IoCommands, TooLongIsSaid) {
  EXPECT_EQ(parsed<IoTransfer>("read 0 2147483136").length(), 2147483136u);
  EXPECT_EQ(refused_out("read 0 3G"), "length cannot exceed 2147483136, given 3G\n");
  EXPECT_EQ(refused_out("write 0 3G"), "length cannot exceed 2147483136 without -n, given 3G\n");
  EXPECT_EQ(parsed<IoTransfer>("write -z -n 0 3G").length(), 3 * GiB);
  EXPECT_EQ(refused_out("discard 0 4G"), "length cannot exceed 2147483136, given 4G\n");
  EXPECT_EQ(refused_out("aio_read 0 3G"), "Argument '3G' exceeds maximum size 2147483136\n");
  EXPECT_EQ(refused_out("writev 0 1G 1G"),
            "The total number of bytes exceed the maximum size 2147483136\n");
}

TEST(IoCommands, PatternsAreBytes) {
  for (const char* bad : {"256", "0x", "-1", "1k", "08", "x"}) {
    EXPECT_EQ(refused_out(cat("read -P ", bad, " 0 1")),
              cat(bad, " is not a valid pattern byte\n"));
  }
}

TEST(IoCommands, WhatIsWrongWithALineComesInOrder) {
  EXPECT_EQ(refused_err("foo bar", kNoFile), "command \"foo\" not found\n");
  EXPECT_EQ(refused_err("read", kNoFile), "no file open, try 'help open'\n");
  EXPECT_EQ(refused_err("write 0", kReadOnly),
            "bad argument count 1 to write, expected at least 2 arguments\n");
  EXPECT_EQ(refused_err("write -Z 0", kReadOnly), "tool: Block node is read-only\n");
  EXPECT_EQ(refused_err("alloc"),
            "bad argument count 0 to alloc, expected between 1 and 2 arguments\n");
  EXPECT_EQ(refused_err("flush x"), "bad argument count 1 to flush, expected 0 arguments\n");
  const IoComplaint complaint = refused("write -Z 0");
  EXPECT_EQ(complaint.err, "write: invalid option -- 'Z'\n");
  EXPECT_EQ(complaint.out.substr(0, 7), "write [");
  EXPECT_EQ(refused("read 0 -P").err, "read: option requires an argument -- 'P'\n");
  EXPECT_EQ(refused("w 0 1 2").out.substr(0, 3), "w [");
}

TEST(IoCommands, EveryWriterNeedsTheRight) {
  for (const char* line : {"write 0 1", "writev 0 1", "aio_write 0 1", "discard 0 1",
                           "aio_discard 0 1", "truncate 0"}) {
    EXPECT_EQ(refused_err(line, kReadOnly), "tool: Block node is read-only\n") << line;
  }
  for (const char* line : {"read 0 1", "flush", "map", "alloc 0", "length", "info", "close"}) {
    EXPECT_TRUE(parse_io_command(line, kReadOnly).has_value()) << line;
  }
}

TEST(IoCommands, TheOthersHaveTheirArguments) {
  EXPECT_EQ(parsed<IoAlloc>("a 4k").length, 512u);
  EXPECT_EQ(parsed<IoAlloc>("alloc 4k 1M").length, MiB);
  EXPECT_EQ(parsed<IoTruncate>("t 2M").size, 2 * MiB);
  EXPECT_EQ(refused_err("truncate -m full 2M"), "tool: Invalid preallocation mode 'full'\n");
  EXPECT_EQ(parsed<IoSleep>("sleep 20").milliseconds, 20u);
  EXPECT_EQ(refused_out("sleep -5"), "-5 is not a valid number\n");
  EXPECT_EQ(parsed<IoSigraise>("sigraise 9").signal, 9);
  EXPECT_EQ(refused_out("sigraise 999"),
            "signal argument '999' is too large to be a valid signal\n");
  EXPECT_EQ(parsed<IoBreak>("break write_aio A").event, "write_aio");
  EXPECT_EQ(parsed<IoBreak>("break write_aio A").tag, "A");
  EXPECT_EQ(parsed<IoWaitBreak>("wait_break A").tag, "A");
  EXPECT_EQ(parsed<IoResume>("resume A").tag, "A");
  EXPECT_EQ(parsed<IoRemoveBreak>("remove_break A").tag, "A");
  EXPECT_EQ(parsed<IoDiscard>("aio_discard -q 0 1").background, true);
  parsed<IoNothing>("   ");
  parsed<IoQuit>("q");
  const auto open = parsed<IoOpen>("open -rU -t writeback -d ignore -o a=b path");
  EXPECT_TRUE(open.read_only && open.share_lock);
  EXPECT_EQ(open.cache, CacheMode::writeback);
  EXPECT_EQ(open.discard, DiscardPolicy::ignore);
  EXPECT_EQ(open.options, "a=b");
  EXPECT_EQ(open.path, "path");
  EXPECT_EQ(refused_err("open -t foo x"), "tool: Invalid cache option: foo\n");
  const auto temporary = parsed<IoOpen>("open -sCk x");
  EXPECT_TRUE(temporary.temporary && temporary.copy_on_read && temporary.native_aio);
  EXPECT_TRUE(parsed<IoOpen>("open -i native x").native_aio);
  EXPECT_FALSE(parsed<IoOpen>("open -i threads x").native_aio);
}

TEST(IoCommands, ReopenSaysWhatChanges) {
  const auto nothing = parsed<IoReopen>("reopen");
  EXPECT_FALSE(nothing.writable || nothing.cache);
  EXPECT_EQ(nothing.options, "");
  EXPECT_EQ(parsed<IoReopen>("reopen -r").writable, false);
  const auto all = parsed<IoReopen>("reopen -w -c none -o a=b -o c=d");
  EXPECT_EQ(all.writable, true);
  EXPECT_EQ(all.cache, CacheMode::none);
  EXPECT_EQ(all.options, "a=b,c=d");
  for (const char* line : {"reopen -r -w", "reopen -w -r", "reopen -rr", "reopen -r -w x"}) {
    EXPECT_EQ(refused_err(line), "tool: Only one -r/-w option may be given\n") << line;
  }
  EXPECT_EQ(refused_err("reopen -c bad x"), "tool: Invalid cache option: bad\n");
  EXPECT_TRUE(refused_out("reopen x").starts_with("reopen [(-r|-w)] [-c cache] [-o options] -- "));
  EXPECT_EQ(refused_err("reopen", kNoFile), "no file open, try 'help open'\n");
}

TEST(IoCommands, ZonesAreReadWordByWord) {
  EXPECT_EQ(parsed<IoZone>("zone_report 0 1").what, "report");
  EXPECT_EQ(parsed<IoZone>("zrs 64k 1M").offset, 64 * KiB);
  EXPECT_EQ(parsed<IoZone>("zone_finish 64k 1M").length, MiB);
  EXPECT_FALSE(parsed<IoZone>("zone_append 9M 512 512").offset);
  EXPECT_EQ(refused_out("zone_report 0 4294967296"), "Number of zones must be less than 2^32\n");
  EXPECT_EQ(refused_err("zone_append 0 512"),
            "bad argument count 2 to zone_append, expected between 3 and 4 arguments\n");
  EXPECT_EQ(refused_out("zone_append 0 3G 1"), "Argument '3G' exceeds maximum size 2147483136\n");
  // There are no options: what looks like one is a number that is none.
  EXPECT_EQ(refused_out("zone_open -r 1"),
            "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- -r\n");
}

TEST(IoCommands, ARegisteredBufferIsNoBufferOfZeros) {
  EXPECT_EQ(parsed<IoTransfer>("write -r 0 512").length(), 512u);
  EXPECT_EQ(parsed<IoTransfer>("aio_read -r 0 512").length(), 512u);
  for (const char* line : {"write -rz 0 512", "aio_write -rz x 512"}) {
    EXPECT_EQ(refused_out(line), "cannot combine zero write with registered I/O buffer\n");
  }
  EXPECT_EQ(refused_out("read -rb 0 512"),
            "I/O buffer registration is not supported when reading from vmstate\n");
}

TEST(IoCommands, HelpKnowsEveryCommand) {
  const std::string text = io_help();
  EXPECT_NE(text.find("aio_discard [-Cq] off len -- "), std::string::npos);
  EXPECT_EQ(io_help("r").substr(0, 3), "r [");
  EXPECT_EQ(io_help("nonesuch"), "");
}

// The line, and below it what the command does and what each of its letters means.
TEST(IoCommands, HelpOfACommandSaysMoreThanItsLine) {
  const std::string all = io_help();
  for (size_t at = 0; all[at] != '\n';) {
    const size_t end = all.find('\n', at);
    const std::string line = all.substr(at, end - at);
    const std::string name = line.substr(0, line.find(' '));
    const std::string help = io_help(name);
    EXPECT_TRUE(help.starts_with(line + "\n\n ")) << name;
    EXPECT_GT(help.size(), line.size() + 20) << name;
    if (const size_t letters = line.find(" [-"); letters != std::string::npos) {
      for (size_t i = letters + 3; line[i] != ']' && line[i] != ' '; ++i) {
        EXPECT_NE(help.find(std::string("\n -") + line[i] + ", -- "), std::string::npos)
            << name << line[i];
      }
    }
    at = end + 1;
  }
}

// Texts that scripts read.

}  // namespace
}  // namespace byre
