// SPDX-License-Identifier: Apache-2.0
#include "cli/io_line.h"

#include <algorithm>
#include <charconv>

#include "cli/values.h"

namespace byre {

bool IoLine::has(char letter) const {
  return std::any_of(options.begin(), options.end(),
                     [&](const auto& option) { return option.first == letter; });
}

std::string io_usage(const IoRow& row, std::string_view name) {
  return cat(name, row.synopsis.empty() ? "" : " ", row.synopsis, " -- ", row.summary);
}
Error io_usage(const IoLine& line) { return invalid(io_usage(line.row, line.name)); }

std::vector<std::string> split_words(std::string_view line) {
  constexpr std::string_view kBlank = " \t\r\n";
  std::vector<std::string> words;
  for (;;) {
    const size_t first = line.find_first_not_of(kBlank);
    if (first == std::string_view::npos) return words;
    line.remove_prefix(first);
    const size_t end = std::min(line.find_first_of(kBlank), line.size());
    words.emplace_back(line.substr(0, end));
    line.remove_prefix(end);
  }
}

std::expected<IoLine, IoComplaint> sort_words(const IoRow& row,
                                              const std::vector<std::string>& words) {
  IoLine line{.row = row, .name = words[0], .options = {}, .operands = {}};
  const auto refuse = [&](std::string_view problem, char letter) {
    return std::unexpected(
        IoComplaint{.out = io_usage(row, line.name) + "\n",
                    .err = cat(line.name, ": ", problem, " -- '", letter, "'\n")});
  };
  bool only_operands = row.letters.empty();
  for (size_t i = 1; i < words.size(); ++i) {
    const std::string_view word = words[i];
    if (only_operands || word.size() < 2 || word[0] != '-') {
      line.operands.push_back(words[i]);
      continue;
    }
    if (word == "--") {
      only_operands = true;
      continue;
    }
    for (size_t at = 1; at < word.size(); ++at) {
      const size_t found = word[at] == ':' ? std::string_view::npos : row.letters.find(word[at]);
      if (found == std::string_view::npos) return refuse("invalid option", word[at]);
      if (row.letters.substr(found + 1, 1) != ":") {
        line.options.emplace_back(word[at], "");
        continue;
      }
      std::string value(word.substr(at + 1));
      if (value.empty()) {
        if (++i == words.size()) return refuse("option requires an argument", word[at]);
        value = words[i];
      }
      line.options.emplace_back(word[at], std::move(value));
      break;
    }
  }
  return line;
}

Result<uint64_t> parse_io_size(const std::string& text) {
  const Result<uint64_t> size = parse_size(text);
  if (size) return *size;
  if (size.error().code() == Errc::no_space) {
    return invalid("Parsing error: argument too large -- ", text);
  }
  return invalid("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- ",
                 text);
}

std::optional<uint64_t> parse_c_number(std::string_view text) {
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    base = 16;
    text.remove_prefix(2);
  } else if (text.size() > 1 && text[0] == '0') {
    base = 8;
  }
  uint64_t number = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number, base);
  if (problem != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

Result<std::byte> parse_pattern(const std::string& text) {
  const std::optional<uint64_t> number = parse_c_number(text);
  if (!number || *number > 0xff) return invalid(text, " is not a valid pattern byte");
  return static_cast<std::byte>(*number);
}

}  // namespace byre
