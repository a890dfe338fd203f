// SPDX-License-Identifier: Apache-2.0
/// Option values as people write them: sizes, numbers, on and off, and lists `a=b,c=d`.
///
/// Each function takes the whole text or fails with a sentence in qemu-img's words.
/// Not here: what an option means (cli/values.h, job/drivers.cc).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace byre {

/// "64M", "1.5G", "0x200", "512": bytes, with an optional binary suffix B K M G T P E.  A fraction
/// needs a suffix above B and is rounded to the nearest byte.  Errc::no_space when it is above 2^63
/// - 1.
Result<uint64_t> parse_size(std::string_view text);
/// The same with the message that qemu-img gives for the option that is called `what`.
Result<uint64_t> parse_size_option(std::string_view text, std::string_view what);
/// The same for `name=value` in an option list; such sizes may be up to 2^64 - 1.
Result<uint64_t> parse_size_parameter(std::string_view text, std::string_view name);

/// A whole decimal number from `low` to `high`.
Result<uint64_t> parse_number(std::string_view text, uint64_t low, uint64_t high);

/// on, yes, true, y; off, no, false, n.
Result<bool> parse_bool_parameter(std::string_view text, std::string_view name);

/// One element of a list `key=value,key=value`.
struct OptionPair {
  std::string key;
  std::string value;
  bool alone = false;  ///< Only a name was given: `key` means on, and `nokey` off.
};
/// A comma ends a pair, two commas are one in a value.  A name by itself means on, and with "no" in
/// front off (so nocow by itself is cow=off, which no format has; QEMU reads it like that, too).
Result<std::vector<OptionPair>> split_options(std::string_view text);

}  // namespace byre
