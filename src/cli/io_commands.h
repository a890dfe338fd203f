// SPDX-License-Identifier: Apache-2.0
/// The command language of `byre io`, as pure functions: lines into commands, results into the
/// lines that scripts for qemu-io read, option strings into what to open.
///
/// A line is words between spaces; options are found among the words as getopt finds them.  What is
/// wrong with a line is said in the stream and the order in which qemu-io says it: unknown command,
/// no file, number of arguments, right to write, then the words from left to right.
/// Not here: doing anything (io.cc).
#pragma once

#include <cstdint>
#include <expected>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "block/filter_fault.h"
#include "cli/values.h"

namespace byre {

/// A read or write, blocking or in the background.
struct IoTransfer {
  std::string_view command;  ///< "read", "aio_write", ...
  bool is_write = false;
  bool background = false;
  bool nothing = false;  ///< -i: only pretend, with an invalid request.
  uint64_t offset = 0;
  std::vector<uint64_t> lengths;  ///< One buffer each; one request over all.

  bool quiet = false;
  bool machine = false;  ///< Statistics as comma-separated numbers.
  bool vm_state = false;
  // Reads.
  bool dump = false;
  std::optional<std::byte> expect;
  uint64_t expect_offset = 0;  ///< Of the part that is compared, in what is read.
  uint64_t expect_length = 0;
  // Writes.
  std::byte fill{0xcd};
  std::string source_file;  ///< Repeated to fill the buffer; empty: `fill` is.
  bool zero = false;
  bool may_unmap = false;
  bool no_fallback = false;
  bool fua = false;
  bool compressed = false;

  uint64_t length() const;
};
struct IoDiscard {
  uint64_t offset = 0;
  uint64_t length = 0;
  bool background = false;
  bool quiet = false;
  bool machine = false;
};
/// What `open` and the command line of the tool say of a file.
struct IoOpen {
  std::string path;  ///< A file, blkdebug:CONFIG:FILE, or an option string if `image_opts`.
  std::optional<std::string> format;
  std::string options;  ///< -o: an option string beside the path.
  bool image_opts = false;
  bool read_only = false;
  bool share_lock = false;
  CacheMode cache = CacheMode::writethrough;
  DiscardPolicy discard = DiscardPolicy::unmap;
};
struct IoAlloc {
  uint64_t offset = 0;
  uint64_t length = 512;
};
struct IoTruncate {
  uint64_t size = 0;
};
struct IoSleep {
  uint64_t milliseconds = 0;
};
struct IoSigraise {
  int signal = 0;
};
struct IoBreak {
  std::string event;
  std::string tag;
};
struct IoWaitBreak {
  std::string tag;
};
struct IoResume {
  std::string tag;
};
struct IoRemoveBreak {
  std::string tag;
};
struct IoHelp {
  std::string command;  ///< Empty: all.
};
struct IoNothing {};  ///< An empty line.
struct IoQuit {};
struct IoClose {};
struct IoAbort {};
struct IoFlush {};
struct IoAioFlush {};
struct IoMap {};
struct IoLength {};
struct IoInfo {};
/// A check of the image while requests run.
struct IoCheck {
  bool free_leaks = false;
  bool json = false;
};

using IoCommand =
    std::variant<IoNothing, IoHelp, IoQuit, IoAbort, IoOpen, IoClose, IoTransfer, IoDiscard,
                 IoFlush, IoAioFlush, IoMap, IoAlloc, IoLength, IoInfo, IoTruncate, IoSleep,
                 IoSigraise, IoBreak, IoWaitBreak, IoResume, IoRemoveBreak, IoCheck>;

/// Lines for the user, by stream.
struct IoComplaint {
  std::string out;
  std::string err;
};
/// What a line may do now.
struct IoContext {
  bool has_file = false;
  bool writable = false;
  std::string_view program = "qemu-io";  ///< In front of some messages.
};
std::expected<IoCommand, IoComplaint> parse_io_command(std::string_view line,
                                                       const IoContext& context);

/// What `help` and `help COMMAND` print; an empty answer: no such command.
std::string io_help();
std::string io_help(std::string_view command);

/// A count of bytes in the largest unit below it, with three decimals unless they are zero:
/// "64 KiB", "1.500 MiB", "40 bytes".
std::string io_size_text(double bytes);
/// The lines after a request: how much, how long, how fast.
struct IoReport {
  std::string_view verb;  ///< "read", "wrote", "discard".
  uint64_t offset = 0;
  uint64_t length = 0;
  int64_t nanoseconds = 0;
  bool machine = false;
};
std::string io_report_text(const IoReport& report);
/// Lines of sixteen bytes, in hexadecimal and as letters and digits.
std::string io_dump_text(uint64_t offset, Bytes data);
/// A line of `map`.
std::string io_map_text(uint64_t offset, uint64_t length, bool allocated);

/// What to open, from the top layer down.
struct IoLayer {
  enum class Driver : uint8_t { file, raw, qcow2, blkdebug, probe } driver = Driver::probe;
  std::string file_name;     ///< Of a `file`.
  std::string fault_config;  ///< Of a `blkdebug`: a file with rules; may be empty.
  FaultRules faults;         ///< Of a `blkdebug`: those in its options.
  std::optional<DiscardPolicy> discard;
  std::optional<bool> read_only;
  std::optional<bool> direct;
  bool lock = true;
  bool without_backing = false;
  /// How an image is run, whatever it says itself; of `qcow2`, and of `probe` if that finds one.
  struct Runtime {
    std::optional<bool> lazy_refcounts;
    std::optional<uint64_t> table_cache_size;
    bool discard_keeps = false;
    std::string first;    ///< The first of these that was given: what a raw disk refuses.
    std::string unknown;  ///< What no format takes; refused once it is known which one it is.
  } runtime;
  std::unique_ptr<IoLayer> below;
};
/// What a disk of this format says to a setting that it does not have.
Error no_such_option(std::string_view format, std::string_view option);

/// The layers that `open` means; only names and settings are checked, nothing is opened.
Result<IoLayer> plan_io_layers(const IoOpen& open);

}  // namespace byre
