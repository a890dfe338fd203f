// SPDX-License-Identifier: Apache-2.0
#include "cli/io_help.h"

#include <fmt/core.h>

#include "base/cat.h"

namespace byre {

namespace {

/// What a command does, beyond its line; an example, and what that does; what its letters mean
/// where that is not what they mean elsewhere.
struct Topic {
  std::string_view name;
  std::string_view text;
  std::string_view example = "";
  std::string_view effect = "";
  std::string_view options = "";  ///< "-x, -- ..." a line.
};

constexpr std::string_view kBackground =
    " The request runs in the background: 'aio_flush' waits for it. What becomes of it does not\n"
    " count for the exit code.\n";

constexpr Topic kTopics[] = {
    {"abort", " The program dies at once, as in a crash: nothing is written any more.\n"},
    {"aio_discard", " Gives up what the disk holds in a range of LEN bytes at OFF.\n",
     "aio_discard 512 1k", "discards the 1024 bytes that follow byte 512",
     " -C, -- numbers between commas, for programs\n"
     " -q, -- say nothing\n"},
    {"aio_flush", " Waits until every request in the background has ended.\n"},
    {"aio_read", " Reads a range at OFF into one buffer for each LEN.\n", "aio_read -v 512 1k 1k",
     "shows the 2048 bytes that follow byte 512",
     " -C, -- numbers between commas, for programs\n"
     " -i, -- only say that an invalid request is made\n"
     " -P, -- every byte must be this one\n"
     " -q, -- say nothing\n"
     " -r, -- register the buffer; changes nothing here\n"
     " -v, -- show what was read\n"},
    {"aio_write",
     " Writes a range at OFF from one buffer for each LEN, filled with bytes of 0xcd.\n",
     "aio_write 512 1k 1k", "writes the 2048 bytes that follow byte 512",
     " -c, -- as compressed clusters\n"
     " -C, -- numbers between commas, for programs\n"
     " -f, -- durable when it is done\n"
     " -i, -- only say that an invalid request is made\n"
     " -P, -- fill the buffers with this byte\n"
     " -q, -- say nothing\n"
     " -r, -- register the buffer; changes nothing here\n"
     " -u, -- with -z: its space may be given back\n"
     " -z, -- zeros, without data\n"},
    {"alloc",
     " Counts how many of COUNT bytes (512) at OFFSET the image itself holds; the rest comes from\n"
     " its backing file, or is zero.\n",
     "alloc 1M 64k", "looks at the 64 KiB that follow the first MiB"},
    {"break",
     " The next request that raises EVENT is held under the name TAG until 'resume TAG'. The file\n"
     " must be opened through a fault filter (blkdebug).\n",
     "break l2_update A", "holds the next write of an L2 table"},
    {"check", " Counts all references of the image, as 'byre check' does, while requests run.\n",
     "check -j", "prints the findings as JSON",
     " -j, -- JSON\n"
     " -r, -- 'leaks': give back clusters that nothing refers to\n"},
    {"close", " Waits for requests in the background, makes all durable and closes the file.\n"},
    {"discard", " Gives up what the disk holds in a range of LEN bytes at OFF.\n", "discard 512 1k",
     "discards the 1024 bytes that follow byte 512",
     " -C, -- numbers between commas, for programs\n"
     " -q, -- say nothing\n"},
    {"flush", " What was written before is durable when this ends.\n"},
    {"help", " Without a command: a line for each. With one: all that can be said of it.\n",
     "help write", "explains 'write'"},
    {"info", " Prints format, cluster size and features of the image.\n"},
    {"length", " Prints the size of the disk.\n"},
    {"map", " Prints the ranges that the image itself holds, and those that it does not.\n"},
    {"open", " Opens a file for the commands that follow. One file is open at a time.\n",
     "open -n -o driver=raw /tmp/data",
     "opens a raw disk for reading and writing, past the page cache",
     " -r, -- for reading only\n"
     " -s, -- what is written goes to a temporary file that is gone afterwards\n"
     " -C, -- what is read from the backing file is written to the image\n"
     " -n, -- past the host's page cache, as -t none\n"
     " -U, -- for reading, although another program writes it\n"
     " -k, -- as -i native\n"
     " -i, -- threads, native or io_uring; byre chooses by itself\n"
     " -t, -- writethrough, writeback, none, directsync or unsafe\n"
     " -d, -- what becomes of discards: unmap or ignore\n"
     " -o, -- options of its devices, such as driver=qcow2\n"},
    {"quit", " Ends the program, after what 'close' does.\n"},
    {"read", " Reads LEN bytes at OFF, and shows or compares them if asked to.\n", "read -v 512 1k",
     "shows the 1024 bytes that follow byte 512",
     " -b, -- of the VM state behind the disk\n"
     " -C, -- numbers between commas, for programs\n"
     " -l, -- with -P: how many bytes are compared\n"
     " -p, -- nothing; older scripts have it\n"
     " -P, -- every byte must be this one\n"
     " -q, -- say nothing\n"
     " -r, -- register the buffer; changes nothing here\n"
     " -s, -- with -P: where in what was read comparing begins\n"
     " -v, -- show what was read\n"},
    {"readv", " Reads a range at OFF into one buffer for each LEN, in one request.\n",
     "readv -v 512 1k 1k", "shows the 2048 bytes that follow byte 512",
     " -C, -- numbers between commas, for programs\n"
     " -P, -- every byte must be this one\n"
     " -q, -- say nothing\n"
     " -r, -- register the buffer; changes nothing here\n"
     " -v, -- show what was read\n"},
    {"remove_break", " Forgets the breakpoints named TAG; what is held there goes on.\n"},
    {"reopen",
     " The file that is open goes on with other settings, after requests in the background have\n"
     " ended. If it cannot, it is as before.\n",
     "reopen -o lazy-refcounts=on", "updates refcounts late from here on",
     " -r, -- for reading only\n"
     " -w, -- for reading and writing\n"
     " -c, -- another cache mode (writeback, none, ...)\n"
     " -o, -- other options of its devices, as for 'open'\n"},
    {"resume", " The oldest request that is held as TAG goes on.\n"},
    {"sigraise", " The program sends itself the signal of this number.\n", "sigraise 15",
     "raises SIGTERM"},
    {"sleep", " Waits so many milliseconds; requests in the background go on.\n", "sleep 500",
     "waits half a second"},
    {"truncate",
     " The disk has OFF bytes from here on. What is added reads as zeros; what is cut off is "
     "lost.\n",
     "truncate 8M", "makes it 8 MiB", " -m, -- preallocation of what is added: off\n"},
    {"wait_break", " Waits until a request is held as TAG; what else runs goes on.\n"},
    {"write", " Writes LEN bytes at OFF, of 0xcd unless told otherwise.\n", "write 512 1k",
     "writes the 1024 bytes that follow byte 512",
     " -b, -- to the VM state behind the disk\n"
     " -c, -- as compressed clusters\n"
     " -C, -- numbers between commas, for programs\n"
     " -f, -- durable when it is done\n"
     " -n, -- with -z: fail where zeros would have to be written as data\n"
     " -p, -- nothing; older scripts have it\n"
     " -P, -- fill the buffer with this byte\n"
     " -q, -- say nothing\n"
     " -r, -- register the buffer; changes nothing here\n"
     " -s, -- fill the buffer from this file, again and again\n"
     " -u, -- with -z: its space may be given back\n"
     " -z, -- zeros, without data\n"},
    {"writev",
     " Writes a range at OFF from one buffer for each LEN, in one request; the buffers are filled\n"
     " with bytes of 0xcd.\n",
     "writev 512 1k 1k", "writes the 2048 bytes that follow byte 512",
     " -C, -- numbers between commas, for programs\n"
     " -f, -- durable when it is done\n"
     " -P, -- fill the buffers with this byte\n"
     " -q, -- say nothing\n"
     " -r, -- register the buffer; changes nothing here\n"},
    {"zone_append",
     " Writes behind what a zone holds, on zoned devices. There are none here: it fails.\n", "", "",
     " -p, -- nothing; older scripts have it\n"},
    {"zone_close", " Closes zones of a zoned device. There are none here: it fails.\n"},
    {"zone_finish", " Makes zones of a zoned device full. There are none here: it fails.\n"},
    {"zone_open", " Opens zones of a zoned device. There are none here: it fails.\n"},
    {"zone_report", " Lists zones of a zoned device. There are none here: it fails.\n"},
    {"zone_reset", " Empties zones of a zoned device. There are none here: it fails.\n"},
};

}  // namespace

std::string io_help_text(std::string_view command) {
  for (const Topic& topic : kTopics) {
    if (topic.name != command) continue;
    std::string text = cat("\n", topic.text);
    if (command.starts_with("aio_") && command != "aio_flush") text += kBackground;
    if (!topic.example.empty()) {
      text += fmt::format("\n Example:\n '{}' - {}\n", topic.example, topic.effect);
    }
    if (!topic.options.empty()) text += cat("\n", topic.options);
    return text + "\n";
  }
  return "";
}

}  // namespace byre
