// SPDX-License-Identifier: Apache-2.0
#include "base/option_text.h"

#include <charconv>
#include <limits>

#include "base/checked.h"

namespace byre {

namespace {

constexpr uint64_t kSizeMax = std::numeric_limits<int64_t>::max();

enum class SizeProblem : uint8_t { none, malformed, too_large };

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// Bits to shift left for a suffix, or -1.
int shift_of(char suffix) {
  switch (suffix) {
    case 'b':
    case 'B':
      return 0;
    case 'k':
    case 'K':
      return 10;
    case 'm':
    case 'M':
      return 20;
    case 'g':
    case 'G':
      return 30;
    case 't':
    case 'T':
      return 40;
    case 'p':
    case 'P':
      return 50;
    case 'e':
    case 'E':
      return 60;
    default:
      return -1;
  }
}

/// `digits` after a decimal point, of 2^shift, rounded to the nearest integer.  Digits beyond the
/// 18th are dropped.
uint64_t fraction_of(std::string_view digits, int shift) {
  __extension__ using Wide = unsigned __int128;
  Wide numerator = 0;
  Wide denominator = 1;
  for (char digit : digits.substr(0, 18)) {
    numerator = numerator * 10 + static_cast<unsigned>(digit - '0');
    denominator *= 10;
  }
  return static_cast<uint64_t>(((numerator << shift) + denominator / 2) / denominator);
}

SizeProblem read_size(std::string_view text, uint64_t max, uint64_t& size) {
  while (!text.empty() && (text[0] == ' ' || text[0] == '\t')) text.remove_prefix(1);
  if (!text.empty() && text[0] == '+') text.remove_prefix(1);
  if (text.size() > 1 && text[0] == '-' && is_digit(text[1])) return SizeProblem::too_large;
  const bool in_hex = text.size() > 2 && text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
  if (in_hex) text.remove_prefix(2);

  uint64_t whole = 0;
  const auto [end, problem] =
      std::from_chars(text.data(), text.data() + text.size(), whole, in_hex ? 16 : 10);
  const bool only_fraction = !in_hex && text.size() > 1 && text[0] == '.' && is_digit(text[1]);
  if (problem == std::errc::invalid_argument && !only_fraction) return SizeProblem::malformed;
  text.remove_prefix(static_cast<size_t>(end - text.data()));

  std::string_view fraction;
  if (!in_hex && !text.empty() && text[0] == '.') {
    size_t digits = 1;
    while (digits < text.size() && is_digit(text[digits])) ++digits;
    fraction = text.substr(1, digits - 1);
    text.remove_prefix(digits);
  }
  int shift = 0;
  if (!text.empty()) {
    shift = in_hex ? -1 : shift_of(text[0]);  // 0x1E: is that a suffix or a digit?
    if (shift < 0 || text.size() > 1) return SizeProblem::malformed;
  }
  const bool has_fraction = fraction.find_first_not_of('0') != std::string_view::npos;
  if (has_fraction && shift == 0) return SizeProblem::malformed;
  if (problem == std::errc::result_out_of_range) return SizeProblem::too_large;

  const auto scaled = checked_multiply(whole, uint64_t{1} << shift);
  const auto sum = scaled ? checked_add(*scaled, fraction_of(fraction, shift)) : std::nullopt;
  if (!sum || *sum > max) return SizeProblem::too_large;
  size = *sum;
  return SizeProblem::none;
}

}  // namespace

Result<uint64_t> parse_size(std::string_view text) {
  uint64_t size = 0;
  switch (read_size(text, kSizeMax, size)) {
    case SizeProblem::none:
      return size;
    case SizeProblem::malformed:
      break;
    case SizeProblem::too_large:
      return Error(Errc::no_space, cat(quoted(text), " is too large: at most ", kSizeMax));
  }
  return invalid(quoted(text),
                 " is no size: give bytes, or a number with the suffix k, M, G, T, P or E");
}

Result<uint64_t> parse_size_option(std::string_view text, std::string_view what) {
  uint64_t size = 0;
  switch (read_size(text, kSizeMax, size)) {
    case SizeProblem::none:
      return size;
    case SizeProblem::malformed:
      break;
    case SizeProblem::too_large:
      return invalid("Invalid ", what, " specified. Must be between 0 and ", kSizeMax, ".");
  }
  return invalid("Invalid ", what, " specified: '", text, "'.");
}

Result<uint64_t> parse_size_parameter(std::string_view text, std::string_view name) {
  uint64_t size = 0;
  switch (read_size(text, std::numeric_limits<uint64_t>::max(), size)) {
    case SizeProblem::none:
      return size;
    case SizeProblem::malformed:
      break;
    case SizeProblem::too_large:
      return invalid("Value '", text, "' is out of range for parameter '", name, "'");
  }
  return invalid("Parameter '", name, "' expects a non-negative number below 2^64\n",
                 "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                 "and exabytes, respectively.");
}

Result<uint64_t> parse_number(std::string_view text, uint64_t low, uint64_t high) {
  uint64_t number = 0;
  std::string_view digits = text;
  // As strtoul(3) takes them, which QEMU's programs ask: `"-e 2"` in one word is in use.
  while (!digits.empty() && (digits[0] == ' ' || digits[0] == '\t')) digits.remove_prefix(1);
  if (digits.starts_with('+')) digits.remove_prefix(1);
  const bool hex = digits.starts_with("0x") || digits.starts_with("0X");
  if (hex) digits.remove_prefix(2);
  const char* const last = digits.data() + digits.size();
  const auto [end, problem] = std::from_chars(digits.data(), last, number, hex ? 16 : 10);
  if (problem != std::errc() || end != last || number < low || number > high) {
    return invalid(quoted(text), " is no number from ", low, " to ", high);
  }
  return number;
}

Result<bool> parse_bool_parameter(std::string_view text, std::string_view name) {
  if (text == "on" || text == "yes" || text == "true" || text == "y") return true;
  if (text == "off" || text == "no" || text == "false" || text == "n") return false;
  return invalid("Parameter '", name, "' expects 'on' or 'off'");
}

Result<std::vector<OptionPair>> split_options(std::string_view text) {
  // An empty list, and one with an end that could join with the next -o, mean a typing error.
  if (text.empty() || text.front() == ',' || text.back() == ',') {
    return invalid("Invalid option list: ", text);
  }
  std::vector<OptionPair> pairs;
  size_t at = 0;
  while (at < text.size()) {
    std::string item;
    for (; at < text.size(); ++at) {
      if (text[at] == ',') {
        if (at + 1 == text.size() || text[at + 1] != ',') break;
        ++at;
      }
      item += text[at];
    }
    ++at;
    const size_t equals = item.find('=');
    const bool alone = equals == std::string::npos;
    if (alone && item.starts_with("no")) {
      pairs.push_back({.key = item.substr(2), .value = "off", .alone = true});
    } else if (alone) {
      pairs.push_back({.key = std::move(item), .value = "on", .alone = true});
    } else {
      pairs.push_back({.key = item.substr(0, equals), .value = item.substr(equals + 1)});
    }
  }
  return pairs;
}

}  // namespace byre
