// SPDX-License-Identifier: Apache-2.0
/// Requests to the disk: reads, writes, zeros and discards, blocking or in the background.
#include <limits>
#include <utility>

#include "base/checked.h"
#include "cli/io_parsers.h"

namespace byre {

namespace {

/// The operands of readv, writev, aio_read and aio_write.
Result<void> take_vector(const IoLine& line, IoTransfer& transfer) {
  if (line.operands.size() < 2) return io_usage(line);
  BYRE_TRY(offset, parse_io_size(line.operands[0]));
  transfer.offset = offset;
  for (size_t i = 1; i < line.operands.size(); ++i) {
    BYRE_TRY(length, parse_io_size(line.operands[i]));
    if (length > kIoRequestMax) {
      return invalid("Argument '", line.operands[i], "' exceeds maximum size ", kIoRequestMax);
    }
    transfer.lengths.push_back(length);
    if (transfer.length() > kIoRequestMax) {
      return invalid("The total number of bytes exceed the maximum size ", kIoRequestMax);
    }
  }
  return {};
}

/// The operands of read and write.
Result<void> take_range(const IoLine& line, IoTransfer& transfer) {
  if (line.operands.size() != 2) return io_usage(line);
  BYRE_TRY(offset, parse_io_size(line.operands[0]));
  BYRE_TRY(length, parse_io_size(line.operands[1]));
  transfer.offset = offset;
  transfer.lengths = {length};
  if (transfer.vm_state || transfer.compressed) {
    for (const auto& [value, name] : {std::pair(offset, "offset"), std::pair(length, "count")}) {
      if (value % kSectorSize != 0)
        return invalid(value, " is not a sector-aligned value for '", name, "'");
    }
  }
  if (length > kIoRequestMax && !transfer.no_fallback) {
    return invalid("length cannot exceed ", kIoRequestMax, transfer.is_write ? " without -n" : "",
                   ", given ", line.operands[1]);
  }
  return {};
}

}  // namespace

uint64_t IoTransfer::length() const {
  uint64_t sum = 0;
  for (const uint64_t length : lengths) sum += length;
  return sum;
}

/// "zone_open" is "open".
static std::string_view zone_verb(const IoLine& line) {
  return line.row.name.substr(std::string_view("zone_").size());
}

Result<IoCommand> parse_zone_report(const IoLine& line) {
  BYRE_TRY(offset, parse_io_size(line.operands[0]));
  (void)offset;
  BYRE_TRY(count, parse_io_size(line.operands[1]));
  if (count > std::numeric_limits<uint32_t>::max()) {
    return invalid("Number of zones must be less than 2^32");
  }
  return IoZone{.what = zone_verb(line)};
}

Result<IoCommand> parse_zone_range(const IoLine& line) {
  BYRE_TRY(offset, parse_io_size(line.operands[0]));
  BYRE_TRY(length, parse_io_size(line.operands[1]));
  return IoZone{.what = zone_verb(line), .offset = offset, .length = length};
}

Result<IoCommand> parse_zone_append(const IoLine& line) {
  IoTransfer pieces;
  if (Result<void> taken = take_vector(line, pieces); !taken) return std::move(taken).error();
  return IoZone{.what = zone_verb(line)};
}

Result<IoCommand> parse_read(const IoLine& line) {
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
        BYRE_TRY(pattern, parse_pattern(value));
        read.expect = pattern;
        break;
      }
      case 's': {
        BYRE_TRY(offset, parse_io_size(value));
        read.expect_offset = offset;
        part = true;
        break;
      }
      case 'l': {
        BYRE_TRY(length, parse_io_size(value));
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
  if (part && !read.expect) return io_usage(line);
  if (read.vm_state && line.has('r')) {
    return invalid("I/O buffer registration is not supported when reading from vmstate");
  }
  const uint64_t length = read.length();
  read.expect_length =
      expect_length.value_or(read.expect_offset <= length ? length - read.expect_offset : 0);
  if (!within(read.expect_offset, read.expect_length, length)) {
    return invalid("pattern verification range exceeds end of read data");
  }
  return read;
}

Result<IoCommand> parse_write(const IoLine& line) {
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
        BYRE_TRY(pattern, parse_pattern(value));
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
  const bool registers_zeroes = write.zero && line.has('r');
  const auto refuse = [] {
    return invalid("cannot combine zero write with registered I/O buffer");
  };
  if (!one && registers_zeroes && line.operands.size() == 2) return refuse();
  Result<void> taken = one ? take_range(line, write) : take_vector(line, write);
  if (!taken) return std::move(taken).error();
  if (registers_zeroes) return refuse();
  return write;
}

Result<IoCommand> parse_discard(const IoLine& line) {
  if (line.operands.size() != 2) return io_usage(line);
  IoDiscard discard{.background = line.row.name == "aio_discard",
                    .quiet = line.has('q'),
                    .machine = line.has('C')};
  BYRE_TRY(offset, parse_io_size(line.operands[0]));
  BYRE_TRY(length, parse_io_size(line.operands[1]));
  if (length > kIoRequestMax) {
    return invalid("length cannot exceed ", kIoRequestMax, ", given ", line.operands[1]);
  }
  discard.offset = offset;
  discard.length = length;
  return discard;
}

}  // namespace byre
