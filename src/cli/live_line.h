// SPDX-License-Identifier: Apache-2.0
/// The line in which a running command says what it does, on a terminal.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace byre {

/// Columns of the terminal at `fd`; 0 where there is none, or it does not say.
size_t terminal_columns(int fd);
/// The same, but 80 where it is not known.
size_t terminal_width(int fd);

/// `parts`, with ", " between them, in less than `width` columns (in the last one a terminal may
/// wrap): as many as fit, the first ones first.  Where the first does not fit by itself it is cut
/// off.  `parts` are plain ASCII.
std::string fit_line(const std::vector<std::string>& parts, size_t width);

}  // namespace byre
