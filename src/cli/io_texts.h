// SPDX-License-Identifier: Apache-2.0
/// What requests of `byre io` print: the lines that scripts for qemu-io read.
///
/// Cost: a few allocations each.
/// Not here: complaints about a line (io_commands.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/bytes.h"

namespace byre {

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

}  // namespace byre
