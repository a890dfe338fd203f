// SPDX-License-Identifier: Apache-2.0
/// What `help COMMAND` of `byre io` says below the command's line: a paragraph, an example, and
/// what each option does.
/// Not here: that line (io_line.h).
#pragma once

#include <string>
#include <string_view>

namespace byre {

/// By the command's name, not its alias; empty: there is nothing to add.
std::string io_help_text(std::string_view command);

}  // namespace byre
