// SPDX-License-Identifier: Apache-2.0
#include "cli/values.h"

namespace byre {

std::optional<CacheMode> find_cache_mode(std::string_view text) {
  if (text == "writeback") return CacheMode::writeback;
  if (text == "writethrough") return CacheMode::writethrough;
  if (text == "none" || text == "off") return CacheMode::none;
  if (text == "directsync") return CacheMode::directsync;
  if (text == "unsafe") return CacheMode::unsafe;
  return std::nullopt;
}

std::optional<std::string> OptionList::take(std::string_view name) {
  std::optional<std::string> value;
  for (const auto& [key, given] : pairs) {
    if (key == name) value = given;
  }
  std::erase_if(pairs, [&](const auto& pair) { return pair.first == name; });
  return value;
}

Result<void> parse_value(std::string_view text, std::string& value) {
  value = text;
  return {};
}

Result<void> parse_value(std::string_view text, std::optional<std::string>& value) {
  value = text;
  return {};
}

Result<void> parse_value(std::string_view text, std::vector<std::string>& value) {
  value.emplace_back(text);
  return {};
}

Result<void> parse_value(std::string_view text, OutputFormat& value) {
  if (text == "human") {
    value = OutputFormat::human;
  } else if (text == "json") {
    value = OutputFormat::json;
  } else {
    return invalid("--output expects 'human' or 'json' not '", text, "'");
  }
  return {};
}

Result<void> parse_value(std::string_view text, OptionList& value) {
  BYRE_TRY(pairs, split_options(text));
  for (OptionPair& pair : pairs) {
    if (pair.alone && pair.value == "on" && (pair.key == "help" || pair.key == "?")) {
      value.help = true;
    } else {
      value.pairs.emplace_back(std::move(pair.key), std::move(pair.value));
    }
  }
  return {};
}

Result<void> parse_value(std::string_view text, std::optional<OpenPolicy>& value) {
  if (text == "nothing") {
    value = OpenPolicy::nothing;
  } else if (text == "same-directory") {
    value = OpenPolicy::same_directory;
  } else if (text == "any") {
    value = OpenPolicy::any_file;
  } else {
    return invalid("Invalid --follow: ", quoted(text),
                   " (expecting nothing, same-directory or any)");
  }
  return {};
}

Result<void> parse_value(std::string_view text, std::optional<DiscardPolicy>& value) {
  if (text == "unmap" || text == "on") {
    value = DiscardPolicy::unmap;
  } else if (text == "ignore" || text == "off") {
    value = DiscardPolicy::ignore;
  } else {
    return invalid("Invalid discard mode: ", quoted(text), " (expecting unmap or ignore)");
  }
  return {};
}

}  // namespace byre
