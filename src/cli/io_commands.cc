// SPDX-License-Identifier: Apache-2.0
#include "cli/io_commands.h"

#include <utility>

#include "cli/io_help.h"
#include "cli/io_parsers.h"

namespace byre {

namespace {

constexpr bool kAlways = false;
constexpr bool kFile = true;
constexpr bool kReads = false;
constexpr bool kWrites = true;

/// In the order of `help`.
constexpr IoRow kRows[] = {
    {"abort", "", 0, 0, kAlways, kReads, "", "", "ends the program by abort(3)",
     parse_bare<IoAbort>},
    {"aio_discard", "", 2, -1, kFile, kWrites, "Cq", "[-Cq] off len",
     "discards a range in the background", parse_discard},
    {"aio_flush", "", 0, 0, kFile, kReads, "", "", "waits until no request runs in the background",
     parse_bare<IoAioFlush>},
    {"aio_read", "", 2, -1, kFile, kReads, "CP:iqrv", "[-Ciqrv] [-P pattern] off len [len..]",
     "reads in the background", parse_read},
    {"aio_write", "", 2, -1, kFile, kWrites, "CcfiP:qruz",
     "[-Ccfiqruz] [-P pattern] off len [len..]", "writes in the background", parse_write},
    {"alloc", "a", 1, 2, kFile, kReads, "", "offset [count]",
     "counts the bytes of a range that the file itself holds", parse_alloc},
    {"break", "", 2, 2, kFile, kReads, "", "event tag",
     "holds the next request that raises event, as tag", parse_break},
    {"check", "", 0, 3, kFile, kReads, "jr:", "[-j] [-r leaks]",
     "checks the image while requests run", parse_check},
    {"close", "c", 0, 0, kFile, kReads, "", "", "closes the file", parse_bare<IoClose>},
    {"discard", "d", 2, -1, kFile, kWrites, "Cq", "[-Cq] off len", "discards a range",
     parse_discard},
    {"flush", "f", 0, 0, kFile, kReads, "", "", "makes what was written durable",
     parse_bare<IoFlush>},
    {"help", "?", 0, 1, kAlways, kReads, "", "[command]", "says what commands do", parse_help},
    {"info", "i", 0, 0, kFile, kReads, "", "", "says what the file is", parse_bare<IoInfo>},
    {"length", "l", 0, 0, kFile, kReads, "", "", "says how long the disk is", parse_bare<IoLength>},
    {"map", "", 0, 0, kFile, kReads, "", "", "lists what the file itself holds", parse_bare<IoMap>},
    {"open", "o", 1, -1, kAlways, kReads, "CUd:i:kno:rst:",
     "[-rsCnkU] [-t cache] [-d discard] [-i aio] [-o options] [path]", "opens a file", parse_open},
    {"quit", "q", 0, 0, kAlways, kReads, "", "", "ends the program", parse_bare<IoQuit>},
    {"read", "r", 2, -1, kFile, kReads, "bCl:pP:qrs:v",
     "[-bCpqrv] [-P pattern [-s off] [-l len]] off len", "reads a range", parse_read},
    {"readv", "", 2, -1, kFile, kReads, "CP:qrv", "[-Cqrv] [-P pattern] off len [len..]",
     "reads a range into several buffers", parse_read},
    {"remove_break", "", 1, 1, kFile, kReads, "", "tag",
     "removes a breakpoint and lets go what it holds", parse_tag<IoRemoveBreak>},
    {"reopen", "", 0, -1, kFile, kReads, "rwc:o:", "[(-r|-w)] [-c cache] [-o options]",
     "goes on with other settings", parse_reopen},
    {"resume", "", 1, 1, kFile, kReads, "", "tag", "lets a held request go on",
     parse_tag<IoResume>},
    {"sigraise", "", 1, 1, kAlways, kReads, "", "signal", "raises a signal", parse_sigraise},
    {"sleep", "", 1, 1, kAlways, kReads, "", "milliseconds", "waits, while others go on",
     parse_sleep},
    {"truncate", "t", 1, 3, kFile, kWrites, "m:", "[-m prealloc_mode] off",
     "changes the size of the disk", parse_truncate},
    {"wait_break", "", 1, 1, kFile, kReads, "", "tag", "waits until a request is held as tag",
     parse_tag<IoWaitBreak>},
    {"write", "w", 2, -1, kFile, kWrites, "bcCfnpP:qrs:uz",
     "[-bcCfnpqruz] [-P pattern | -s source_file] off len", "writes a range", parse_write},
    {"writev", "", 2, -1, kFile, kWrites, "CfqrP:", "[-Cfqr] [-P pattern] off len [len..]",
     "writes a range from several buffers", parse_write},
    {"zone_append", "zap", 3, 4, kFile, kReads, "p", "offset len [len..]",
     "writes behind what a zone holds", parse_zone_append},
    {"zone_close", "zc", 2, 2, kFile, kReads, "", "offset len", "closes a range of zones",
     parse_zone_range},
    {"zone_finish", "zf", 2, 2, kFile, kReads, "", "offset len", "makes a range of zones full",
     parse_zone_range},
    {"zone_open", "zo", 2, 2, kFile, kReads, "", "offset len", "opens a range of zones",
     parse_zone_range},
    {"zone_report", "zrp", 2, 2, kFile, kReads, "", "offset number", "lists zones",
     parse_zone_report},
    {"zone_reset", "zrs", 2, 2, kFile, kReads, "", "offset len", "empties a range of zones",
     parse_zone_range},
};

const IoRow* find_row(std::string_view name) {
  for (const IoRow& row : kRows) {
    if (row.name == name || (!row.alias.empty() && row.alias == name)) return &row;
  }
  return nullptr;
}

std::string words_wanted(const IoRow& row) {
  if (row.words_max < 0) return cat("at least ", row.words_min);
  if (row.words_max == row.words_min) return cat(row.words_min);
  return cat("between ", row.words_min, " and ", row.words_max);
}

}  // namespace

std::expected<IoCommand, IoComplaint> parse_io_command(std::string_view line,
                                                       const IoContext& context) {
  const auto complain = [](std::string text) {
    return std::unexpected(IoComplaint{.out = {}, .err = text + "\n"});
  };
  const std::vector<std::string> words = split_words(line);
  if (words.empty()) return IoNothing{};
  const IoRow* row = find_row(words[0]);
  if (row == nullptr) return complain(cat("command \"", words[0], "\" not found"));
  if (row->needs_file && !context.has_file) return complain("no file open, try 'help open'");
  const int count = static_cast<int>(words.size()) - 1;
  if (count < row->words_min || (row->words_max >= 0 && count > row->words_max)) {
    return complain(cat("bad argument count ", count, " to ", words[0], ", expected ",
                        words_wanted(*row), " arguments"));
  }
  if (row->writes && !context.writable) {
    return complain(cat(context.program, ": Block node is read-only"));
  }
  std::expected<IoLine, IoComplaint> sorted = sort_words(*row, words);
  if (!sorted) return std::unexpected(std::move(sorted).error());
  Result<IoCommand> command = row->parse(*sorted);
  if (command) return *std::move(command);
  const std::string text = command.error().message() + "\n";
  if (command.error().code() == Errc::invalid) return std::unexpected(IoComplaint{.out = text});
  return std::unexpected(IoComplaint{.err = cat(context.program, ": ", text)});
}

std::string io_help() {
  std::string text;
  for (const IoRow& row : kRows) text += io_usage(row, row.name) + "\n";
  return text + "\nUse 'help commandname' for extended help.\n";
}

std::string io_help(std::string_view command) {
  const IoRow* row = find_row(command);
  return row == nullptr ? "" : cat(io_usage(*row, command), "\n", io_help_text(row->name));
}

}  // namespace byre
