// SPDX-License-Identifier: Apache-2.0
#include "cli/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

#include "cli/text.h"

namespace byre {

namespace {

std::string indentation(int levels) { return std::string(static_cast<size_t>(levels) * 4, ' '); }

void append_string(std::string& out, std::string_view text) {
  out += '"';
  while (!text.empty()) {
    const Codepoint point = next_codepoint(text);
    switch (point.value) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (!point.valid) {
          out += "\\uFFFD";
        } else if (point.value > 0xffff) {
          const uint32_t rest = point.value - 0x10000;
          out += fmt::format("\\u{:04X}\\u{:04X}", 0xd800 + (rest >> 10), 0xdc00 + (rest & 0x3ff));
        } else if (point.value < 0x20 || point.value >= 0x7f) {
          out += fmt::format("\\u{:04X}", point.value);
        } else {
          out += static_cast<char>(point.value);
        }
    }
    text.remove_prefix(point.length);
  }
  out += '"';
}

/// `level` < 0: all in one line.
void append(std::string& out, const Json& value, int level) {
  if (value.is_string()) return append_string(out, value.get_ref<const std::string&>());
  if (!value.is_structured()) {
    out += value.dump();
    return;
  }
  const bool is_object = value.is_object();
  out += is_object ? "{" : "[";
  bool first = true;
  for (const auto& item : value.items()) {
    if (level < 0) {
      out += first ? "" : ", ";
    } else {
      out += first ? "\n" : ",\n";
      out += indentation(level + 1);
    }
    first = false;
    if (is_object) {
      append_string(out, item.key());
      out += ": ";
    }
    append(out, item.value(), level < 0 ? level : level + 1);
  }
  if (level >= 0) out += '\n' + indentation(level);
  out += is_object ? '}' : ']';
}

}  // namespace

std::string to_json_line(const Json& value) {
  std::string out;
  append(out, value, -1);
  return out;
}

std::string to_json(const Json& value) {
  std::string out;
  append(out, value, 0);
  return out + '\n';
}

std::string to_listing(const Json& value, int indent) {
  std::string out;
  for (const auto& item : value.items()) {
    std::string key = value.is_array() ? fmt::format("[{}]", item.key()) : item.key();
    std::replace(key.begin(), key.end(), '-', ' ');
    out += indentation(indent) + key + ':';
    if (item.value().is_structured()) {
      out += '\n' + to_listing(item.value(), indent + 1);
    } else {
      const Json& plain = item.value();
      out += ' ' +
             (plain.is_string() ? printable(plain.get_ref<const std::string&>()) : plain.dump()) +
             '\n';
    }
  }
  return out;
}

}  // namespace byre
