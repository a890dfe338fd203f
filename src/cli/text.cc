// SPDX-License-Identifier: Apache-2.0
#include "cli/text.h"

#include <fmt/core.h>

#include <array>

namespace byre {

Codepoint next_codepoint(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const Codepoint broken{.value = byte(0), .length = 1, .valid = false};
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {.value = lead};

  size_t length = 0;
  uint32_t value = 0;
  if ((lead & 0xe0) == 0xc0) {
    length = 2;
    value = lead & 0x1f;
  } else if ((lead & 0xf0) == 0xe0) {
    length = 3;
    value = lead & 0x0f;
  } else if ((lead & 0xf8) == 0xf0) {
    length = 4;
    value = lead & 0x07;
  } else {
    return broken;
  }
  if (text.size() < length) return broken;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return broken;
    value = value << 6 | (byte(i) & 0x3f);
  }
  constexpr std::array<uint32_t, 5> kSmallest = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = value >= 0xd800 && value <= 0xdfff;
  if (value < kSmallest[length] || value > 0x10ffff || surrogate) return broken;
  return {.value = value, .length = length};
}

std::string printable(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Codepoint point = next_codepoint(text);
    // 0x80 to 0x9f are the control characters that some terminals obey, too.
    const bool control = point.value < 0x20 || (point.value >= 0x7f && point.value < 0xa0);
    if (point.valid && !control) {
      out += text.substr(0, point.length);
    } else {
      for (char c : text.substr(0, point.length)) {
        out += fmt::format("\\x{:02x}", static_cast<uint8_t>(c));
      }
    }
    text.remove_prefix(point.length);
  }
  return out;
}

std::string printable_lines(std::string_view text) {
  std::string out;
  for (;;) {
    const size_t end = text.find('\n');
    out += printable(text.substr(0, end));
    if (end == std::string_view::npos) return out;
    out += '\n';
    text.remove_prefix(end + 1);
  }
}

std::string size_text(uint64_t bytes) {
  constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  // The next unit begins at 1000, not at 1024, so that three digits are enough.
  size_t unit = 0;
  double value = static_cast<double>(bytes);
  while (value >= 1000 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.3g} {}", value, kUnits[unit]);
}

}  // namespace byre
