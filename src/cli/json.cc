// SPDX-License-Identifier: Apache-2.0
#include "cli/json.h"

#include <fmt/core.h>

#include <algorithm>
#include <ranges>
#include <utility>

#include "base/assert.h"
#include "base/cat.h"
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

}  // namespace

Json::Json() = default;
Json::Json(const Json& other) = default;
Json::Json(Json&& other) noexcept = default;
Json& Json::operator=(Json other) noexcept {
  value_ = std::move(other.value_);
  return *this;
}
Json::~Json() = default;

Json::Json(std::string value) : value_(std::move(value)) {}
Json::Json(std::string_view value) : value_(std::string(value)) {}
Json::Json(const char* value) : value_(std::string(value)) {}
Json::Json(const std::vector<std::string>& values) : value_(Array(values.begin(), values.end())) {}

Json::Json(std::initializer_list<Json> values) {
  const auto is_pair = [](const Json& value) {
    const auto* elements = std::get_if<Array>(&value.value_);
    return elements && elements->size() == 2 &&
           std::holds_alternative<std::string>((*elements)[0].value_);
  };
  if (!std::ranges::all_of(values, is_pair)) {
    value_ = Array(values);
    return;
  }
  Object object;
  for (const Json& pair : values) {
    object.push_back({pair.elements()[0].string(), pair.elements()[1]});
  }
  value_ = std::move(object);
}

Json Json::array() {
  Json json;
  json.value_ = Array();
  return json;
}
Json Json::object() {
  Json json;
  json.value_ = Object();
  return json;
}

void Json::set_boolean(bool value) { value_ = value; }
void Json::set_number(uint64_t value) { value_ = value; }
void Json::set_number(int64_t value) { value_ = value; }

template <class T>
const T& Json::get() const {
  const T* value = std::get_if<T>(&value_);
  BYRE_ASSERT(value);
  return *value;
}
bool Json::boolean() const { return get<bool>(); }
uint64_t Json::number() const { return get<uint64_t>(); }
const std::string& Json::string() const { return get<std::string>(); }
const Json::Array& Json::elements() const { return get<Array>(); }
const Json::Object& Json::members() const { return get<Object>(); }

const Json* Json::find(std::string_view key) const {
  const auto found = std::ranges::find(members(), key, &Member::key);
  return found == members().end() ? nullptr : &found->value;
}

Json& Json::operator[](std::string_view key) {
  if (std::holds_alternative<std::nullptr_t>(value_)) value_ = Object();
  if (const Json* found = find(key)) return const_cast<Json&>(*found);
  auto& members = std::get<Object>(value_);
  members.push_back({std::string(key), {}});
  return members.back().value;
}
const Json& Json::operator[](std::string_view key) const {
  const Json* found = find(key);
  BYRE_ASSERT(found);
  return *found;
}
bool Json::contains(std::string_view key) const { return find(key) != nullptr; }

void Json::push_back(Json value) {
  BYRE_ASSERT(std::holds_alternative<Array>(value_));
  std::get<Array>(value_).push_back(std::move(value));
}

/// Makes text of values.
class JsonWriter {
 public:
  static bool is_structured(const Json& value) {
    return std::holds_alternative<Json::Array>(value.value_) ||
           std::holds_alternative<Json::Object>(value.value_);
  }
  static const std::string* text_in(const Json& value) {
    return std::get_if<std::string>(&value.value_);
  }
  /// Of what is neither text nor structured.
  static std::string plain(const Json& json) {
    if (const auto* boolean = std::get_if<bool>(&json.value_)) return cat(*boolean);
    if (const auto* number = std::get_if<uint64_t>(&json.value_)) return cat(*number);
    if (const auto* number = std::get_if<int64_t>(&json.value_)) return cat(*number);
    return "null";
  }
  /// Calls `visit` with a key, or null in an array, and the value.
  template <class Visit>
  static void for_each(const Json& json, Visit visit) {
    if (const auto* array = std::get_if<Json::Array>(&json.value_)) {
      for (const Json& value : *array) visit(nullptr, value);
    } else if (const auto* object = std::get_if<Json::Object>(&json.value_)) {
      for (const Json::Member& member : *object) visit(&member.key, member.value);
    }
  }
  /// `level` < 0: all in one line.
  static void append(std::string& out, const Json& json, int level) {
    if (const std::string* text = text_in(json)) return append_string(out, *text);
    if (!is_structured(json)) {
      out += plain(json);
      return;
    }
    const bool is_object = std::holds_alternative<Json::Object>(json.value_);
    out += is_object ? "{" : "[";
    bool first = true;
    for_each(json, [&](const std::string* key, const Json& value) {
      if (level < 0) {
        out += first ? "" : ", ";
      } else {
        out += first ? "\n" : ",\n";
        out += indentation(level + 1);
      }
      first = false;
      if (key) {
        append_string(out, *key);
        out += ": ";
      }
      append(out, value, level < 0 ? level : level + 1);
    });
    if (level >= 0) out += '\n' + indentation(level);
    out += is_object ? '}' : ']';
  }
};

std::string to_json_line(const Json& value) {
  std::string out;
  JsonWriter::append(out, value, -1);
  return out;
}

std::string to_json(const Json& value) {
  std::string out;
  JsonWriter::append(out, value, 0);
  return out + '\n';
}

std::string to_listing(const Json& value, int indent) {
  std::string out;
  size_t index = 0;
  JsonWriter::for_each(value, [&](const std::string* name, const Json& item) {
    std::string key = name ? *name : cat("[", index++, "]");
    std::replace(key.begin(), key.end(), '-', ' ');
    out += indentation(indent) + key + ':';
    if (JsonWriter::is_structured(item)) {
      out += '\n' + to_listing(item, indent + 1);
    } else {
      const std::string* text = JsonWriter::text_in(item);
      out += ' ' + (text ? printable(*text) : JsonWriter::plain(item)) + '\n';
    }
  });
  return out;
}

}  // namespace byre
