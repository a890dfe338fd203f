// SPDX-License-Identifier: Apache-2.0
#include "daemon/qmp_type.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "base/option_text.h"

namespace byre::qmp {

namespace {

/// What messages call a place: nothing else has no name.
std::string name_of_place(const Place& place) { return place.path.empty() ? "null" : place.path; }

class Plain final : public Type {
 public:
  using Type::Type;
};

/// Of enumerations QEMU says the last part only.
std::string_view last_part(std::string_view path) {
  const size_t dot = path.rfind('.');
  return dot == std::string_view::npos ? path : path.substr(dot + 1);
}

Result<int64_t> read_integer(const Json& value, const Place& place) {
  if (place.from_words && value.is_string()) {
    const std::string& text = text_in(value);
    int64_t number = 0;
    const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (failed == std::errc() && end == text.data() + text.size()) return number;
    return invalid("Parameter '", name_of_place(place), "' expects integer");
  }
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      return static_cast<int64_t>(number);
  } else if (value.is_number_integer()) {
    return value.get<int64_t>();
  }
  return wrong_type(place, "integer");
}

}  // namespace

Error wrong_type(const Place& place, std::string_view expected) {
  return invalid("Invalid parameter type for '", name_of_place(place), "', expected: ", expected);
}
Error missing(const Place& place) {
  return invalid("Parameter '", name_of_place(place), "' is missing");
}
Error unexpected(const Place& place) {
  return invalid("Parameter '", name_of_place(place), "' is unexpected");
}

const Type& Type::text() {
  static const Plain kType(Kind::text);
  return kType;
}
const Type& Type::boolean() {
  static const Plain kType(Kind::boolean);
  return kType;
}
const Type& Type::integer() {
  static const Plain kType(Kind::integer);
  return kType;
}
const Type& Type::number() {
  static const Plain kType(Kind::number);
  return kType;
}
const Type& Type::null() {
  static const Plain kType(Kind::null);
  return kType;
}
const Type& Type::any() {
  static const Plain kType(Kind::any);
  return kType;
}

Result<void> Described<std::string>::read(const Json& value, const Place& place, std::string& to) {
  if (!value.is_string()) return wrong_type(place, "string");
  to = text_in(value);
  return {};
}

Result<void> Described<bool>::read(const Json& value, const Place& place, bool& to) {
  if (place.from_words && value.is_string()) {
    BYRE_TRY(on, parse_bool_parameter(text_in(value), name_of_place(place)));
    to = on;
    return {};
  }
  if (!value.is_boolean()) return wrong_type(place, "boolean");
  to = value.get<bool>();
  return {};
}

Result<void> Described<int64_t>::read(const Json& value, const Place& place, int64_t& to) {
  BYRE_TRY(number, read_integer(value, place));
  to = number;
  return {};
}

Result<void> Described<uint32_t>::read(const Json& value, const Place& place, uint32_t& to) {
  BYRE_TRY(number, read_integer(value, place));
  if (number < 0 || number > std::numeric_limits<uint32_t>::max())
    return invalid("Parameter '", name_of_place(place), "' expects uint32_t");
  to = static_cast<uint32_t>(number);
  return {};
}

Result<void> Described<uint64_t>::read(const Json& value, const Place& place, uint64_t& to) {
  if (place.from_words && value.is_string()) {
    BYRE_TRY(size, parse_size_parameter(text_in(value), name_of_place(place)));
    to = size;
    return {};
  }
  if (value.is_number_unsigned()) {
    to = value.get<uint64_t>();
    return {};
  }
  BYRE_TRY(number, read_integer(value, place));
  if (number < 0) return invalid("Parameter '", name_of_place(place), "' expects uint64");
  to = static_cast<uint64_t>(number);
  return {};
}

Result<size_t> Enumeration::read(const Json& value, const Place& place) const {
  if (!value.is_string()) return wrong_type(place, "string");
  const auto no = refused.find(text_in(value));
  if (no != refused.end()) return unsupported(no->second);
  const auto found = std::ranges::find(values, text_in(value));
  if (found == values.end()) {
    return invalid("Parameter '", last_part(name_of_place(place)), "' does not accept value '",
                   text_in(value), "'");
  }
  return static_cast<size_t>(found - values.begin());
}

Result<void> Struct::check(const Json& value, const Place& place) const {
  return read(value, place, nullptr);
}

Result<void> Struct::read_field(const Field& field, const Json& value, const Place& place,
                                void* object) const {
  const Place at = place.member(field.name);
  const auto found = value.find(field.name);
  if (found == value.end()) return field.optional ? Result<void>() : missing(at);
  if (object && field.store) return field.store(object, *found, at);
  return check_type(field.type_of(), *found, at);
}

Result<void> Struct::read(const Json& value, const Place& place, void* object) const {
  if (!value.is_object()) return wrong_type(place, "object");
  std::set<std::string_view> known;
  const auto read_all = [&](const std::vector<Field>& list) -> Result<void> {
    for (const Field& one : list) {
      known.insert(one.name);
      if (Result<void> read = read_field(one, value, place, object); !read) return read;
    }
    return {};
  };
  if (Result<void> read = read_all(fields); !read) return read;
  if (!tag.empty()) {
    const auto chosen = value.find(tag);
    const auto variant = std::ranges::find_if(variants, [&](const Variant& one) {
      return chosen != value.end() && chosen->is_string() && text_in(*chosen) == one.value;
    });
    if (variant != variants.end()) {
      if (Result<void> read = read_all(variant->fields); !read) return read;
    }
  }
  for (const auto& [name, member] : value.items()) {
    if (!known.contains(name)) return unexpected(place.member(name));
  }
  return {};
}

namespace {

/// By what an alternate tells its branches apart.
bool may_be(const Type& type, const Json& value) {
  switch (type.kind) {
    case Type::Kind::text:
    case Type::Kind::enumeration:
      return value.is_string();
    case Type::Kind::boolean:
      return value.is_boolean();
    case Type::Kind::integer:
    case Type::Kind::number:
      return value.is_number();
    case Type::Kind::null:
      return value.is_null();
    case Type::Kind::array:
      return value.is_array();
    case Type::Kind::object:
      return value.is_object();
    case Type::Kind::any:
    case Type::Kind::alternate:
      return true;
  }
  return false;
}

template <class T>
Result<void> check_as(const Json& value, const Place& place) {
  T nobody;
  return Described<T>::read(value, place, nobody);
}

}  // namespace

Result<void> check_type(const Type& type, const Json& value, const Place& place) {
  switch (type.kind) {
    case Type::Kind::text:
      return check_as<std::string>(value, place);
    case Type::Kind::boolean:
      return check_as<bool>(value, place);
    case Type::Kind::integer:
      // On a command line it may be a size.
      if (place.from_words) return check_as<uint64_t>(value, place);
      if (value.is_number_unsigned()) return {};
      return check_as<int64_t>(value, place);
    case Type::Kind::number:
      return value.is_number() ? Result<void>() : wrong_type(place, "number");
    case Type::Kind::null:
      return value.is_null() ? Result<void>() : wrong_type(place, "null");
    case Type::Kind::any:
      return {};
    case Type::Kind::enumeration: {
      const Result<size_t> read = static_cast<const Enumeration&>(type).read(value, place);
      return read ? Result<void>() : read.error().copy();
    }
    case Type::Kind::object:
      return static_cast<const Struct&>(type).check(value, place);
    case Type::Kind::array: {
      const bool is_list = value.is_array() || (place.from_words && value.is_object());
      if (!is_list) return wrong_type(place, "array");
      size_t index = 0;
      for (const Json& element : value) {
        const Type& each = static_cast<const Array&>(type).element;
        if (Result<void> checked = check_type(each, element, place.element(index++)); !checked)
          return checked;
      }
      return {};
    }
    case Type::Kind::alternate: {
      const auto& alternate = static_cast<const Alternate&>(type);
      for (const TypeFunction branch : alternate.branches) {
        if (may_be(branch(), value)) return check_type(branch(), value, place);
      }
      return wrong_type(place, alternate.name);
    }
  }
  BYRE_ASSERT(false);
}

}  // namespace byre::qmp
