// SPDX-License-Identifier: Apache-2.0
#include "cli/io_commands.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <limits>
#include <utility>

#include "base/checked.h"

namespace byre {

namespace {

/// The largest request: 2 GiB, less a sector.
constexpr uint64_t kRequestMax = 0x7fffffff / kSectorSize * kSectorSize;

using Words = std::vector<std::string>;

struct Row;
/// The options and operands of one line.
struct Line {
  const Row& row;
  std::string_view name;  ///< As it was written: perhaps the alias.
  std::vector<std::pair<char, std::string>> options;
  Words operands;

  bool has(char letter) const {
    return std::any_of(options.begin(), options.end(),
                       [&](const auto& option) { return option.first == letter; });
  }
};

/// One command of the language.
struct Row {
  std::string_view name;
  std::string_view alias;
  int words_min;
  int words_max;  ///< -1: any number.
  bool needs_file;
  bool writes;
  std::string_view letters;  ///< Options as getopt(3) spells them.
  std::string_view synopsis;
  std::string_view summary;
  /// An error is a line on stdout if it is Errc::invalid, else one on stderr under the program's
  /// name.
  Result<IoCommand> (*parse)(const Line& line);
};

std::string usage_of(const Row& row, std::string_view name) {
  return cat(name, row.synopsis.empty() ? "" : " ", row.synopsis, " -- ", row.summary);
}
Error usage_of(const Line& line) { return invalid(usage_of(line.row, line.name)); }

// Words.

Words split(std::string_view line) {
  constexpr std::string_view kBlank = " \t\r\n";
  Words words;
  for (;;) {
    const size_t first = line.find_first_not_of(kBlank);
    if (first == std::string_view::npos) return words;
    line.remove_prefix(first);
    const size_t end = std::min(line.find_first_of(kBlank), line.size());
    words.emplace_back(line.substr(0, end));
    line.remove_prefix(end);
  }
}

/// Sorts `words` into the options that the row knows and the rest.
std::expected<Line, IoComplaint> sort_words(const Row& row, const Words& words) {
  Line line{.row = row, .name = words[0], .options = {}, .operands = {}};
  const auto refuse = [&](std::string_view problem, char letter) {
    return std::unexpected(
        IoComplaint{.out = usage_of(row, line.name) + "\n",
                    .err = cat(line.name, ": ", problem, " -- '", letter, "'\n")});
  };
  bool only_operands = row.letters.empty();
  for (size_t i = 1; i < words.size(); ++i) {
    const std::string_view word = words[i];
    if (only_operands || word.size() < 2 || word[0] != '-') {
      line.operands.push_back(words[i]);
      continue;
    }
    if (word == "--") {
      only_operands = true;
      continue;
    }
    for (size_t at = 1; at < word.size(); ++at) {
      const size_t found = word[at] == ':' ? std::string_view::npos : row.letters.find(word[at]);
      if (found == std::string_view::npos) return refuse("invalid option", word[at]);
      if (row.letters.substr(found + 1, 1) != ":") {
        line.options.emplace_back(word[at], "");
        continue;
      }
      std::string value(word.substr(at + 1));
      if (value.empty()) {
        if (++i == words.size()) return refuse("option requires an argument", word[at]);
        value = words[i];
      }
      line.options.emplace_back(word[at], std::move(value));
      break;
    }
  }
  return line;
}

Result<uint64_t> size_of(const std::string& text) {
  const Result<uint64_t> size = parse_size(text);
  if (size) return *size;
  if (size.error().code() == Errc::no_space) {
    return invalid("Parsing error: argument too large -- ", text);
  }
  return invalid("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- ",
                 text);
}

/// A number as C spells it: 0x hexadecimal, 0 octal, else decimal.
std::optional<uint64_t> c_number(std::string_view text) {
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    base = 16;
    text.remove_prefix(2);
  } else if (text.size() > 1 && text[0] == '0') {
    base = 8;
  }
  uint64_t number = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number, base);
  if (problem != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

Result<std::byte> pattern_of(const std::string& text) {
  const std::optional<uint64_t> number = c_number(text);
  if (!number || *number > 0xff) return invalid(text, " is not a valid pattern byte");
  return static_cast<std::byte>(*number);
}

// Reads and writes.

/// The operands of readv, writev, aio_read and aio_write.
Result<void> take_vector(const Line& line, IoTransfer& transfer) {
  if (line.operands.size() < 2) return usage_of(line);
  BYRE_TRY(offset, size_of(line.operands[0]));
  transfer.offset = offset;
  for (size_t i = 1; i < line.operands.size(); ++i) {
    BYRE_TRY(length, size_of(line.operands[i]));
    if (length > kRequestMax) {
      return invalid("Argument '", line.operands[i], "' exceeds maximum size ", kRequestMax);
    }
    transfer.lengths.push_back(length);
    if (transfer.length() > kRequestMax) {
      return invalid("The total number of bytes exceed the maximum size ", kRequestMax);
    }
  }
  return {};
}

/// The operands of read and write.
Result<void> take_range(const Line& line, IoTransfer& transfer) {
  if (line.operands.size() != 2) return usage_of(line);
  BYRE_TRY(offset, size_of(line.operands[0]));
  BYRE_TRY(length, size_of(line.operands[1]));
  transfer.offset = offset;
  transfer.lengths = {length};
  if (transfer.vm_state || transfer.compressed) {
    for (const auto& [value, name] : {std::pair(offset, "offset"), std::pair(length, "count")}) {
      if (value % kSectorSize != 0)
        return invalid(value, " is not a sector-aligned value for '", name, "'");
    }
  }
  if (length > kRequestMax && !transfer.no_fallback) {
    return invalid("length cannot exceed ", kRequestMax, transfer.is_write ? " without -n" : "",
                   ", given ", line.operands[1]);
  }
  return {};
}

Result<IoCommand> parse_read(const Line& line) {
  IoTransfer read{.command = line.row.name, .background = line.row.name == "aio_read"};
  std::optional<uint64_t> expect_length;
  bool part = false;
  for (const auto& [letter, value] : line.options) {
    switch (letter) {
      case 'b':
        read.vm_state = true;
        break;
      case 'C':
        read.machine = true;
        break;
      case 'i':
        read.nothing = true;
        break;
      case 'q':
        read.quiet = true;
        break;
      case 'v':
        read.dump = true;
        break;
      case 'P': {
        BYRE_TRY(pattern, pattern_of(value));
        read.expect = pattern;
        break;
      }
      case 's': {
        BYRE_TRY(offset, size_of(value));
        read.expect_offset = offset;
        part = true;
        break;
      }
      case 'l': {
        BYRE_TRY(length, size_of(value));
        expect_length = length;
        part = true;
        break;
      }
      default:
        break;
    }
  }
  const bool one = line.row.name == "read";
  Result<void> taken = one ? take_range(line, read) : take_vector(line, read);
  if (!taken) return std::move(taken).error();
  if (part && !read.expect) return usage_of(line);
  const uint64_t length = read.length();
  read.expect_length =
      expect_length.value_or(read.expect_offset <= length ? length - read.expect_offset : 0);
  if (!within(read.expect_offset, read.expect_length, length)) {
    return invalid("pattern verification range exceeds end of read data");
  }
  return read;
}

Result<IoCommand> parse_write(const Line& line) {
  IoTransfer write{
      .command = line.row.name, .is_write = true, .background = line.row.name == "aio_write"};
  bool has_pattern = false;
  for (const auto& [letter, value] : line.options) {
    switch (letter) {
      case 'b':
        write.vm_state = true;
        break;
      case 'c':
        write.compressed = true;
        break;
      case 'C':
        write.machine = true;
        break;
      case 'f':
        write.fua = true;
        break;
      case 'i':
        write.nothing = true;
        break;
      case 'n':
        write.no_fallback = true;
        break;
      case 'q':
        write.quiet = true;
        break;
      case 'u':
        write.may_unmap = true;
        break;
      case 'z':
        write.zero = true;
        break;
      case 's':
        write.source_file = value;
        break;
      case 'P': {
        BYRE_TRY(pattern, pattern_of(value));
        write.fill = pattern;
        has_pattern = true;
        break;
      }
      default:
        break;
    }
  }
  if (write.vm_state && write.zero)
    return invalid("-b and -z cannot be specified at the same time");
  if (write.fua && (write.vm_state || write.compressed)) {
    return invalid("-f and -b or -c cannot be specified at the same time");
  }
  if (write.no_fallback && !write.zero) return invalid("-n requires -z to be specified");
  if (write.may_unmap && !write.zero) return invalid("-u requires -z to be specified");
  if (line.row.name == "write") {
    if (write.zero + has_pattern + line.has('s') > 1) {
      return invalid("Only one of -z, -P, and -s can be specified at the same time");
    }
  } else if (write.zero && line.operands.size() > 2) {
    return invalid("-z supports only a single length parameter");
  }
  const bool one = line.row.name == "write";
  Result<void> taken = one ? take_range(line, write) : take_vector(line, write);
  if (!taken) return std::move(taken).error();
  return write;
}

Result<IoCommand> parse_discard(const Line& line) {
  if (line.operands.size() != 2) return usage_of(line);
  IoDiscard discard{.background = line.row.name == "aio_discard",
                    .quiet = line.has('q'),
                    .machine = line.has('C')};
  BYRE_TRY(offset, size_of(line.operands[0]));
  BYRE_TRY(length, size_of(line.operands[1]));
  if (length > kRequestMax) {
    return invalid("length cannot exceed ", kRequestMax, ", given ", line.operands[1]);
  }
  discard.offset = offset;
  discard.length = length;
  return discard;
}

// The others.

Result<IoCommand> parse_open(const Line& line) {
  if (line.operands.size() > 1 || (line.operands.empty() && !line.has('o'))) return usage_of(line);
  IoOpen open;
  if (!line.operands.empty()) open.path = line.operands[0];
  for (const auto& [letter, value] : line.options) {
    switch (letter) {
      case 'r':
        open.read_only = true;
        break;
      case 'n':
        open.cache = CacheMode::none;
        break;
      case 'U':
        open.share_lock = true;
        break;
      case 'o':
        open.options = value;
        break;
      case 't': {
        const std::optional<CacheMode> cache = find_cache_mode(value);
        if (!cache) return unsupported("Invalid cache option: ", value);
        open.cache = *cache;
        break;
      }
      case 'd': {
        if (value != "ignore" && value != "off" && value != "unmap" && value != "on") {
          return unsupported("Invalid discard option: ", value);
        }
        const bool unmap = value == "unmap" || value == "on";
        open.discard = unmap ? DiscardPolicy::unmap : DiscardPolicy::ignore;
        break;
      }
      case 'i':
        if (value != "threads" && value != "native" && value != "io_uring") {
          return unsupported("Invalid aio option: ", value);
        }
        break;
      default:
        return unsupported("open: option '-", letter, "' is not supported");
    }
  }
  return open;
}

Result<IoCommand> parse_alloc(const Line& line) {
  IoAlloc alloc;
  BYRE_TRY(offset, size_of(line.operands[0]));
  alloc.offset = offset;
  if (line.operands.size() > 1) {
    BYRE_TRY(length, size_of(line.operands[1]));
    alloc.length = length;
  }
  return alloc;
}

Result<IoCommand> parse_truncate(const Line& line) {
  for (const auto& [letter, value] : line.options) {
    if (letter == 'm' && value != "off") {
      return unsupported("Invalid preallocation mode '", value, "'");
    }
  }
  if (line.operands.size() != 1) return usage_of(line);
  BYRE_TRY(size, size_of(line.operands[0]));
  return IoTruncate{size};
}

Result<IoCommand> parse_sleep(const Line& line) {
  const std::optional<uint64_t> number = c_number(line.operands[0]);
  if (!number || *number > std::numeric_limits<int64_t>::max() / kMillisecond) {
    return invalid(line.operands[0], " is not a valid number");
  }
  return IoSleep{*number};
}

Result<IoCommand> parse_sigraise(const Line& line) {
  BYRE_TRY(number, size_of(line.operands[0]));
  if (number >= static_cast<uint64_t>(NSIG)) {
    return invalid("signal argument '", line.operands[0], "' is too large to be a valid signal");
  }
  return IoSigraise{static_cast<int>(number)};
}

Result<IoCommand> parse_break(const Line& line) {
  return IoBreak{.event = line.operands[0], .tag = line.operands[1]};
}
template <class Command>
Result<IoCommand> parse_tag(const Line& line) {
  return Command{line.operands[0]};
}
Result<IoCommand> parse_help(const Line& line) {
  return IoHelp{line.operands.empty() ? "" : line.operands[0]};
}
Result<IoCommand> parse_check(const Line& line) {
  IoCheck check;
  if (!line.operands.empty()) return invalid("check: unexpected argument '", line.operands[0], "'");
  for (const auto& [letter, value] : line.options) {
    if (letter == 'j') check.json = true;
    if (letter != 'r') continue;
    if (value != "leaks") {
      return invalid("check: -r ", value,
                     ": only 'leaks' can be repaired while the image is in use");
    }
    check.free_leaks = true;
  }
  return check;
}
template <class Command>
Result<IoCommand> parse_bare(const Line&) {
  return Command{};
}

constexpr bool kAlways = false;
constexpr bool kFile = true;
constexpr bool kReads = false;
constexpr bool kWrites = true;

/// In the order of `help`.
constexpr Row kRows[] = {
    {"abort", "", 0, 0, kAlways, kReads, "", "", "ends the program by abort(3)",
     parse_bare<IoAbort>},
    {"aio_discard", "", 2, -1, kFile, kWrites, "Cq", "[-Cq] off len",
     "discards a range in the background", parse_discard},
    {"aio_flush", "", 0, 0, kFile, kReads, "", "", "waits until no request runs in the background",
     parse_bare<IoAioFlush>},
    {"aio_read", "", 2, -1, kFile, kReads, "CP:iqv", "[-Ciqv] [-P pattern] off len [len..]",
     "reads in the background", parse_read},
    {"aio_write", "", 2, -1, kFile, kWrites, "CcfiP:quz", "[-Ccfiquz] [-P pattern] off len [len..]",
     "writes in the background", parse_write},
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
     "[-rnU] [-t cache] [-d discard] [-o options] [path]", "opens a file", parse_open},
    {"quit", "q", 0, 0, kAlways, kReads, "", "", "ends the program", parse_bare<IoQuit>},
    {"read", "r", 2, -1, kFile, kReads, "bCl:pP:qs:v",
     "[-bCqv] [-P pattern [-s off] [-l len]] off len", "reads a range", parse_read},
    {"readv", "", 2, -1, kFile, kReads, "CP:qv", "[-Cqv] [-P pattern] off len [len..]",
     "reads a range into several buffers", parse_read},
    {"remove_break", "", 1, 1, kFile, kReads, "", "tag",
     "removes a breakpoint and lets go what it holds", parse_tag<IoRemoveBreak>},
    {"resume", "", 1, 1, kFile, kReads, "", "tag", "lets a held request go on",
     parse_tag<IoResume>},
    {"sigraise", "", 1, 1, kAlways, kReads, "", "signal", "raises a signal", parse_sigraise},
    {"sleep", "", 1, 1, kAlways, kReads, "", "milliseconds", "waits, while others go on",
     parse_sleep},
    {"truncate", "t", 1, 3, kFile, kWrites, "m:", "[-m prealloc_mode] off",
     "changes the size of the disk", parse_truncate},
    {"wait_break", "", 1, 1, kFile, kReads, "", "tag", "waits until a request is held as tag",
     parse_tag<IoWaitBreak>},
    {"write", "w", 2, -1, kFile, kWrites, "bcCfnpP:qs:uz",
     "[-bcCfnquz] [-P pattern | -s source_file] off len", "writes a range", parse_write},
    {"writev", "", 2, -1, kFile, kWrites, "CfqP:", "[-Cfq] [-P pattern] off len [len..]",
     "writes a range from several buffers", parse_write},
};

const Row* find_row(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.name == name || (!row.alias.empty() && row.alias == name)) return &row;
  }
  return nullptr;
}

std::string words_wanted(const Row& row) {
  if (row.words_max < 0) return cat("at least ", row.words_min);
  if (row.words_max == row.words_min) return cat(row.words_min);
  return cat("between ", row.words_min, " and ", row.words_max);
}

}  // namespace

uint64_t IoTransfer::length() const {
  uint64_t sum = 0;
  for (const uint64_t length : lengths) sum += length;
  return sum;
}

std::expected<IoCommand, IoComplaint> parse_io_command(std::string_view line,
                                                       const IoContext& context) {
  const auto complain = [](std::string text) {
    return std::unexpected(IoComplaint{.out = {}, .err = text + "\n"});
  };
  const Words words = split(line);
  if (words.empty()) return IoNothing{};
  const Row* row = find_row(words[0]);
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
  std::expected<Line, IoComplaint> sorted = sort_words(*row, words);
  if (!sorted) return std::unexpected(std::move(sorted).error());
  Result<IoCommand> command = row->parse(*sorted);
  if (command) return *std::move(command);
  const std::string text = command.error().message() + "\n";
  if (command.error().code() == Errc::invalid) return std::unexpected(IoComplaint{.out = text});
  return std::unexpected(IoComplaint{.err = cat(context.program, ": ", text)});
}

std::string io_help() {
  std::string text;
  for (const Row& row : kRows) text += usage_of(row, row.name) + "\n";
  return text + "\nUse 'help commandname' for extended help.\n";
}

std::string io_help(std::string_view command) {
  const Row* row = find_row(command);
  return row == nullptr ? "" : usage_of(*row, command) + "\n";
}

// Lines about results.

std::string io_size_text(double bytes) {
  constexpr std::string_view kUnits[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  std::string number = unit == 0 ? fmt::format("{:.6f}", bytes) : fmt::format("{:.3f}", bytes);
  const size_t point = number.find('.');
  if (number.find_first_not_of('0', point + 1) == std::string::npos) number.resize(point);
  return cat(number, " ", kUnits[unit]);
}

std::string io_report_text(const IoReport& report) {
  const int64_t hundredths = report.nanoseconds / (kSecond / 100);
  const int64_t seconds = hundredths / 100;
  std::string time = fmt::format("{}:{:02}:{:02}.{:02}", seconds / 3600, seconds / 60 % 60,
                                 seconds % 60, hundredths % 100);
  if (seconds == 0 && !report.machine) time = fmt::format("00.{:02} sec", hundredths);

  const double elapsed =
      static_cast<double>(std::max<int64_t>(report.nanoseconds, 1)) / static_cast<double>(kSecond);
  const double rate = static_cast<double>(report.length) / elapsed;
  if (report.machine) {
    return fmt::format("{},1,{},{:.3f},{:.3f}\n", report.length, time, rate, 1 / elapsed);
  }
  return fmt::format("{} {}/{} bytes at offset {}\n{}, 1 ops; {} ({}/sec and {:.4f} ops/sec)\n",
                     report.verb, report.length, report.length, report.offset,
                     io_size_text(static_cast<double>(report.length)), time, io_size_text(rate),
                     1 / elapsed);
}

std::string io_dump_text(uint64_t offset, Bytes data) {
  std::string text;
  for (size_t at = 0; at < data.size(); at += 16) {
    const Bytes row = data.subspan(at, std::min<size_t>(16, data.size() - at));
    text += fmt::format("{:08x}:  ", offset + at);
    for (const std::byte byte : row) text += fmt::format("{:02x} ", static_cast<unsigned>(byte));
    text += ' ';
    for (const std::byte byte : row) {
      const char c = static_cast<char>(byte);
      const bool shown = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
      text += shown ? c : '.';
    }
    text += '\n';
  }
  return text;
}

std::string io_map_text(uint64_t offset, uint64_t length, bool allocated) {
  return fmt::format("{} ({:#x}) bytes {} at offset {} ({:#x})\n",
                     io_size_text(static_cast<double>(length)), length,
                     allocated ? "    allocated" : "not allocated",
                     io_size_text(static_cast<double>(offset)), offset);
}

// What to open.

namespace {

/// Two slices: what a table cache needs.
constexpr uint64_t kTableCacheMin = 8 * KiB;

/// `a.b=1,a.c=2` as a tree.
struct OptionTree {
  std::optional<std::string> value;
  std::map<std::string, OptionTree, std::less<>> children;

  /// Takes a setting out.
  std::optional<std::string> take(std::string_view key) {
    const auto found = children.find(key);
    if (found == children.end() || !found->second.children.empty()) return std::nullopt;
    std::optional<std::string> taken = std::move(found->second.value);
    children.erase(found);
    return taken;
  }
  std::optional<OptionTree> take_tree(std::string_view key) {
    const auto found = children.find(key);
    if (found == children.end() || found->second.value) return std::nullopt;
    OptionTree taken = std::move(found->second);
    children.erase(found);
    return taken;
  }
  /// The whole name of some setting that is left.
  std::string first_left() const {
    const auto& [key, child] = *children.begin();
    return child.children.empty() ? key : cat(key, ".", child.first_left());
  }
};

Result<OptionTree> parse_option_tree(std::string_view text) {
  OptionList list;
  if (Result<void> result = parse_value(text, list); !result) return std::move(result).error();
  OptionTree tree;
  for (const auto& [key, value] : list.pairs) {
    OptionTree* at = &tree;
    for (std::string_view rest = key;;) {
      const size_t dot = std::min(rest.find('.'), rest.size());
      at = &at->children[std::string(rest.substr(0, dot))];
      if (dot == rest.size()) break;
      rest.remove_prefix(dot + 1);
    }
    at->value = value;
  }
  return tree;
}

std::string_view name_of(IoLayer::Driver driver) {
  switch (driver) {
    case IoLayer::Driver::file:
      return "file";
    case IoLayer::Driver::raw:
      return "raw";
    case IoLayer::Driver::qcow2:
      return "qcow2";
    case IoLayer::Driver::blkdebug:
      return "blkdebug";
    case IoLayer::Driver::probe:
      return "";
  }
  return "";
}

Result<IoLayer::Driver> find_driver(std::string_view name) {
  for (const auto driver : {IoLayer::Driver::file, IoLayer::Driver::raw, IoLayer::Driver::qcow2,
                            IoLayer::Driver::blkdebug}) {
    if (name_of(driver) == name) return driver;
  }
  return invalid("Unknown driver '", name, "'");
}

/// What every layer may be told.
Result<void> take_common(OptionTree& tree, IoLayer& layer) {
  if (const auto text = tree.take("read-only")) {
    BYRE_TRY(on, parse_bool_parameter(*text, "read-only"));
    layer.read_only = on;
  }
  if (const auto text = tree.take("discard")) {
    std::optional<DiscardPolicy> policy;
    if (Result<void> result = parse_value(*text, policy); !result) return result;
    layer.discard = policy;
  }
  if (auto cache = tree.take_tree("cache")) {
    if (const auto text = cache->take("direct")) {
      BYRE_TRY(on, parse_bool_parameter(*text, "cache.direct"));
      layer.direct = on;
    }
    if (const auto text = cache->take("no-flush")) {
      BYRE_TRY(on, parse_bool_parameter(*text, "cache.no-flush"));
      if (on) return unsupported("cache.no-flush=on is not supported: flushes are never dropped");
    }
    if (!cache->children.empty()) return invalid("no setting cache.", cache->first_left());
  }
  tree.take("node-name");
  return {};
}

/// Settings of QEMU's that byre has only one way for: that way may be named, no other.
struct OneWay {
  std::string_view key;
  std::string_view value;
  std::string_view why;
};
constexpr OneWay kOneWays[] = {
    {"l2-cache-entry-size", "4096", "L2 tables are cached in pieces of 4096 bytes"},
    {"cache-clean-interval", "0", "the cache keeps what fits its size"},
    {"pass-discard-request", "on", "use discard=ignore to keep blocks"},
    {"pass-discard-snapshot", "on", "use discard=ignore to keep blocks"},
    {"pass-discard-other", "on", "use discard=ignore to keep blocks"},
    {"overlap-check", "all", "every write of data is checked against all metadata"},
};

/// How an image is run.
Result<void> take_runtime(OptionTree& tree, IoLayer::Runtime& runtime) {
  const auto take = [&](std::string_view key) {
    std::optional<std::string> text = tree.take(key);
    if (text && runtime.first.empty()) runtime.first = key;
    return text;
  };
  if (const auto text = take("lazy-refcounts")) {
    BYRE_TRY(on, parse_bool_parameter(*text, "lazy-refcounts"));
    runtime.lazy_refcounts = on;
  }
  if (const auto text = take("discard-no-unref")) {
    BYRE_TRY(on, parse_bool_parameter(*text, "discard-no-unref"));
    runtime.discard_keeps = on;
  }
  std::optional<uint64_t> all;
  for (auto [key, size] :
       {std::pair("cache-size", &all), std::pair("l2-cache-size", &runtime.table_cache_size)}) {
    if (const auto text = take(key)) {
      BYRE_TRY(bytes, parse_size_parameter(*text, key));
      if (bytes < kTableCacheMin) {
        return invalid(key, " must be ", kTableCacheMin, " at least, not ", *text);
      }
      *size = bytes;
    }
  }
  if (all && runtime.table_cache_size && *runtime.table_cache_size > *all) {
    return invalid("l2-cache-size may not exceed cache-size");
  }
  if (!runtime.table_cache_size) runtime.table_cache_size = all;
  if (take("refcount-cache-size")) {
    return unsupported(
        "refcount-cache-size is not supported: refcounts are in memory, one byte for each cluster "
        "of the regions in use");
  }
  for (const OneWay& way : kOneWays) {
    const auto text = take(way.key);
    if (text && *text != way.value) {
      return unsupported(way.key, "=", *text, " is not supported, only ", way.value, ": ", way.why);
    }
  }
  return {};
}

/// inject-error.0.event=... and set-state.0.event=...
Result<void> take_faults(OptionTree& tree, IoLayer& layer) {
  if (const auto config = tree.take("config")) layer.fault_config = *config;
  for (const char* kind : {"inject-error", "set-state"}) {
    std::optional<OptionTree> list = tree.take_tree(kind);
    if (!list) continue;
    for (const auto& [number, settings] : list->children) {
      FaultSection section{.kind = kind, .settings = {}};
      for (const auto& [key, setting] : settings.children) {
        if (!setting.value) return invalid("no setting ", kind, ".", number, ".", key);
        section.settings.emplace_back(key, *setting.value);
      }
      if (Result<void> result = add_rule(layer.faults, section); !result) return result;
    }
  }
  return {};
}

Result<IoLayer> plan_layer(OptionTree tree, std::string_view path, IoLayer::Driver otherwise);

/// The layer below, under one of its names; `path` is its file when nothing else is said.
Result<void> take_below(OptionTree& tree, std::string_view path,
                        std::initializer_list<std::string_view> names, IoLayer& layer) {
  for (const std::string_view name : names) {
    if (const auto reference = tree.take(name)) {
      return invalid("Cannot find device='", *reference, "' nor node-name='", *reference, "'");
    }
    std::optional<OptionTree> child = tree.take_tree(name);
    if (!child) continue;
    BYRE_TRY(below, plan_layer(std::move(*child), path, IoLayer::Driver::file));
    layer.below = std::make_unique<IoLayer>(std::move(below));
    return {};
  }
  if (path.empty()) {
    return invalid("A block device must be specified for \"", *names.begin(), "\"");
  }
  layer.below = std::make_unique<IoLayer>(
      IoLayer{.driver = IoLayer::Driver::file, .file_name = std::string(path)});
  return {};
}

/// `otherwise`: the driver of a layer that does not name one.
Result<IoLayer> plan_layer(OptionTree tree, std::string_view path, IoLayer::Driver otherwise) {
  IoLayer layer{.driver = otherwise};
  if (const auto driver = tree.take("driver")) {
    BYRE_TRY(found, find_driver(*driver));
    layer.driver = found;
  }
  if (Result<void> result = take_common(tree, layer); !result) return std::move(result).error();
  switch (layer.driver) {
    case IoLayer::Driver::file: {
      const auto name = tree.take("filename");
      if (!name && path.empty()) return invalid("a file needs a filename");
      layer.file_name = name ? *name : std::string(path);
      if (const auto locking = tree.take("locking")) layer.lock = *locking != "off";
      tree.take("aio");
      break;
    }
    case IoLayer::Driver::blkdebug: {
      if (Result<void> result = take_faults(tree, layer); !result) {
        return std::move(result).error();
      }
      if (Result<void> result = take_below(tree, path, {"image", "x-image"}, layer); !result) {
        return std::move(result).error();
      }
      break;
    }
    case IoLayer::Driver::qcow2:
      if (const auto backing = tree.take("backing")) {
        if (!backing->empty()) return invalid("no device or node is called ", quoted(*backing));
        layer.without_backing = true;
      }
      [[fallthrough]];
    case IoLayer::Driver::probe:
      if (Result<void> result = take_runtime(tree, layer.runtime); !result) {
        return std::move(result).error();
      }
      [[fallthrough]];
    case IoLayer::Driver::raw: {
      if (Result<void> result = take_below(tree, path, {"file"}, layer); !result) {
        return std::move(result).error();
      }
      break;
    }
  }
  if (tree.children.empty()) return layer;
  const std::string unknown = tree.first_left();
  switch (layer.driver) {
    case IoLayer::Driver::probe:
      layer.runtime.unknown = unknown;
      return layer;
    case IoLayer::Driver::raw:
    case IoLayer::Driver::qcow2:
      return no_such_option(name_of(layer.driver), unknown);
    case IoLayer::Driver::file:
    case IoLayer::Driver::blkdebug:
      break;
  }
  return invalid("Block protocol '", name_of(layer.driver), "' doesn't support the option '",
                 unknown, "'");
}

}  // namespace

Error no_such_option(std::string_view format, std::string_view option) {
  return invalid("Block format '", format, "' does not support the option '", option, "'");
}

Result<IoLayer> plan_io_layers(const IoOpen& open) {
  OptionTree tree;
  std::string_view path = open.path;
  if (open.image_opts || !open.options.empty()) {
    BYRE_TRY(parsed, parse_option_tree(open.image_opts ? open.path : open.options));
    tree = std::move(parsed);
    if (open.image_opts) path = {};
    const bool has_driver = tree.children.contains("driver") || tree.children.contains("file");
    if (!has_driver && path.empty()) return invalid("Must specify either driver or file");
  }
  if (path.starts_with("json:")) return unsupported("json: names are not supported");
  if (path.starts_with("blkdebug:")) {
    path.remove_prefix(std::string_view("blkdebug:").size());
    const size_t colon = path.find(':');
    if (colon == std::string_view::npos) {
      return invalid("blkdebug requires both config and image path");
    }
    OptionTree& faults = tree.children["file"];
    faults.children["driver"].value = "blkdebug";
    if (colon > 0) faults.children["config"].value = std::string(path.substr(0, colon));
    path.remove_prefix(colon + 1);
  }
  if (open.format) tree.children["driver"].value = open.format;
  return plan_layer(std::move(tree), path, IoLayer::Driver::probe);
}

}  // namespace byre
