// SPDX-License-Identifier: Apache-2.0
/// BYRE_ASSERT: a bug of ours, found.  On in every build.
///
/// Bytes from a disk or a wire must never reach it: those are errors (error.h).
#pragma once

namespace byre {

/// Prints the failed condition and aborts.
[[noreturn]] void assert_failed(const char* condition, const char* file, int line);

}  // namespace byre

#define BYRE_ASSERT(condition)                               \
  (__builtin_expect(!!(condition), 1) ? static_cast<void>(0) \
                                      : ::byre::assert_failed(#condition, __FILE__, __LINE__))
