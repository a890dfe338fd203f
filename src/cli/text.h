// SPDX-License-Identifier: Apache-2.0
/// Text for terminals: what came from an image or a file name never drives one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace byre {

/// The code point at the start of a text that is not empty.  Bytes that are not UTF-8 (RFC 3629)
/// come one by one, not valid.
struct Codepoint {
  uint32_t value = 0;
  size_t length = 1;
  bool valid = true;
};
Codepoint next_codepoint(std::string_view text);

/// `text` with control characters and bytes that are not UTF-8 as \xNN; nothing else changes.
std::string printable(std::string_view text);
/// The same for a text of several lines: ends of lines stay.
std::string printable_lines(std::string_view text);

/// A byte count for people, with three digits: "64 MiB", "1.5 GiB", "0 B".
std::string size_text(uint64_t bytes);

}  // namespace byre
