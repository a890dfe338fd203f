// SPDX-License-Identifier: Apache-2.0
#include "cli/ranged.h"

#include <cerrno>
#include <cstdlib>
#include <string>

#include "base/option_text.h"

namespace byre {

namespace {

Error malformed(std::string_view text, const ValueRange& range) {
  return invalid("Invalid ", range.what, " specified: '", text, "'.");
}

Error out_of_range(const ValueRange& range) {
  return invalid("Invalid ", range.what, " specified. Must be between ", range.low, " and ",
                 range.high, ".");
}

Result<uint64_t> in_range(uint64_t value, const ValueRange& range) {
  if (value < range.low || value > range.high) return out_of_range(range);
  return value;
}

/// Takes blanks and a sign off; was it a minus?
bool take_sign(std::string_view& text) {
  while (!text.empty() && (text[0] == ' ' || text[0] == '\t')) text.remove_prefix(1);
  if (text.empty() || (text[0] != '-' && text[0] != '+')) return false;
  const bool is_minus = text[0] == '-';
  text.remove_prefix(1);
  return is_minus;
}

}  // namespace

Result<uint64_t> ranged_number(std::string_view text, const ValueRange& range) {
  std::string_view rest = text;
  const bool is_negative = take_sign(rest);
  if (rest.empty() || rest[0] < '0' || rest[0] > '9') return malformed(text, range);
  const std::string digits(rest);
  char* end = nullptr;
  errno = 0;
  const uint64_t value = std::strtoull(digits.c_str(), &end, 0);
  if (end != digits.c_str() + digits.size()) return malformed(text, range);
  if (errno == ERANGE || (is_negative && value != 0)) return out_of_range(range);
  return in_range(value, range);
}

Result<uint64_t> ranged_size(std::string_view text, const ValueRange& range) {
  std::string_view rest = text;
  const bool is_negative = take_sign(rest);
  if (rest.empty() || rest[0] == '-' || rest[0] == '+') return malformed(text, range);
  const Result<uint64_t> size = parse_size(rest);
  if (!size && size.error().code() != Errc::no_space) return malformed(text, range);
  if (!size || (is_negative && *size != 0)) return out_of_range(range);
  return in_range(*size, range);
}

}  // namespace byre
