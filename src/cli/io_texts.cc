// SPDX-License-Identifier: Apache-2.0
#include "cli/io_texts.h"

#include <fmt/core.h>

#include <algorithm>
#include <iterator>

#include "base/cat.h"
#include "base/units.h"
#include "io/reactor.h"

namespace byre {

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

}  // namespace byre
