// SPDX-License-Identifier: Apache-2.0
/// What is no request of a guest: files, the disk's size, breakpoints, signals, time, help.
#include <csignal>
#include <limits>

#include "cli/io_parsers.h"
#include "cli/values.h"

namespace byre {

Result<IoCommand> parse_open(const IoLine& line) {
  if (line.operands.size() > 1 || (line.operands.empty() && !line.has('o'))) return io_usage(line);
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
      case 'C':
        open.copy_on_read = true;
        break;
      case 'k':
        open.native_aio = true;
        break;
      case 's':
        open.temporary = true;
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
        open.native_aio = value == "native";
        break;
      default:
        break;
    }
  }
  return open;
}

Result<IoCommand> parse_reopen(const IoLine& line) {
  IoReopen reopen;
  for (const auto& [letter, value] : line.options) {
    if (letter == 'r' || letter == 'w') {
      if (reopen.writable) return unsupported("Only one -r/-w option may be given");
      reopen.writable = letter == 'w';
    } else if (letter == 'c') {
      const std::optional<CacheMode> cache = find_cache_mode(value);
      if (!cache) return unsupported("Invalid cache option: ", value);
      reopen.cache = *cache;
    } else {
      reopen.options += cat(reopen.options.empty() ? "" : ",", value);
    }
  }
  if (!line.operands.empty()) return io_usage(line);
  return reopen;
}

Result<IoCommand> parse_alloc(const IoLine& line) {
  IoAlloc alloc;
  BYRE_TRY(offset, parse_io_size(line.operands[0]));
  alloc.offset = offset;
  if (line.operands.size() > 1) {
    BYRE_TRY(length, parse_io_size(line.operands[1]));
    alloc.length = length;
  }
  return alloc;
}

Result<IoCommand> parse_truncate(const IoLine& line) {
  for (const auto& [letter, value] : line.options) {
    if (letter == 'm' && value != "off") {
      return unsupported("Invalid preallocation mode '", value, "'");
    }
  }
  if (line.operands.size() != 1) return io_usage(line);
  BYRE_TRY(size, parse_io_size(line.operands[0]));
  return IoTruncate{size};
}

Result<IoCommand> parse_sleep(const IoLine& line) {
  const std::optional<uint64_t> number = parse_c_number(line.operands[0]);
  if (!number || *number > std::numeric_limits<int64_t>::max() / kMillisecond) {
    return invalid(line.operands[0], " is not a valid number");
  }
  return IoSleep{*number};
}

Result<IoCommand> parse_sigraise(const IoLine& line) {
  BYRE_TRY(number, parse_io_size(line.operands[0]));
  if (number >= static_cast<uint64_t>(NSIG)) {
    return invalid("signal argument '", line.operands[0], "' is too large to be a valid signal");
  }
  return IoSigraise{static_cast<int>(number)};
}

Result<IoCommand> parse_break(const IoLine& line) {
  return IoBreak{.event = line.operands[0], .tag = line.operands[1]};
}

Result<IoCommand> parse_help(const IoLine& line) {
  return IoHelp{line.operands.empty() ? "" : line.operands[0]};
}

Result<IoCommand> parse_check(const IoLine& line) {
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

}  // namespace byre
