// SPDX-License-Identifier: Apache-2.0
/// One line of `byre io`: its words, sorted, and what the parsers of all commands need.
///
/// Invariant: options are found among the words as getopt(3) finds them; what is wrong with them is
/// said as it says it.
/// Not here: the commands (io_commands.cc has the table, io_parsers.h the parser of each).
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/units.h"
#include "cli/io_commands.h"

namespace byre {

/// The largest request: 2 GiB, less a sector.
inline constexpr uint64_t kIoRequestMax = 0x7fffffff / kSectorSize * kSectorSize;

struct IoRow;
/// The options and operands of one line.
struct IoLine {
  const IoRow& row;
  std::string_view name;  ///< As it was written: perhaps the alias.
  std::vector<std::pair<char, std::string>> options;
  std::vector<std::string> operands;

  bool has(char letter) const;
};

/// One command of the language.
struct IoRow {
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
  Result<IoCommand> (*parse)(const IoLine& line);
};

/// "read [-q] off len -- reads a range", under the name that was written.
std::string io_usage(const IoRow& row, std::string_view name);
Error io_usage(const IoLine& line);

std::vector<std::string> split_words(std::string_view line);
/// Sorts `words` into the options that the row knows and the rest.
std::expected<IoLine, IoComplaint> sort_words(const IoRow& row,
                                              const std::vector<std::string>& words);

/// A size as an operand; errors are qemu-io's.
Result<uint64_t> parse_io_size(const std::string& text);
/// A number as C spells it: 0x hexadecimal, 0 octal, else decimal.
std::optional<uint64_t> parse_c_number(std::string_view text);
Result<std::byte> parse_pattern(const std::string& text);

}  // namespace byre
