// SPDX-License-Identifier: Apache-2.0
/// Numbers and sizes that have a range, with the errors of QEMU 10: "Invalid WHAT specified:
/// 'TEXT'." for what is no number, and "Invalid WHAT specified. Must be between LOW and HIGH."
///
/// Numbers are read as strtoull(3) reads them with base 0: blanks and a sign in front, 0x for
/// hexadecimal, a zero in front for octal.  Sizes are those of base/option_text.h.
/// Not here: values without a range (values.h).
#pragma once

#include <cstdint>
#include <string_view>

#include "base/error.h"

namespace byre {

struct ValueRange {
  std::string_view what;
  uint64_t low = 0;
  uint64_t high = 0;
};

Result<uint64_t> ranged_number(std::string_view text, const ValueRange& range);
Result<uint64_t> ranged_size(std::string_view text, const ValueRange& range);

}  // namespace byre
