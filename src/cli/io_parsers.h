// SPDX-License-Identifier: Apache-2.0
/// The parsers of the commands of `byre io`, each from a sorted line; the table in io_commands.cc
/// names them.
///
/// An error is a line on stdout if it is Errc::invalid, else one on stderr under the program's
/// name.
///
/// Not here: how many words there are, and who may use a command now (parse_io_command()).
#pragma once

#include "cli/io_line.h"

namespace byre {

// Requests to the disk (io_requests.cc).
Result<IoCommand> parse_read(const IoLine& line);
Result<IoCommand> parse_write(const IoLine& line);
Result<IoCommand> parse_discard(const IoLine& line);
Result<IoCommand> parse_zone_report(const IoLine& line);
Result<IoCommand> parse_zone_range(const IoLine& line);
Result<IoCommand> parse_zone_append(const IoLine& line);

// The others (io_control.cc).
Result<IoCommand> parse_open(const IoLine& line);
Result<IoCommand> parse_reopen(const IoLine& line);
Result<IoCommand> parse_alloc(const IoLine& line);
Result<IoCommand> parse_truncate(const IoLine& line);
Result<IoCommand> parse_sleep(const IoLine& line);
Result<IoCommand> parse_sigraise(const IoLine& line);
Result<IoCommand> parse_break(const IoLine& line);
Result<IoCommand> parse_help(const IoLine& line);
Result<IoCommand> parse_check(const IoLine& line);

template <class Command>
Result<IoCommand> parse_tag(const IoLine& line) {
  return Command{line.operands[0]};
}

template <class Command>
Result<IoCommand> parse_bare(const IoLine&) {
  return Command{};
}

}  // namespace byre
