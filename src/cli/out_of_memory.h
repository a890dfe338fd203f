// SPDX-License-Identifier: Apache-2.0
/// When there is no memory: the program says so and ends, with exit code 1.
///
/// What an image claims is bounded before memory is asked for (format/limits.h), but a limit of the
/// process may be lower than what a large image needs.  Nothing can be done about it where it is
/// met: the engine is built without exceptions, and its state is undefined behind a failed
/// allocation.  So the process ends there, as by a kill, which every on-disk order allows for; a
/// repair is run again, or taken back. Not here: limits of sizes.
#pragma once

#include <string_view>

namespace byre {

/// From now on; `program` is whom the message is from.
void say_when_memory_runs_out(std::string_view program);

}  // namespace byre
