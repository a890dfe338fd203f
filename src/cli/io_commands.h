// SPDX-License-Identifier: Apache-2.0
/// The command language of `byre io`, as pure functions: lines into commands.
///
/// A line is words between spaces; options are found among the words as getopt finds them.  What is
/// wrong with a line is said in the stream and the order in which qemu-io says it: unknown command,
/// no file, number of arguments, right to write, then the words from left to right.
/// Not here: what results look like (io_texts.h), what `open` means (job/device_tree.h), doing
/// anything (io_shell.h).
#pragma once

#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "block/device.h"
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
  bool copy_on_read = false;
  bool native_aio = false;
  bool temporary = false;  ///< What is written goes to a temporary overlay.
  CacheMode cache = CacheMode::writethrough;
  DiscardPolicy discard = DiscardPolicy::unmap;
  std::vector<std::string> blockdevs = {};  ///< If there are some, `path` is the name of one.
};
/// Other settings for the file that is open.
struct IoReopen {
  std::optional<bool> writable;
  std::optional<CacheMode> cache;
  std::string options;  ///< -o: an option string.
};
/// What zoned devices can do, which no device here is.
struct IoZone {
  std::string_view what;             ///< "report", "open", "append", ...
  std::optional<uint64_t> offset{};  ///< Of a range that must be there; none: it is not looked at.
  uint64_t length = 0;
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

using IoCommand = std::variant<IoNothing, IoHelp, IoQuit, IoAbort, IoOpen, IoClose, IoTransfer,
                               IoDiscard, IoFlush, IoAioFlush, IoMap, IoAlloc, IoLength, IoInfo,
                               IoTruncate, IoSleep, IoSigraise, IoBreak, IoWaitBreak, IoResume,
                               IoRemoveBreak, IoCheck, IoReopen, IoZone>;

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

}  // namespace byre
